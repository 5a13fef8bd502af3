"""Profile benchmarks of the signal of perturbations: agreement of replicates, and distance from the controls.

Shapes: W wells, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.perturbation_signal import percent_replicating as replicating
from cytolake.benchmark.perturbation_signal.consistency_magnitude import Signal, SignalConfig, consistency, magnitude
from cytolake.benchmark.perturbation_signal.grit import grit
from cytolake.benchmark.perturbation_signal.replicate_consistency import replicate_consistency
from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.profile_input import BenchmarkInput, Floats, ScoreRow, by_class, finite, score_row


def consistency_of_perturbations(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Shares of perturbations with significant consistency."""
    found = _signal(consistency, data, data.vectors, data.wells.is_control)
    yield from _signal_scores("perturbation_consistency", found)


def magnitude_of_perturbations(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Shares of perturbations with significant magnitude."""
    if data.config.null_perturbations:  # they differ from the controls of the alignment as much as any well
        found = _signal(magnitude, data, data.vectors, data.wells.is_control)
        yield from _signal_scores("perturbation_magnitude", found)
        return
    compared = data.compared.checked()
    found = _signal(magnitude, data, compared.vectors, compared.is_control)
    yield from _signal_scores("perturbation_magnitude", found, controls=compared.description)


def replicates_across_experiments(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Distances between cosines of replicates and of different perturbations, across experiments."""
    wells = data.wells
    rows = [i for i in wells.treated if wells.perturbation[i]]
    experiments = wells.experiments(rows)
    across = "batch" if experiments is wells.batch else "plate"
    keys, profiles = aggregated(
        data.vectors[rows], [(wells.perturbation[i], experiments[i]) for i in rows], data.config.gene_aggregation
    )
    found = replicate_consistency(
        profiles,
        [perturbation for perturbation, _ in keys],
        [experiment for _, experiment in keys],
        bootstrap_draws=data.config.draws,
        seed=data.config.seed,
    )
    for metric, interval in (
        ("kolmogorov_smirnov", found.kolmogorov_smirnov),
        ("cramer_von_mises", found.cramer_von_mises),
        ("cramer_von_mises_per_pair", found.cramer_von_mises_per_pair),
    ):
        yield score_row(
            "replicate_consistency", "perturbation", metric, interval.value, interval, split=across,
            n_test=found.n_pairs, n_classes=found.n_perturbations, aggregation=data.config.gene_aggregation,
        )  # fmt: skip


def percent_replicating(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Share of perturbations that replicate, against wells of the whole screen and against those of the same plates."""
    wells = data.wells
    rows = [i for i in wells.treated if wells.perturbation[i]]
    plates = [wells.plate[i] for i in rows]
    for metric, of_null in (("share_replicating", None), ("share_replicating_within_plates", plates)):
        found = replicating.percent_replicating(
            data.vectors[rows],
            [wells.perturbation[i] for i in rows],
            plates=of_null,
            n_draws=data.config.draws,
            seed=data.config.seed,
        )
        tested = [row for row in found.table.to_pylist() if not row["reason"]]
        details: dict[str, Any] = {
            name: by_class({row["perturbation"]: row[column] for row in tested})
            for name, column in (
                ("median_correlation", "median_correlation"), ("p_values", "p_value"), ("q_values", "q_value"),
            )
        }  # fmt: skip
        yield score_row(
            "percent_replicating", "perturbation", metric, found.share.value, found.share, n_test=found.share.total,
            chance=0.05, not_tested=found.table.num_rows - len(tested), **details,
        )  # fmt: skip


def grit_of_replicates(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Mean grit of the perturbations."""
    wells, compared = data.wells, data.compared.checked()  # an alignment makes its own controls similar
    is_named = np.asarray([bool(name) for name in wells.perturbation])
    rows = np.flatnonzero(compared.is_control | (is_named & ~wells.is_control))
    found = grit(
        compared.vectors[rows],
        [wells.perturbation[i] for i in rows],
        [wells.plate[i] for i in rows],
        compared.is_control[rows],
        bootstrap_draws=data.config.draws,
        seed=data.config.seed,
    )
    of_perturbation = {row["perturbation"]: row["grit"] for row in found.table.to_pylist() if not row["reason"]}
    yield score_row(
        "grit", "perturbation", "mean_grit", found.mean.value, found.mean, n_test=len(of_perturbation),
        permuted=finite(found.permuted), n_controls=found.n_controls, grit=by_class(of_perturbation),
    )  # fmt: skip


def _signal(
    measure: Callable[..., Signal], data: BenchmarkInput, vectors: Floats, is_control: NDArray[np.bool_]
) -> Signal:
    wells, config = data.wells, data.config
    of_null = set(config.null_perturbations)
    missing = sorted(of_null - {*wells.perturbation, *wells.gene})
    if missing:
        raise ValueError(
            f"null_perturbations: {len(missing)} of {len(of_null)} are no perturbation or gene of the screen "
            f"({', '.join(missing[:5])}). Correct profiles.null_perturbations."
        )
    rows = [i for i in range(len(vectors)) if is_control[i] or (wells.perturbation[i] and not wells.is_control[i])]
    found = measure(
        vectors[rows],
        [wells.perturbation[i] for i in rows],
        [wells.plate[i] for i in rows],
        is_control[rows],
        SignalConfig(n_draws=config.draws - 1, seed=config.seed),
        null_perturbations={
            wells.perturbation[i]
            for i in wells.treated
            if wells.perturbation[i] and of_null & {wells.perturbation[i], wells.gene[i]}
        },
    )
    if not found.n_defined:
        why = sorted({str(row["reason"]) for row in found.table.to_pylist() if row["reason"]})
        raise ValueError(f"no perturbation has a p-value ({'; '.join(why[:2])}).")
    return found


def _signal_scores(name: str, found: Signal, **details: Any) -> Iterator[ScoreRow]:
    """Shares of perturbations with p, and with q, up to alpha."""
    tested = [row for row in found.table.to_pylist() if row["p_value"] is not None and not row["is_null"]]
    n_null = sum(found.table["is_null"].to_pylist())
    details |= {"null": f"{n_null} null perturbations"} if n_null else {}
    for metric, share in (("share_significant", found.significant), ("share_discovered", found.discovered)):
        yield score_row(
            name, "perturbation", metric, share.value, share, n_test=share.total,
            values=by_class({row["perturbation"]: row["value"] for row in tested}),
            p_values=by_class({row["perturbation"]: row["p_value"] for row in tested}),
            q_values=by_class({row["perturbation"]: row["q_value"] for row in tested}),
            not_tested=found.table.num_rows - n_null - len(tested), **details,
        )  # fmt: skip
