"""What a benchmark of profiles is given, and the rows of scores that it gives.

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
from cytolake.statistics.intervals import Interval
from cytolake.statistics.shares import Share

Floats = NDArray[np.float64]
Score = dict[str, Any]
"""Columns of the `scores` table that depend on the benchmark; `details` is a dict."""
MAX_CLASSES_KEPT = 200
"""Most classes whose own scores are kept in a row's details."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What one representation is asked under one alignment."""

    vectors: Floats
    """(W, D) aligned profiles."""
    wells: Wells
    relations: Sequence[Relations]
    aliases: dict[str, str]
    """Names of genes to replace."""
    gene_sets: GeneSets
    config: ProfileBenchmarkConfig
    alignment: str
    compared: ComparedControls
    """The same profiles, aligned on half of the controls: where treated wells are compared with controls."""
    pixel_statistics: Floats | None = None
    """(W, S) of the same wells, not aligned."""
    features: FeatureTable | None = None
    """Of the same wells, as `config.features` has them."""


def score(
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
) -> Score:
    """One row of scores, without what is the same for all of a representation's."""
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


def gene_profiles(asked: Asked) -> tuple[list[str], Floats]:
    """Genes sorted by name, and (G, D) profiles: wells to guides and guides to genes, by `config.gene_aggregation`.

    Wells with a compound do not count: their gene is the compound's target, which nobody knocked out.
    """
    wells, how = asked.wells, asked.config.gene_aggregation
    genes = rename(knocked_out(wells), asked.aliases)
    knockouts = [i for i, gene in enumerate(genes) if gene]
    of_guide = [(genes[i], wells.guide[i]) for i in knockouts]
    guides, guides_ND = aggregated(asked.vectors[knockouts], of_guide, how)
    order = sorted(range(len(guides)), key=guides.__getitem__)
    return aggregated(guides_ND[order], [guides[i][0] for i in order], how)


def finite(value: float) -> float | None:
    """The number, or None where it is none."""
    return float(value) if math.isfinite(value) else None


def kept(of_class: dict[str, Any]) -> dict[str, float]:
    """The scores of single classes, rounded; of many, the highest and lowest."""
    ranked = sorted(of_class.items(), key=lambda item: -item[1])
    if len(ranked) > MAX_CLASSES_KEPT:
        ranked = ranked[: MAX_CLASSES_KEPT // 2] + ranked[-MAX_CLASSES_KEPT // 2 :]
    return {name: round(float(value), 4) for name, value in ranked}
