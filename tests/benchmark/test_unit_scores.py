"""Intervals over plates and choices made on other plates, in simulations with known answers."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from cytolake.benchmark.unit_scores import (
    MIN_UNITS,
    Candidate,
    UnitScores,
    chosen_elsewhere,
    chosen_score,
    gain,
    half_width,
    p_value,
)


def scores_of(values: np.ndarray, n_train: float = np.inf, n_test: int = 100) -> UnitScores:
    names = tuple(f"P{i}" for i in range(len(values)))
    return UnitScores("plate", names, np.asarray(values, float), n_train, n_test)


def candidate(values: np.ndarray, n_train: float = np.inf) -> Candidate:
    """Scores on other units are what they are on these: nothing was fitted."""
    n = len(values)
    return Candidate(scores_of(values, n_train), np.where(np.eye(n, dtype=bool), np.nan, np.asarray(values, float)))


def test_without_a_fit_the_interval_is_students_over_units():
    values = np.array([0.4, 0.5, 0.7, 0.6])
    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    found = scores_of(values).interval()
    np.testing.assert_allclose((found.value, found.low, found.high), (values.mean(), *expected))


def test_a_fit_on_shared_units_widens_it_and_two_units_have_none():
    values = np.array([0.4, 0.5, 0.7, 0.6])
    assert half_width(values, 3) == pytest.approx(half_width(values, np.inf) * np.sqrt(1 + 2 / 3))
    two = scores_of(values[:2]).interval()
    assert two.value == pytest.approx(0.45)
    assert np.isnan(two.low)
    assert np.isnan(two.high)


def test_units_that_are_all_right_have_the_interval_of_their_wells_not_one_of_no_width():
    found = scores_of(np.ones(4), n_test=40).interval()
    assert found.high == 1
    assert 0.85 < found.low < 0.95  # Wilson, 40 of 40: 0.912


def test_units_that_all_differ_alike_have_a_gain_of_some_width():
    """A tenth on each of three plates of few wells: an interval of no width would have promoted it."""

    def of(value: float, n_test: int) -> list[Candidate]:
        return [Candidate(scores_of(np.full(3, value), 2, n_test), np.full((3, 3), value))]

    few, many = (gain(of(0.6, n), of(0.5, n)) for n in (30, 3000))
    assert few.low < 0 < few.value < few.high
    assert 0 < many.low < 0.1 < many.high
    assert 0 < p_value(many, 2) < p_value(few, 2)


def test_the_best_of_equal_candidates_gains_nothing_on_other_plates():
    """Eight blocks equal to one baseline: read off the plates that chose it, the best is .076 of the sd better."""
    random = np.random.default_rng(0)
    naive, honest = [], []
    for _ in range(200):
        plate = 0.05 * random.normal(size=4)
        blocks = [candidate(0.5 + plate + 0.05 * random.normal(size=4)) for _ in range(8)]
        baseline = [candidate(0.5 + plate + 0.05 * random.normal(size=4))]
        naive.append(max(each.scores.value for each in blocks) - baseline[0].scores.value)
        honest.append(gain(blocks, baseline).value)
    error = np.std(honest) / np.sqrt(len(honest))
    assert np.mean(naive) > 6 * error
    assert abs(np.mean(honest)) < 3 * error


def test_a_gain_of_nothing_excludes_0_about_as_often_as_it_may_and_a_real_one_is_found():
    random = np.random.default_rng(1)

    def share(effect: float) -> float:
        excluded = 0
        for _ in range(100):
            shared = 0.05 * random.normal(size=(2, 8))
            sides = [
                [candidate(0.5 + side * effect + shared[side] + 0.02 * random.normal(size=8)) for _ in range(6)]
                for side in (0, 1)
            ]
            found = gain(sides[1], sides[0])
            excluded += not found.low <= 0 <= found.high
        return excluded / 100

    assert share(0.0) <= 0.11  # 0.05, and 3 standard errors of 100 simulations
    assert share(0.15) > 0.9


def test_a_candidate_that_is_clearly_best_everywhere_is_chosen_everywhere():
    random = np.random.default_rng(2)
    noise = 0.001 * random.normal(size=(3, 6))
    candidates = [candidate(level + noise[i]) for i, level in enumerate((0.3, 0.8, 0.5))]
    np.testing.assert_allclose(chosen_elsewhere(candidates).score, candidates[1].scores.score, atol=1e-6)


def test_a_unit_has_no_say_in_its_own_choice():
    """The first candidate is best on unit 0 alone, so unit 0 gets the other one."""
    lucky, steady = np.array([1.0, 0.2, 0.2, 0.2]), np.array([0.5, 0.5, 0.51, 0.49])
    found = chosen_elsewhere([candidate(lucky), candidate(steady)])
    assert found.score[0] < 0.75
    assert chosen_score([candidate(lucky), candidate(steady)]).value < 0.75


def test_a_single_candidate_has_its_own_interval():
    values = np.array([0.4, 0.5, 0.7, 0.6])
    one, alone = chosen_score([candidate(values, 3.0)]), scores_of(values, 3.0).interval()
    assert (one.value, one.low, one.high) == (alone.value, alone.low, alone.high)


def test_candidates_of_two_units_are_chosen_and_have_no_interval():
    found = gain([candidate(np.array([0.5, 0.6])), candidate(np.array([0.7, 0.8]))], [candidate(np.array([0.1, 0.2]))])
    assert found.value == pytest.approx(0.6)
    assert np.isnan(found.low)
    assert np.isnan(p_value(found, 1.0))


def test_different_units_are_not_compared():
    with pytest.raises(ValueError, match=r"4 and of 3 units \(plate\) cannot be compared"):
        gain([candidate(np.ones(4))], [candidate(np.ones(3))])


def test_the_p_value_is_that_of_the_interval():
    values = np.array([0.11, 0.02, 0.2, 0.15, 0.07])
    found = gain([candidate(0.4 + values)], [candidate(np.full(5, 0.4))])
    assert p_value(found, np.inf) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_details_of_a_row_give_the_candidate_back():
    details = json.dumps(
        {
            "unit": "plate", "units": ["A", "B", "C"], "unit_scores": [0.1, 0.2, 0.3], "fold_of_unit": [0, 1, 2],
            "inner": [[None, 0.5, 0.6], [0.4, None, 0.7], [0.3, 0.2, None]], "n_train_units": 2.0, "n_test_wells": 9,
        }
    )  # fmt: skip
    found = Candidate.of_details(json.loads(details))
    assert found is not None
    assert found.scores.interval().value == pytest.approx(0.2)
    np.testing.assert_array_equal(np.isnan(found.inner), np.eye(3, dtype=bool))
    assert found.inner[1, 2] == 0.7
    assert Candidate.of_details({"recall": {}}) is None


def coverage(simulate: Callable[[np.random.Generator], np.ndarray], truth: float, n: int = 300) -> float:
    random = np.random.default_rng(3)
    intervals = [scores_of(simulate(random)).interval() for _ in range(n)]
    return float(np.mean([each.low <= truth <= each.high for each in intervals]))


@pytest.mark.parametrize("n_plates", [MIN_UNITS, 4, 16])
def test_plates_that_differ_are_what_the_interval_is_over(n_plates):
    """Wells of one plate share its effect: an interval over 24 wells of each would hold the truth in 60 % or fewer."""

    def simulate(random: np.random.Generator) -> np.ndarray:
        p = np.clip(0.6 + 0.1 * random.normal(size=n_plates), 0, 1)
        return random.binomial(24, p) / 24

    assert 0.91 <= coverage(simulate, 0.6) <= 0.99  # 0.95, and 3 standard errors of 300 simulations
