"""Benchmarks of how well the replicates of a perturbation correlate: percent replicating, and grit.

Shapes: W wells, D features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from cytolake.benchmark.perturbation_signal import percent_replicating as replicating
from cytolake.benchmark.perturbation_signal.grit import grit
from cytolake.benchmark.profiles.asked import Asked, Score, finite, kept, score


def percent_replicating(asked: Asked) -> Iterator[Score]:
    """Share of perturbations that replicate, against wells of the whole screen and against those of the same plates."""
    wells = asked.wells
    rows = [i for i in wells.treated if wells.perturbation[i]]
    plates = [wells.plate[i] for i in rows]
    for metric, of_null in (("share_replicating", None), ("share_replicating_within_plates", plates)):
        found = replicating.percent_replicating(
            asked.vectors[rows],
            [wells.perturbation[i] for i in rows],
            plates=of_null,
            n_draws=asked.config.draws,
            seed=asked.config.seed,
        )
        tested = [row for row in found.table.to_pylist() if not row["reason"]]
        details: dict[str, Any] = {
            name: kept({row["perturbation"]: row[column] for row in tested})
            for name, column in (
                ("median_correlation", "median_correlation"), ("p_values", "p_value"), ("q_values", "q_value"),
            )
        }  # fmt: skip
        yield score(
            "percent_replicating", "perturbation", metric, found.share.value, found.share, n_test=found.share.total,
            chance=0.05, not_tested=found.table.num_rows - len(tested), **details,
        )  # fmt: skip


def grit_of_replicates(asked: Asked) -> Iterator[Score]:
    """Mean grit of the perturbations."""
    wells, compared = asked.wells, asked.compared.checked()  # controls of the alignment look alike for its sake
    is_named = np.asarray([bool(name) for name in wells.perturbation])
    rows = np.flatnonzero(compared.is_control | (is_named & ~wells.is_control))
    found = grit(
        compared.vectors[rows],
        [wells.perturbation[i] for i in rows],
        [wells.plate[i] for i in rows],
        compared.is_control[rows],
        bootstrap_draws=asked.config.draws,
        seed=asked.config.seed,
    )
    of_perturbation = {row["perturbation"]: row["grit"] for row in found.table.to_pylist() if not row["reason"]}
    yield score(
        "grit", "perturbation", "mean_grit", found.mean.value, found.mean, n_test=len(of_perturbation),
        permuted=finite(found.permuted), n_controls=found.n_controls, grit=kept(of_perturbation),
    )  # fmt: skip
