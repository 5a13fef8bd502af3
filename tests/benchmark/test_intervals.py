"""Balanced accuracy and its interval, against scikit-learn and against known small answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score

from cytolake.benchmark.intervals import WellCounts, balanced_accuracy, bootstrap_over_wells


@pytest.fixture
def answers():
    """12 wells of 3 classes with unequal crops; which of them are right."""
    random = np.random.default_rng(1)
    label_W = np.repeat([0, 1, 2], 4)
    well_N = np.repeat(np.arange(12), random.integers(1, 6, size=12))
    predicted_N = random.integers(0, 3, size=len(well_N))
    return label_W, well_N, predicted_N


def counts_of(label_W, well_N, predicted_N):
    right = predicted_N == label_W[well_N]
    return WellCounts(
        np.bincount(well_N, weights=right, minlength=len(label_W)),
        np.bincount(well_N, weights=np.ones(len(well_N)), minlength=len(label_W)),
    )


def test_it_is_the_balanced_accuracy_of_scikit_learn(answers):
    label_W, well_N, predicted_N = answers
    expected = balanced_accuracy_score(label_W[well_N], predicted_N)
    assert balanced_accuracy(counts_of(*answers), label_W) == pytest.approx(expected)


def test_a_draw_is_the_score_of_the_wells_that_were_drawn(answers):
    """With one well a class every resample is the data itself."""
    _, well_N, predicted_N = answers
    label_W = np.arange(12) % 3
    label_W[3:] = -1
    interval = bootstrap_over_wells([counts_of(label_W, well_N, predicted_N)], label_W, 50)
    np.testing.assert_allclose(interval.draws, interval.value)


def test_more_wells_narrow_the_interval(answers):
    label_W, well_N, predicted_N = answers
    few = bootstrap_over_wells([counts_of(*answers)], label_W, 400)
    times = 9
    many = bootstrap_over_wells(
        [
            counts_of(
                np.tile(label_W, times),
                np.concatenate([well_N + 12 * i for i in range(times)]),
                np.tile(predicted_N, times),
            )
        ],
        np.tile(label_W, times),
        400,
    )
    assert many.value == pytest.approx(few.value)
    assert few.low <= few.value <= few.high
    # Nine times the wells: a third of the width, by the square root law.
    assert (many.high - many.low) / (few.high - few.low) == pytest.approx(1 / 3, rel=0.35)


def test_more_crops_of_the_same_wells_do_not(answers):
    label_W = answers[0]
    counts = counts_of(*answers)
    tripled = WellCounts(3 * counts.correct, 3 * counts.total)
    few, many = (bootstrap_over_wells([each], label_W, 200) for each in (counts, tripled))
    np.testing.assert_allclose(few.draws, many.draws)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(3)
    label_W, crops, truth, covered = np.repeat([0, 1], 30), 5.0, 0.6, 0
    for _ in range(200):
        chance_W = random.beta(6, 4, size=60)  # wells differ: crops of one well are not independent; mean 0.6
        counts = WellCounts(random.binomial(5, chance_W).astype(float), np.full(60, crops))
        interval = bootstrap_over_wells([counts], label_W, 200)
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / 200 <= 1.0


def test_a_class_without_test_wells_does_not_count(answers):
    label_W = answers[0]
    counts = counts_of(*answers)
    only_two = WellCounts(np.where(label_W == 2, 0, counts.correct), np.where(label_W == 2, 0, counts.total))
    recalls = [counts.correct[label_W == k].sum() / counts.total[label_W == k].sum() for k in (0, 1)]
    assert balanced_accuracy(only_two, label_W) == pytest.approx(np.mean(recalls))


def test_a_resample_without_any_test_well_has_no_interval_and_is_no_warning():
    label_W = np.repeat([0, 1], 20)
    total = np.zeros((20, 40))
    for well in range(20):  # one test well a class: among twenty, some are not in the one resample
        total[well, [well, 20 + well]] = 1
    intervals = [bootstrap_over_wells([WellCounts(one, one)], label_W, 1) for one in total]
    assert {interval.value for interval in intervals} == {1.0}
    assert any(np.isnan(interval.low) for interval in intervals)
    assert any(interval.low == 1.0 for interval in intervals)
