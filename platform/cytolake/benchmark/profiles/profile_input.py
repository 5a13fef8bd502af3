"""Input and output of the profile benchmarks.

Shapes: W wells, D features, S pixel statistics, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.compared_controls import ComparedControls
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.feature_table import FeatureTable
from cytolake.benchmark.profiles.gene_sets import GeneSets, knocked_out
from cytolake.benchmark.profiles.wells import Wells
from cytolake.benchmark.relations.relation_files import Relations, rename
from cytolake.statistics.intervals import Interval, Share

Floats = NDArray[np.float64]
ScoreRow = dict[str, Any]
"""Columns of the `scores` table that depend on the benchmark; `details` is a dict."""
MAX_CLASSES_STORED = 200
"""Most classes with their own scores in a row's details."""


@dataclass(frozen=True, slots=True)
class BenchmarkInput:
    """One representation under one alignment, with everything that a profile benchmark reads."""

    vectors: Floats
    """(W, D) aligned profiles."""
    wells: Wells
    relations: Sequence[Relations]
    aliases: dict[str, str]
    """Gene names to replace, and their symbols."""
    gene_sets: GeneSets
    config: ProfileBenchmarkConfig
    alignment: str
    compared: ComparedControls
    """The same profiles, aligned on half of the controls, for comparisons of treated wells with controls."""
    pixel_statistics: Floats | None = None
    """(W, S) pixel statistics of the same wells, not aligned."""
    features: FeatureTable | None = None
    """Measured features of the same wells, from `config.features`."""


def score_row(
    benchmark: str,
    label: str,
    metric: str,
    value: float,
    interval: Interval | Share | None,
    *,
    split: str = "",
    n_test: int | None = None,
    n_classes: int | None = None,
    **details: Any,
) -> ScoreRow:
    """One row of scores, without the columns that all rows of a representation share."""
    low, high = (None, None) if interval is None else (finite(interval.low), finite(interval.high))
    return {
        "benchmark": benchmark,
        "label": label,
        "metric": metric,
        "split": split,
        "value": finite(value),
        "ci_low": low,
        "ci_high": high,
        "n_test": n_test,
        "n_classes": n_classes,
        "details": details,
    }


def gene_profiles(data: BenchmarkInput) -> tuple[list[str], Floats]:
    """Genes sorted by name, and (G, D) profiles: wells to guides and guides to genes, by `config.gene_aggregation`.

    Wells with a compound do not count: their gene is the compound's target, which was not knocked out.
    """
    wells, how = data.wells, data.config.gene_aggregation
    genes = rename(knocked_out(wells), data.aliases)
    knockouts = [i for i, gene in enumerate(genes) if gene]
    of_guide = [(genes[i], wells.guide[i]) for i in knockouts]
    guides, guides_ND = aggregated(data.vectors[knockouts], of_guide, how)
    order = sorted(range(len(guides)), key=guides.__getitem__)
    return aggregated(guides_ND[order], [guides[i][0] for i in order], how)


def finite(value: float) -> float | None:
    """The number, or None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def by_class(scores: dict[str, Any]) -> dict[str, float]:
    """Rounded scores of single classes for the details of a row; of many classes, the highest and the lowest."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    if len(ranked) > MAX_CLASSES_STORED:
        ranked = ranked[: MAX_CLASSES_STORED // 2] + ranked[-MAX_CLASSES_STORED // 2 :]
    return {name: round(float(value), 4) for name, value in ranked}
