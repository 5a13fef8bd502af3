"""Sentences and tables of a block choice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cytolake.benchmark.linear_probe import WELL_METRIC
from cytolake.reports.choice_text import how_measured, measures, why_no_interval
from cytolake.reports.report_figures import block_search_text
from cytolake.tracking import Baseline
from cytolake.tune.block_search import BlockChoice


@pytest.fixture
def choice() -> BlockChoice:
    baselines = tuple(
        Baseline(kind=kind, representation_id=kind, block=-1, pooling="mean", score=score, ci_low=0.4, ci_high=0.7)
        for kind, score in (("untrained", 0.5), ("pixel_statistics", 0.6))
    )
    return BlockChoice(
        representation_id="r", model_id="m", block=1, pooling="mean", benchmark="linear_probe", label="perturbation",
        split="plate", metric=WELL_METRIC, n_classes=10, score=0.8, ci_low=0.7,
        ci_high=0.9, baselines=baselines, gain=0.2, gain_low=0.1, gain_high=0.3, unit="plate", units=("A", "B", "C"),
    )  # fmt: skip


def by_batch(choice: BlockChoice) -> BlockChoice:
    return replace(
        choice, split="batch", unit="batch", units=("1", "2"), ci_low=None, ci_high=None, gain_low=None, gain_high=None
    )


def test_a_gain_names_the_baseline_that_it_is_over(choice):
    header, row = measures([choice])
    assert (header[-1], row[-1]) == ("gain over the best baseline", "+0.200 [0.100, 0.300] (pixel statistics)")


def test_a_score_without_an_interval_says_why(choice):
    assert why_no_interval([choice]) == ""
    said = why_no_interval([choice, by_batch(choice)])
    assert said == "Wells, by batch: 2 batches are too few for an interval (at least 3), so no gain is shown there."
    assert "Fewer than 3 batches give no interval" in how_measured(by_batch(choice))


@pytest.mark.parametrize(("unit", "others"), [("plate", "other plates"), ("batch", "other batches"), ("well", "sets")])
def test_the_text_of_the_block_search_names_what_was_held_out(choice, unit, others):
    text = block_search_text(replace(choice, unit=unit, split=unit))
    assert others in text
    assert "not read from this figure" in text
