from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from cytolake.qc.detector.detector import DetectorConfig
from cytolake.qc.detector.heads import class_logits, fit_classes, fit_one_class, one_class_distance

ORACLES = {
    "logistic": LogisticRegression(C=0.03, class_weight="balanced", tol=1e-10, max_iter=5000),
    "svm": LinearSVC(C=0.03, class_weight="balanced", intercept_scaling=10, tol=1e-10, max_iter=100_000),
}


@pytest.fixture
def wide() -> tuple[np.ndarray, np.ndarray]:
    """20 channels of 2 classes with 60 features, and 8 more channels: more features than rows."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((28, 60))
    values[10:20, :3] += 2
    return values[:20], values[20:]


@pytest.mark.parametrize("head", ORACLES)
def test_a_linear_head_is_scikit_learns_also_on_more_features_than_rows(head, wide):
    train, tested = wide
    label = np.repeat([0, 1], 10)
    config = DetectorConfig(head=head, strengths=(0.03,))
    arrays = fit_classes(train, label, np.arange(20), config)
    found = class_logits(tested, arrays, 2, config)
    train, tested = (np.concatenate([each, np.abs(each)], axis=1) for each in wide)
    mean, sd = train.mean(axis=0), train.std(axis=0)
    oracle = ORACLES[head].fit((train - mean) / sd, label).decision_function((tested - mean) / sd)
    per_margin = 2 if head == "svm" else 1
    # Both stop within their solver's tolerance of one optimum, whose log odds are of order 1.
    np.testing.assert_allclose(found[:, 1] - found[:, 0], per_margin * oracle, atol=5e-3)


@pytest.mark.parametrize("n_features", [5, 15, 60])
def test_distances_are_those_of_ledoit_and_wolfs_covariance_whatever_the_width(n_features, wide):
    normal, tested = (each[:, :n_features] for each in wide)
    config = DetectorConfig(head="mahalanobis")
    covariance, _ = ledoit_wolf(normal)
    covariance += 1e-3 * np.trace(covariance) / n_features * np.eye(n_features)
    centred = tested - normal.mean(axis=0)
    expected = np.sqrt(np.einsum("md,de,me->m", centred, np.linalg.inv(covariance), centred))
    found = one_class_distance(tested, fit_one_class(normal, np.arange(20), config), config)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_forest_of_arrays_scores_as_scikit_learns(wide):
    normal, tested = wide
    config = DetectorConfig(head="isolation_forest")
    found = one_class_distance(tested, fit_one_class(normal, np.arange(20), config), config)
    oracle = IsolationForest(n_estimators=100, random_state=0).fit(normal)
    np.testing.assert_allclose(found, -oracle.score_samples(tested), rtol=1e-6)


@pytest.mark.parametrize("head", ["mahalanobis", "knn_distance", "isolation_forest"])
def test_a_channel_far_from_the_normal_ones_is_farther_than_they_are(head, wide):
    normal, _ = wide
    config = DetectorConfig(head=head)
    arrays = fit_one_class(normal[:10], np.arange(10), config)
    near, far = one_class_distance(np.stack([normal[:10].mean(axis=0), np.full(60, 20.0)]), arrays, config)
    assert far > 1.2 * near
