"""Intervals over plates of benchmarks that are no mean over plates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cytolake.benchmark.position_confounding import WellPlace
from cytolake.benchmark.profiles.compared_controls import ComparedControls
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.gene_sets import GeneSets
from cytolake.benchmark.profiles.plate_jackknife import MAX_SUBSETS, with_plate_intervals
from cytolake.benchmark.profiles.profile_input import BenchmarkInput, ScoreRow, score_row
from cytolake.benchmark.profiles.wells import Wells


def make_input(value_of_plate: np.ndarray, wells_each: int = 3) -> BenchmarkInput:
    """Wells whose only feature is a number of their plate."""
    plates = tuple(f"P{p}" for p in range(len(value_of_plate)) for _ in range(wells_each))
    n = len(plates)
    vectors = np.repeat(value_of_plate, wells_each)[:, None].astype(float)
    texts = ("",) * n
    wells = Wells(
        well_id=tuple(f"w{i}" for i in range(n)), plate=plates, batch=plates, perturbation=("p",) * n, gene=texts,
        guide=texts, compound=texts, pathway=texts, dose=np.full(n, np.nan), is_control=np.zeros(n, bool),
        place=tuple(WellPlace(plate, None, None, plate) for plate in plates),
    )  # fmt: skip
    compared = ComparedControls(vectors, wells.is_control, False)
    return BenchmarkInput(vectors, wells, [], {}, GeneSets(), ProfileBenchmarkConfig(draws=99), "none", compared)


def mean_of_wells(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """A benchmark that is a mean over plates, of which the right interval is known."""
    assert len(data.wells.plate) == len(data.vectors) == len(data.compared.is_control)
    yield score_row("relation_recall", "s", "recall_05_95", float(data.vectors.mean()), None)
    yield score_row("relation_recall", "s", "another", 0.5, None)


@pytest.mark.parametrize("n_plates", [3, 4, 5])
def test_of_a_mean_over_plates_it_is_students_interval(n_plates):
    values = np.random.default_rng(n_plates).uniform(0.4, 0.6, n_plates)
    found, other = with_plate_intervals("relations", mean_of_wells, make_input(values))
    low, high = stats.t.interval(0.95, n_plates - 1, values.mean(), stats.sem(values))
    assert found["ci_low"] == pytest.approx(max(low, 0))
    assert found["ci_high"] == pytest.approx(min(high, 1))
    assert found["details"]["interval_over"] == f"{n_plates} plates"
    assert other["ci_low"] is None


def test_of_many_plates_a_sample_of_subsets_is_about_as_wide():
    values = np.random.default_rng(1).uniform(0.3, 0.7, 40)
    calls = []

    def counted(data: BenchmarkInput) -> Iterator[ScoreRow]:
        calls.append(len(data.vectors))
        return mean_of_wells(data)

    (found, _) = with_plate_intervals("relations", counted, make_input(values))
    assert len(calls) == 1 + MAX_SUBSETS
    width = stats.t.ppf(0.975, 15) * stats.sem(values)
    assert (found["ci_high"] - found["ci_low"]) / 2 == pytest.approx(width, rel=0.6)  # the spread of 12 values: 20 %
    assert found["details"]["interval_over"] == "16 groups of plates"


def test_two_plates_keep_the_interval_of_the_benchmark_and_say_why():
    (found, _) = with_plate_intervals("relations", mean_of_wells, make_input(np.array([0.4, 0.5])))
    assert found["details"]["no_plate_interval"] == "2 plates, expected 3 or more"
    assert found["ci_low"] is None


def test_a_benchmark_that_needs_all_plates_says_which_it_misses():
    def needs_all(data: BenchmarkInput) -> Iterator[ScoreRow]:
        if len(set(data.wells.plate)) < 4:
            raise ValueError("no perturbation on 2 plates")
        return mean_of_wells(data)

    (found, _) = with_plate_intervals("relations", needs_all, make_input(np.linspace(0.4, 0.6, 4)))
    assert found["details"]["no_plate_interval"] == "without P0: no perturbation on 2 plates"


def test_other_tasks_are_left_as_they_are():
    data = make_input(np.linspace(0.4, 0.6, 4))
    (found, _) = with_plate_intervals("leakage", mean_of_wells, replace(data))
    assert found["details"] == {}
