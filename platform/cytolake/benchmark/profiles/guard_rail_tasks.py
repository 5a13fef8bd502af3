"""Profile benchmarks that check a representation: batch leakage, false positives, dose response.

Shapes: W wells, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cytolake.benchmark.guard_rails import batch_leakage, dose_response, false_positives_of_wells
from cytolake.benchmark.profiles.profile_input import BenchmarkInput, ScoreRow, by_class, finite, score_row


def leakage_of_plates(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Balanced accuracy of a probe that predicts the plate of control wells."""
    wells, compared = data.wells, data.compared.checked()
    found = batch_leakage(compared.vectors, wells.plate, is_control=compared.is_control)
    yield score_row(
        "batch_leakage", "plate", "balanced_accuracy", found.balanced_accuracy.value, found.balanced_accuracy,
        split="well", n_test=found.n_wells, n_classes=found.n_batches, chance=found.chance,
        p_value=found.p_value, controls=compared.description,
    )  # fmt: skip


def false_positives(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Share of control wells that differ from the controls of other plates."""
    wells = data.wells
    found = false_positives_of_wells(data.vectors, wells.plate, wells.is_control)
    yield score_row(
        "false_positives", "control", "rate", found.rate.value, found.rate, split="plate", n_test=found.rate.total,
        alpha=found.alpha, discovered=found.discovered.hits,
    )  # fmt: skip


def dose(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Share of compounds whose distance from the controls increases with dose."""
    wells = data.wells
    has_dose = np.asarray([bool(each) for each in wells.compound]) & np.isfinite(wells.dose)
    rows = np.flatnonzero(wells.is_control | has_dose)
    found = dose_response(
        data.vectors[rows],
        [wells.compound[i] for i in rows],
        np.nan_to_num(wells.dose[rows]).tolist(),
        [wells.plate[i] for i in rows],
        wells.is_control[rows],
        n_draws=data.config.draws - 1,
        seed=data.config.seed,
    )
    if not found.increasing.total:
        why = sorted({str(row["reason"]) for row in found.table.to_pylist()})
        raise ValueError(
            f"no compound can be tested ({'; '.join(why[:2]) or 'no treated well has a compound and a dose'})."
        )
    tested = [row for row in found.table.to_pylist() if row["p_value"] is not None]
    yield score_row(
        "dose_response", "dose", "share_increasing", found.increasing.value, found.increasing,
        n_test=found.increasing.total, median_spearman=finite(found.median_spearman), discovered=found.discovered.hits,
        spearman=by_class({row["compound"]: row["spearman"] for row in tested}),
        p_values=by_class({row["compound"]: row["p_value"] for row in tested}),
        q_values=by_class({row["compound"]: row["q_value"] for row in tested}),
    )  # fmt: skip
