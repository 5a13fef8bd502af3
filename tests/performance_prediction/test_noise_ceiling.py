from __future__ import annotations

import numpy as np
import pytest

from cytolake.performance_prediction.correlations import correlation
from cytolake.performance_prediction.noise_ceiling import noise_ceiling, reliability_of_whole


def measured(n_images, *, n=4000, noise=1.0, seed=0, shift=0.0):
    """Scores of images of prompts whose true means have variance 1; `n_images` cycles over prompts."""
    random = np.random.default_rng(seed)
    true = random.normal(size=n)
    sizes = np.resize(n_images, n)
    return true, [mean + shift + noise * random.normal(size=size) for mean, size in zip(true, sizes, strict=True)]


@pytest.mark.parametrize("n_images", [3, 5, 7])
def test_odd_numbers_of_images_have_the_reliability_of_their_mean(n_images):
    """Of three images of single reliability 1/2 it is 3/4; the formula for equal halves would give .732."""
    _, images = measured(n_images)
    found = noise_ceiling(images, n_halvings=20, n_draws=50)
    expected = n_images / (n_images + 1)
    assert found.reliability.value == pytest.approx(expected, abs=3 * (1 - expected) / np.sqrt(4000) * 2)
    assert found.reliability.low < expected < found.reliability.high


@pytest.mark.slow
def test_three_images_are_measured_closer_than_the_formula_for_equal_halves_could():
    _, images = measured(3, n=40_000)
    found = noise_ceiling(images, n_halvings=10, n_draws=2)
    r = found.half_correlation
    assert found.reliability.value == pytest.approx(0.750, abs=0.006)
    assert 2 * r / (1 + r) == pytest.approx(0.732, abs=0.006)


@pytest.mark.parametrize("r", [0.1, 0.577, 0.9])
def test_equal_halves_have_the_formula_of_spearman_and_brown_and_unequal_ones_that_of_horst(r):
    assert reliability_of_whole(r, 1 / 2, 1 / 2, 1 / 4) == pytest.approx(2 * r / (1 + r))
    p, q = 1 / 3, 2 / 3
    horst = (r * np.sqrt(r**2 + 4 * p * q * (1 - r**2)) - r**2) / (2 * p * q * (1 - r**2))
    assert reliability_of_whole(r, 1 / 1, 1 / 2, 1 / 3) == pytest.approx(horst)
    assert reliability_of_whole(-r, 1 / 1, 1 / 2, 1 / 3) == 0


def test_prompts_of_different_numbers_of_images_have_the_reliability_of_the_table():
    true, images = measured((2, 3, 9), n=30_000)
    found = noise_ceiling(images, n_halvings=5, n_draws=2)
    observed = np.array([scores.mean() for scores in images])
    assert found.reliability.value == pytest.approx(1 / (1 + np.mean([1 / 2, 1 / 3, 1 / 9])), abs=0.01)
    assert found.ceiling == pytest.approx(correlation("pearson", true, observed), abs=0.01)


def test_the_reliability_of_one_image_is_that_of_a_table_of_single_images():
    _, images = measured(4, n=20_000)
    assert noise_ceiling(images, of_single=True, n_halvings=5, n_draws=2).reliability.value == pytest.approx(
        0.5, abs=0.02
    )


def test_the_ceiling_is_what_the_true_mean_would_reach():
    true, images = measured(6, noise=2.0)
    found = noise_ceiling(images, n_halvings=10)
    observed = np.array([scores.mean() for scores in images])
    assert found.ceiling == pytest.approx(correlation("pearson", true, observed), abs=0.02)
    assert found.reliability.value == pytest.approx(1 / (1 + 4 / 6), abs=0.03)  # variance of truth over that of means


def test_how_generators_differ_is_neither_noise_nor_signal():
    (_, weak), (_, strong) = measured(3, n=600), measured(3, n=600, seed=1, shift=50.0)
    names = ["weak"] * 600 + ["strong"] * 600
    found = noise_ceiling([*weak, *strong], names)
    assert found.reliability.low < 0.75 < found.reliability.high
    assert found.reliability.high - found.reliability.low < 0.1


def test_intervals_of_the_reliability_cover_it():
    hits = 0
    for seed in range(60):
        _, images = measured(3, n=80, seed=seed)
        found = noise_ceiling(images, n_halvings=20, n_draws=200, seed=seed)
        hits += found.reliability.low <= 0.75 <= found.reliability.high
    assert 50 <= hits <= 60  # .95 of 60 is 57; percentile intervals of 80 prompts are a little short


def test_images_that_something_unnamed_separates_are_negatively_correlated_by_halves():
    """Two generators, one image of each, and no column that names them."""
    random = np.random.default_rng(0)
    true = random.normal(scale=0.3, size=500)
    images = [mean + np.array([0.0, 3.0]) + 0.2 * random.normal(size=2) for mean in true]
    found = noise_ceiling(images)
    assert found.reliability.value == 0
    assert found.half_correlation < -0.5


def test_prompts_of_one_image_or_too_few_have_no_ceiling():
    assert noise_ceiling([np.array([1.0])] * 50) is None
    assert noise_ceiling([np.array([1.0, 2.0])] * 3) is None
    assert noise_ceiling([np.array([1.0, 1.0])] * 50) is None  # nothing varies
