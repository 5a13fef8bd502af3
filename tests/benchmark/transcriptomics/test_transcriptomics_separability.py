"""Linear separability and nearest neighbours against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from cytolake.benchmark.transcriptomics.separability import knn_scores, linear_scores, top_credit


@pytest.fixture(scope="module")
def parts():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 240) * 3  # codes need not be 0, 1, ...
    vectors = random.normal(size=(240, 6))
    vectors[np.arange(240), labels // 3] += 1.5
    return vectors[:160], labels[:160], vectors[160:], labels[160:]


def test_linear_scores_are_those_of_scikit_learn(parts):
    train, labels, test, _ = parts
    for standardise in (False, True):
        classes, scores, converged = linear_scores(train, labels, test, standardise=standardise)
        scaler = StandardScaler(with_std=standardise).fit(train)
        oracle = LogisticRegression(max_iter=2000, tol=1e-8).fit(scaler.transform(train), labels)
        np.testing.assert_array_equal(classes, oracle.classes_)
        np.testing.assert_allclose(scores, oracle.decision_function(scaler.transform(test)), atol=0.02)
        assert converged


def test_only_the_standardised_probe_ignores_the_scale_of_dimensions(parts):
    train, labels, test, _ = parts
    scale = np.asarray([1e-3, 1, 10, 100, 1, 1e3])
    plain, changed = (
        linear_scores(train * factor, labels, test * factor, standardise=True)[1] for factor in (1, scale)
    )
    np.testing.assert_allclose(plain, changed, atol=1e-3)
    tiny = linear_scores(1e-3 * train, labels, 1e-3 * test, standardise=False)[1]
    assert np.abs(tiny).max() < 0.1 * np.abs(plain).max()


def test_two_perturbations_get_two_columns_and_one_is_refused(parts):
    train, labels, test, _ = parts
    two = labels <= 3
    classes, scores, _ = linear_scores(train[two], labels[two], test, standardise=True)
    assert scores.shape == (len(test), 2)
    oracle = LogisticRegression(max_iter=2000).fit(StandardScaler().fit_transform(train[two]), labels[two])
    predicted = oracle.predict(StandardScaler().fit(train[two]).transform(test))
    assert (classes[scores.argmax(axis=1)] == predicted).mean() > 0.98
    with pytest.raises(ValueError, match="1 perturbations to predict"):
        linear_scores(train, np.zeros(len(train), int), test, standardise=True)


def test_fits_at_the_limit_of_iterations_are_reported(parts):
    train, labels, test, _ = parts
    assert not linear_scores(train, labels, test, standardise=True, max_iterations=1)[2]


def test_votes_are_those_of_scikit_learn(parts):
    train, labels, test, _ = parts
    classes, votes = knn_scores(train, labels, test, n_neighbours=15, n_components=None)
    oracle = KNeighborsClassifier(15, weights=lambda distances: 1 / (distances + 1e-5), algorithm="brute")
    oracle.fit(train, labels)
    np.testing.assert_array_equal(classes, oracle.classes_)
    np.testing.assert_allclose(votes, oracle.predict_proba(test), atol=1e-9)


def test_cosine_votes_are_those_of_a_loop(parts):
    train, labels, test, _ = parts
    classes, votes = knn_scores(train, labels, test, n_neighbours=9, n_components=None, distance="cosine")
    for row in range(0, len(test), 11):
        cosines = train @ test[row] / np.linalg.norm(train, axis=1) / np.linalg.norm(test[row])
        nearest = np.argsort(-cosines)[:9]
        weights = np.exp(cosines[nearest] / 0.07)
        expected = [weights[labels[nearest] == label].sum() / weights.sum() for label in classes]
        np.testing.assert_allclose(votes[row], expected, atol=1e-9)


def test_cosine_votes_after_components_are_those_of_the_published_order(parts):
    """Length 1 first, then components, then inner products; here as a loop with scikit-learn's components."""
    train, labels, test, _ = parts
    scale = np.random.default_rng(4).lognormal(0, 1, (240, 1))  # lengths differ, so the order of the steps matters
    train, test = train * scale[:160] + 2, test * scale[160:] + 2
    classes, votes = knn_scores(train, labels, test, n_neighbours=15, n_components=3, distance="cosine")
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (train, test)]
    pca = PCA(3, svd_solver="full").fit(unit[0])
    similarity = pca.transform(unit[1]) @ pca.transform(unit[0]).T
    nearest = np.argsort(-similarity, axis=1)[:, :15]
    weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / 0.07)
    expected = np.stack([(weights * (labels[nearest] == label)).sum(axis=1) for label in classes], axis=1)
    np.testing.assert_allclose(votes, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)


def test_components_are_fitted_on_training_rows_alone(parts):
    train, labels, test, _ = parts
    wide = np.concatenate([train, 1e-3 * np.random.default_rng(1).normal(size=(160, 40))], axis=1)
    far = np.concatenate([test, 1e3 * np.random.default_rng(2).normal(size=(80, 40))], axis=1)
    near = np.concatenate([test, np.zeros((80, 40))], axis=1)
    kept = [knn_scores(wide, labels, each, n_neighbours=9, n_components=6)[1] for each in (near, near[::-1])]
    np.testing.assert_allclose(kept[0], kept[1][::-1], atol=1e-9)
    assert knn_scores(wide, labels, far, n_neighbours=9, n_components=6)[1].shape == (80, 4)


def test_the_number_of_neighbours_is_odd_and_at_most_the_training_rows(parts):
    train, labels, test, _ = parts
    pairs = [(16, 15), (10_000, 159), (None, 13), (1, 1)]
    for wanted, used in pairs:
        got = knn_scores(train, labels, test, n_neighbours=wanted, n_components=None)[1]
        expected = knn_scores(train, labels, test, n_neighbours=used, n_components=None)[1]
        np.testing.assert_array_equal(got, expected)


def test_credit_counts_the_best_scores_and_shares_ties_by_chance():
    classes = np.asarray([2, 5, 9, 11])
    scores = np.asarray([[0.1, 0.4, 0.3, 0.2], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    labels = np.asarray([9, 2, 11])
    np.testing.assert_allclose(top_credit(scores, classes, labels, 1), [0, 0.5, 0.25])
    np.testing.assert_allclose(top_credit(scores, classes, labels, 2), [1, 1, 0.5])
    np.testing.assert_allclose(top_credit(scores, classes, labels, 5), 1)


def test_a_label_that_training_lacks_scores_0_and_is_no_error():
    scores = np.asarray([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    np.testing.assert_array_equal(top_credit(scores, np.asarray([1, 3]), np.asarray([0, 2, 7]), 2), 0)
