"""Profile benchmark of regression from embeddings to measured features, such as CellProfiler's.

Shapes: W wells, F features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cytolake.benchmark.feature_regression import FeatureRegressionConfig, feature_regression
from cytolake.benchmark.profiles.profile_input import BenchmarkInput, ScoreRow, by_class, score_row

BENCHMARK = "feature_regression"


def feature_regression_of_families(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Median R2 of each family of features on held-out plates, and on held-out batches where there are two."""
    table, wells = data.features, data.wells
    if table is None:
        raise ValueError("no table of features: set benchmark.profiles.features, or give --features.")
    rows = np.flatnonzero(table.has_row)
    complete = np.flatnonzero(np.isfinite(table.values[rows]).all(axis=0))
    if not len(complete):
        raise ValueError(
            f"{table.source}: each of {len(table.names)} features lacks a number in some of {len(rows)} wells. "
            "Expected features without missing values: leave out the wells that lack most."
        )
    plates = [wells.plate[i] for i in rows]
    names = [table.names[i] for i in complete.tolist()]
    batches = [wells.batch[i] for i in rows]
    splits: dict[str, list[str] | None] = {"plate": None}
    if 1 < len(set(batches)) < len(set(plates)):
        splits["batch"] = batches
    for split, held_out in splits.items():
        found = feature_regression(
            data.vectors[rows],
            table.values[np.ix_(rows, complete)],
            names,
            plates,
            held_out=held_out,
            config=FeatureRegressionConfig(seed=data.config.seed),
        )
        for family in found.families:
            details: dict[str, Any] = {
                "n_features": family.n_features,
                "of_compartment": by_class(family.of_compartment),
                f"of_{split}": by_class(family.of_plate),
                "n_matched_wells": len(rows),
                "n_wells_without_features": len(wells.well_id) - len(rows),
                "n_rows_of_other_wells": table.n_unmatched,
                "n_incomplete_features": len(table.names) - len(complete),
                "n_constant_features": found.n_constant,
            }
            yield score_row(
                BENCHMARK, family.family, "median_r2", family.median_r2.value, family.median_r2, split=split,
                n_test=len(rows), **details,
            )  # fmt: skip
