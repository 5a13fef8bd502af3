"""Features predicted from embeddings on held-out plates: what is planted, what a loop gives, and what earns nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from cytolake.benchmark.feature_regression import (
    ALL,
    FeatureRegressionConfig,
    _over_plates,
    family_of,
    feature_regression,
)

N_PLATES, N_WELLS = 4, 60
NAMES = ("Cells_AreaShape_Area", "Nuclei_AreaShape_Area", "Cells_Intensity_Mean_DNA", "Cells_Texture_Noise")


def screen(seed=0, noise=0.5, dim=8):
    """The embedding holds two shapes and an intensity, each with noise of its own, and no texture."""
    rng = np.random.default_rng(seed)
    n = N_PLATES * N_WELLS
    features = rng.normal(size=(n, len(NAMES)))
    vectors = features[:, :3] @ rng.normal(size=(3, dim))
    features[:, :3] += noise * rng.normal(size=(n, 3))
    return vectors, features, [f"P{i % N_PLATES}" for i in range(n)]


def family(found, name):
    (score,) = (each for each in found.families if each.family == name)
    return score


def test_what_the_embedding_holds_is_predicted_up_to_the_noise_and_nothing_else_is():
    vectors, features, plates = screen(noise=0.5)
    found = feature_regression(vectors, features, NAMES, plates)
    best = 1 / (1 + 0.25)  # variance of the planted part over that of the feature
    for name in NAMES[:3]:
        assert found.r2[name] == pytest.approx(best, abs=4 * 0.05)
    assert found.r2[NAMES[3]] < 0.02
    assert [each.family for each in found.families] == [ALL, "AreaShape", "Intensity", "Texture"]
    shape = family(found, "AreaShape")
    assert shape.n_features == 2
    assert shape.median_r2.value == pytest.approx(np.median([found.r2[name] for name in NAMES[:2]]))
    assert shape.of_compartment == {"Cells": found.r2[NAMES[0]], "Nuclei": found.r2[NAMES[1]]}
    assert set(shape.of_plate) == {f"P{i}" for i in range(N_PLATES)}
    assert shape.median_r2.low < shape.median_r2.value < shape.median_r2.high <= 1
    assert family(found, ALL).median_r2.value == pytest.approx(np.median(list(found.r2.values())))
    assert found.n_plates == N_PLATES


@pytest.mark.parametrize("dim", [8, 300])  # fewer features than wells, and more
def test_errors_are_those_of_scikit_learns_ridge_in_a_loop(dim):
    vectors, features, plates = screen(seed=1, dim=dim)
    found = feature_regression(vectors, features, NAMES, plates, config=FeatureRegressionConfig(strengths=(0.3,)))
    plate = np.asarray(plates)
    for values in (vectors, features):
        for name in set(plates):
            values[plate == name] -= values[plate == name].mean(axis=0)
    error, total = np.zeros(len(NAMES)), np.zeros(len(NAMES))
    for name in sorted(set(plates)):
        test = plate == name
        scaler = StandardScaler().fit(vectors[~test])
        ridge = Ridge(alpha=0.3 * (~test).sum()).fit(scaler.transform(vectors[~test]), features[~test])
        error += np.square(features[test] - ridge.predict(scaler.transform(vectors[test]))).sum(axis=0)
        total += np.square(features[test]).sum(axis=0)
    assert list(found.r2.values()) == pytest.approx(1 - error / total, abs=1e-9)


def test_offsets_between_plates_earn_nothing():
    """An embedding that holds the plate alone predicts features that differ between plates alone, and that is no R2."""
    rng = np.random.default_rng(2)
    batch = np.repeat([0, 0, 1, 1], N_WELLS)
    vectors = batch[:, None] + 0.01 * rng.normal(size=(len(batch), 2))
    features = 10 * batch[:, None] + rng.normal(size=(len(batch), 3))
    plates = np.repeat([f"P{i}" for i in range(N_PLATES)], N_WELLS).tolist()
    found = feature_regression(vectors, features, ["Texture_1", "Texture_2", "Texture_3"], plates)
    assert max(found.r2.values()) < 0.02
    assert 1 - np.var(features - 10 * batch[:, None]) / np.var(features) > 0.9  # what a pooled R2 would have given


def test_each_feature_gets_the_strength_that_suits_it_on_training_plates():
    vectors, features, plates = screen(seed=3, noise=0.0, dim=60)
    found = feature_regression(vectors, features, NAMES, plates)
    assert found.strength[NAMES[0]] <= 0.01 < 10 <= found.strength[NAMES[3]]


def test_offsets_of_plates_in_vectors_and_features_change_nothing():
    vectors, features, plates = screen(seed=4)
    of_plate = np.unique(plates, return_inverse=True)[1]
    rng = np.random.default_rng(0)
    shifted = feature_regression(
        vectors + 50 * rng.normal(size=(N_PLATES, vectors.shape[1]))[of_plate],
        features + 50 * rng.normal(size=(N_PLATES, len(NAMES)))[of_plate],
        NAMES,
        plates,
    )
    assert shifted.r2 == pytest.approx(feature_regression(vectors, features, NAMES, plates).r2, abs=1e-9)


def test_features_in_the_embedding_itself_are_predicted_whatever_their_plate():
    _, features, plates = screen(seed=9)
    found = feature_regression(features, features, NAMES, plates)
    assert min(found.r2.values()) > 0.999


def test_a_batch_is_held_out_with_all_of_its_plates():
    vectors, features, plates = screen(seed=10)
    batches = [{"P0": "A", "P1": "A", "P2": "B", "P3": "B"}[plate] for plate in plates]
    found = feature_regression(vectors, features, NAMES, plates, held_out=batches)
    assert found.n_plates == 2
    assert set(family(found, ALL).of_plate) == {"A", "B"}
    assert found.r2[NAMES[0]] > 0.6


@pytest.mark.parametrize("n_plates", [3, 4, 8])
def test_intervals_over_few_plates_cover_the_score_of_many(n_plates):
    """Plates differ in how well their features are predicted; each simulated screen has other plates."""
    rng = np.random.default_rng(5)
    covered, n_screens, truth = 0, 400, 0.6
    for _ in range(n_screens):
        total = rng.uniform(50, 70, (n_plates, 1)) * np.ones((1, 9))
        error = total * (1 - truth + 0.1 * rng.normal(size=(n_plates, 1)) + 0.03 * rng.normal(size=(n_plates, 9)))
        interval = _over_plates(error, total)
        covered += interval.low <= truth <= interval.high
    assert 0.92 <= covered / n_screens <= 0.98


def test_more_plates_than_folds_are_held_out_in_groups_of_plates():
    vectors, features, _ = screen(seed=6)
    plates = [f"P{i % 12:02d}" for i in range(len(vectors))]
    found = feature_regression(vectors, features, NAMES, plates, config=FeatureRegressionConfig(max_folds=3))
    assert found.n_plates == 12
    assert found.r2[NAMES[0]] > 0.6


def test_two_plates_are_enough_and_features_that_do_not_vary_are_counted():
    vectors, features, _ = screen(seed=7)
    features = np.column_stack([features, np.full(len(features), 3.0)])
    plates = ["A"] * (len(features) // 2) + ["B"] * (len(features) // 2)
    found = feature_regression(vectors, features, [*NAMES, "Cells_Count"], plates)
    assert found.n_constant == 1
    assert "Cells_Count" not in found.r2
    assert found.r2[NAMES[2]] > 0.6
    assert set(family(found, ALL).of_plate) == {"A", "B"}


def test_a_plate_on_which_no_feature_of_a_family_varies_has_no_score_of_its_own():
    vectors, features, plates = screen(seed=8)
    features[np.isin(plates, ["P0", "P3"]), 2] = 0.0
    intensity = family(feature_regression(vectors, features, NAMES, plates), "Intensity")
    assert set(intensity.of_plate) == {"P1", "P2"}
    assert np.isfinite([intensity.median_r2.low, intensity.median_r2.value, intensity.median_r2.high]).all()


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Cells_AreaShape_Area", ("Cells", "AreaShape")),
        ("Image_Granularity_1_DNA", ("Image", "Granularity")),
        ("Texture_Contrast", ("", "Texture")),
        ("nuclei_Intensity_x", ("nuclei", "Intensity")),
        ("cells", ("", "cells")),
    ],
)
def test_a_family_is_the_word_after_the_compartment(name, place):
    assert family_of(name) == place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ["x"]}, "1 names and 240 plates"),
        ({"plates": ["P"] * 240}, "1 plates with 2 wells or more on a plate have"),
        ({"features": np.full((240, 4), np.nan)}, "a vector or a feature is not finite"),
        ({"features": np.ones((240, 4))}, "0 of 4 features vary"),
    ],
)
def test_what_cannot_be_predicted_is_refused(change, said):
    vectors, features, plates = screen()
    with pytest.raises(ValueError, match=said):
        feature_regression(**{"vectors": vectors, "features": features, "names": NAMES, "plates": plates, **change})


def test_a_config_that_cannot_work_is_refused():
    for change in ({"strengths": ()}, {"strengths": (0.0,)}, {"max_folds": 1}):
        with pytest.raises(ValueError, match="feature_regression"):
            FeatureRegressionConfig(**change)
