"""The gap and the best value against their nulls: simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.tune.no_free_lunch import best_value, gap_against_chance, no_free_lunch_gap

X = np.linspace(0, 1, 5)[:, None, None]
SIGN = np.where(np.arange(14) % 2, 1.0, -1.0)


def recall(random, response=0.0, noise_sd=0.02, seed_sd=0.06, n_classes=14):
    """(5, 3, K) of seeds that each shift each class, and of classes that respond as given."""
    shift = seed_sd * random.normal(size=(1, 3, n_classes))
    return 0.4 + response + shift + noise_sd * random.normal(size=(5, 3, n_classes))


def test_the_gap_is_never_below_0_and_0_where_one_value_is_best_for_all():
    random = np.random.default_rng(4)
    for _ in range(100):
        assert no_free_lunch_gap(random.random((5, 7))) >= 0
    assert no_free_lunch_gap(np.linspace(0, 1, 5)[:, None] * np.ones((1, 3))) == pytest.approx(0)


def test_without_any_effect_the_gap_is_what_chance_gives():
    """Crops of 14 classes predicted at random: the gap itself is .031 on average and never near 0."""
    random = np.random.default_rng(0)
    found = [gap_against_chance(random.binomial(60, 0.4, (5, 3, 14)) / 60, 499, seed=i) for i in range(60)]
    assert np.mean([each.value for each in found]) == pytest.approx(0.031, abs=0.003)
    assert min(each.value for each in found) > 0.01
    assert np.mean([each.excess for each in found]) == pytest.approx(0, abs=0.003)
    assert np.mean([each.gain for each in found]) == pytest.approx(0, abs=0.005)
    assert np.mean([each.is_evident for each in found]) < 0.1
    assert "no evidence" in min(found, key=lambda each: each.excess).verdict


@pytest.mark.parametrize("slope", [0.0, 0.06])
def test_p_values_are_those_of_chance_where_classes_share_one_response(slope):
    random = np.random.default_rng(1)
    found = [gap_against_chance(recall(random, slope * X), 199, seed=i) for i in range(200)]
    # 4 sd of a share of .05 in 200: .062
    assert np.mean([each.p_value < 0.05 for each in found]) < 0.11
    assert np.mean([each.excess for each in found]) == pytest.approx(0, abs=0.001)


def test_classes_that_differ_in_noise_alone_are_no_finding():
    """A gap below its null is common there: counted as a finding, 10 to 15 % of the p-values were below 0.05."""
    random = np.random.default_rng(8)
    noise = np.exp(random.normal(size=(200, 1, 1, 14))) * random.normal(size=(200, 5, 3, 14))
    found = [gap_against_chance(0.4 + 0.02 * each, 199, seed=i) for i, each in enumerate(noise)]
    assert np.mean([each.excess_high < 0 for each in found]) > 0.05
    assert np.mean([each.p_value < 0.05 for each in found]) < 0.07
    assert np.mean([each.is_evident for each in found]) < 0.05


def test_classes_that_respond_alike_but_to_different_degrees_do_not_need_different_values():
    random = np.random.default_rng(2)
    degrees = np.linspace(0, 0.3, 14)
    found = [gap_against_chance(recall(random, degrees * X), 199, seed=i) for i in range(60)]
    assert np.mean([each.is_evident for each in found]) < 0.1
    assert np.mean([each.gain for each in found]) < 0.002


def test_opposite_effects_are_evident_and_their_gain_is_that_of_the_truth():
    random = np.random.default_rng(3)
    found = [gap_against_chance(recall(random, 0.12 * SIGN * (X - 0.5)), 499, seed=i) for i in range(20)]
    assert all(each.is_evident and each.p_value < 0.05 for each in found)
    assert np.mean([each.gain for each in found]) == pytest.approx(0.06, abs=0.006)
    assert all(0 < each.excess < 0.065 for each in found)
    assert all(each.excess_low < each.excess < each.excess_high for each in found)
    assert found[0].verdict.startswith("classes need different strengths")


def test_one_seed_says_nothing_of_classes():
    found = gap_against_chance(np.random.default_rng(5).random((5, 1, 4)))
    assert np.isnan([found.p_value, found.by_chance, found.excess_low, found.gain]).all()
    assert not found.is_evident
    assert "two seeds or more" in found.verdict


def test_recalls_without_any_noise_have_the_gap_they_have():
    opposite = np.repeat(np.stack([np.linspace(0, 1, 5), np.linspace(1, 0, 5)], axis=1)[:, None], 3, axis=1)
    found = gap_against_chance(opposite, 499)
    assert (found.value, found.by_chance, found.excess) == pytest.approx((0.5, 0, 0.5))
    assert found.is_evident
    same = gap_against_chance(np.full((5, 3, 4), 0.5), 499)
    assert (same.value, same.excess, same.p_value) == (0, 0, 1)


def test_the_best_of_five_equal_values_gains_nothing_and_is_significant_as_often_as_chance_says():
    random = np.random.default_rng(6)
    found = [
        best_value(0.06 * random.normal(size=(1, 3)) + 0.02 * random.normal(size=(5, 3)), 199, seed=i)
        for i in range(300)
    ]
    assert 0.01 < np.mean([each.p_value < 0.05 for each in found]) < 0.1
    assert np.mean([each.gain for each in found]) == pytest.approx(0, abs=0.005)


def test_a_better_value_is_found_and_its_gain_is_that_of_the_truth():
    random = np.random.default_rng(7)
    truth = np.array([0, 0, 0.1, 0, 0])[:, None]
    found = [best_value(truth + 0.01 * random.normal(size=(5, 3)), 499, seed=i) for i in range(20)]
    assert {each.place for each in found} == {2}
    assert np.mean([each.gain for each in found]) == pytest.approx(0.1, abs=0.01)
    assert max(each.p_value for each in found) < 0.05
