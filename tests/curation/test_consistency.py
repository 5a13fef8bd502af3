"""Alignment on controls, and p-values combined over experiments."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cytolake.curation.consistency import align_to_controls, combined_p_value
from cytolake.statistics.consistency import consistency_tests
from cytolake.statistics.p_values import cauchy_combination


def planted(seed: int, n_conditions: int, n_wells: int, strength: float, dim: int = 24):
    """Profiles of conditions, of which the first half has an effect, one direction each; and the conditions."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((n_conditions, dim)) * strength
    directions[n_conditions // 2 :] = 0
    conditions = np.repeat(np.arange(n_conditions), n_wells)
    return directions[conditions] + rng.standard_normal((len(conditions), dim)), conditions


def p_values(profiles, conditions, n_draws=999, name="E") -> list[float]:
    strata = np.zeros(len(conditions), np.int64)
    return [test.p_value for test in consistency_tests(profiles, conditions, strata, n_draws, 0, name)]


def test_without_an_effect_p_values_combined_over_experiments_are_uniform():
    combined = []
    for number in range(120):
        found = []
        for name in "ABC":
            profiles, conditions = planted(1000 + 7 * number + ord(name), 8, 4, 0.0)
            found.append(p_values(profiles, conditions, name=f"{name}{number}")[0])
        combined.append(combined_p_value(found, 999))
    assert stats.kstest(combined, "uniform").pvalue > 0.01


def test_conditions_with_an_effect_are_found_and_the_others_are_not():
    """400 conditions, half of them without an effect, 4 wells in each of 3 experiments: p < 0.01 separates them."""
    found = [
        p_values(*planted(seed, 400, 4, 0.7), n_draws=10_000, name=name)
        for name, seed in (("A", 1), ("B", 2), ("C", 3))
    ]
    combined = np.array([combined_p_value(of_condition, 10_000) for of_condition in zip(*found, strict=True)])
    removed, without_effect = combined >= 0.01, np.arange(400) >= 200
    assert (removed & without_effect).sum() / removed.sum() > 0.95
    assert (removed & without_effect).sum() / without_effect.sum() > 0.95


def test_one_experiment_of_no_likeness_at_all_does_not_silence_the_others():
    strong = 1 / 10_001
    assert cauchy_combination([strong, strong, 1.0]) > 0.5
    assert combined_p_value([strong, strong, 1.0], 10_000) < 0.001
    assert combined_p_value([1.0, 1.0], 10_000) > 0.999


@pytest.fixture
def plates():
    """Profiles of three plates of 20 wells, the first 8 of each controls; plates lie apart."""
    rng = np.random.default_rng(0)
    plate = np.repeat(np.arange(3), 20)
    is_control = np.tile(np.arange(20) < 8, 3)
    return rng.standard_normal((60, 5)) @ np.diag([1, 1, 1, 9, 0.1]) + 5 * plate[:, None], plate, is_control


@pytest.mark.parametrize("sphere", [False, True])
def test_a_shift_of_a_whole_plate_or_another_unit_of_a_feature_changes_nothing(plates, sphere):
    profiles, plate, is_control = plates
    aligned, without = align_to_controls(profiles, plate, is_control, sphere=sphere)
    shifted = profiles + np.array([3.0, -7.0, 100.0])[plate][:, None]
    again, _ = align_to_controls(shifted * np.array([1, 10, 0.1, 3, 7]), plate, is_control, sphere=sphere)
    # Principal directions have no sign: compare what is between wells.
    np.testing.assert_allclose(again @ again.T, aligned @ aligned.T, atol=1e-8)
    assert without == []


@pytest.mark.parametrize("sphere", [False, True])
def test_the_controls_of_each_plate_are_the_origin(plates, sphere):
    profiles, plate, is_control = plates
    aligned, _ = align_to_controls(profiles, plate, is_control, sphere=sphere)
    for number in range(3):
        np.testing.assert_allclose(aligned[is_control & (plate == number)].mean(axis=0), 0, atol=1e-9)


def test_sphering_makes_directions_in_which_controls_vary_count_less():
    rng = np.random.default_rng(0)
    is_control = np.arange(300) < 200
    profiles = rng.standard_normal((300, 4)) + np.outer(3 * is_control * rng.standard_normal(300), np.ones(4))

    def largest_over_smallest(sphere: bool) -> float:
        aligned, _ = align_to_controls(profiles, np.zeros(300, int), is_control, sphere=sphere)
        variances = np.linalg.eigvalsh(np.cov(aligned[is_control].T))
        return variances[-1] / variances[0]

    assert largest_over_smallest(False) > 20
    assert largest_over_smallest(True) < largest_over_smallest(False) / 4


def test_plates_without_a_control_are_named_and_centred_on_all_their_wells(plates):
    profiles, plate, is_control = plates
    aligned, without = align_to_controls(profiles, plate, is_control & (plate != 1), sphere=False)
    assert without == [1]
    np.testing.assert_allclose(aligned[plate == 1].mean(axis=0), 0, atol=1e-9)
