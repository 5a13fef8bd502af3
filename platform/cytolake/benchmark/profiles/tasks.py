"""The benchmarks of well profiles: each a function of profiles and wells that gives scores, or says why it cannot.

Shapes: W wells, D features, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.guard_rails import batch_leakage, dose_response, false_positives_of_wells
from cytolake.benchmark.perturbation_signal.perturbations import Signal, SignalConfig, consistency, magnitude
from cytolake.benchmark.perturbation_signal.replicates import replicate_consistency
from cytolake.benchmark.profiles import retrieval_tasks
from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.asked import Asked, Floats, Score, finite, gene_profiles, kept, score
from cytolake.benchmark.profiles.compared_controls import ComparedControls
from cytolake.benchmark.profiles.config import Task
from cytolake.benchmark.profiles.embedding_tasks import embedding_task
from cytolake.benchmark.profiles.feature_tasks import feature_regression_of_families
from cytolake.benchmark.profiles.gene_tasks import cluster_separation, compound_gene
from cytolake.benchmark.profiles.replicate_tasks import grit_of_replicates, percent_replicating
from cytolake.benchmark.relations.recall import RecallConfig, RelationRecall, relationship_recall

GUARD_RAILS = ("batch_leakage", "false_positives")
"""Benchmarks where less is better; no representation is chosen by them."""
NUISANCES = ("plate", "batch", "row", "column")
"""Labels that a vector should not tell: a probe of them is a guard rail too."""
WITHOUT_MERIT = ("batch_mixing",)
"""Benchmarks that noise passes as well as biology does; no representation is chosen by them."""
ERRORS = ("mse", "mae")
"""Metrics of which less is better."""


def is_guard_rail(benchmark: str, label: str) -> bool:
    """Whether less is better."""
    return benchmark in GUARD_RAILS or (benchmark.startswith("linear_probe") and label in NUISANCES)


def _relation_recall(asked: Asked) -> Iterator[Score]:
    genes, profiles_GD = gene_profiles(asked)
    if len(genes) < asked.config.min_genes:
        raise ValueError(
            f"{len(genes)} genes with profiles, expected {asked.config.min_genes} or more for tails of pairs."
        )
    if not asked.relations:
        raise ValueError("no relations: set benchmark.profiles.relation_files, or give wells a pathway.")
    settings = RecallConfig(
        min_entities=asked.config.min_genes, bootstrap_draws=asked.config.draws, seed=asked.config.seed
    )
    for found in relationship_recall(profiles_GD, genes, asked.relations, settings):
        if not found.n_pairs:
            continue
        low, high = (round(100 * each) for each in found.thresholds)
        yield score(
            "relation_recall", found.source, f"recall_{low:02d}_{high:02d}", found.recall.value, found.recall,
            n_test=found.n_pairs, n_classes=found.n_genes, random=finite(found.random),
            random_p_value=finite(found.random_p_value), attainable=_attainable(found), n_low=found.n_low,
            n_high=found.n_high, aggregation=asked.config.gene_aggregation,
        )  # fmt: skip


def _consistency(asked: Asked) -> Iterator[Score]:
    found = _signal(consistency, asked, asked.vectors, asked.wells.is_control)
    yield from _signal_scores("perturbation_consistency", found)


def _magnitude(asked: Asked) -> Iterator[Score]:
    if asked.config.null_perturbations:  # their wells are as far from the controls of the alignment as any
        found = _signal(magnitude, asked, asked.vectors, asked.wells.is_control)
        yield from _signal_scores("perturbation_magnitude", found)
        return
    compared = asked.compared.checked()
    found = _signal(magnitude, asked, compared.vectors, compared.is_control)
    yield from _signal_scores("perturbation_magnitude", found, controls=_controls(compared))


def _signal(measure: Callable[..., Signal], asked: Asked, vectors: Floats, is_control: NDArray[np.bool_]) -> Signal:
    wells, config = asked.wells, asked.config
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


def _signal_scores(name: str, found: Signal, **details: Any) -> Iterator[Score]:
    """Shares of perturbations with p, and with q, up to alpha."""
    tested = [row for row in found.table.to_pylist() if row["p_value"] is not None and not row["is_null"]]
    n_null = sum(found.table["is_null"].to_pylist())
    details |= {"null": f"{n_null} null perturbations"} if n_null else {}
    for metric, share in (("share_significant", found.significant), ("share_discovered", found.discovered)):
        yield score(
            name, "perturbation", metric, share.value, share, n_test=share.total,
            values=kept({row["perturbation"]: row["value"] for row in tested}),
            p_values=kept({row["perturbation"]: row["p_value"] for row in tested}),
            q_values=kept({row["perturbation"]: row["q_value"] for row in tested}),
            not_tested=found.table.num_rows - n_null - len(tested), **details,
        )  # fmt: skip


def _controls(compared: ComparedControls) -> str:
    n = int(compared.is_control.sum())
    return f"{n} that the alignment was not fitted on" if compared.is_held_out else f"all {n}"


def _replicates(asked: Asked) -> Iterator[Score]:
    wells = asked.wells
    rows = [i for i in wells.treated if wells.perturbation[i]]
    experiments = wells.experiments(rows)
    across = "batch" if experiments is wells.batch else "plate"
    keys, profiles = aggregated(
        asked.vectors[rows], [(wells.perturbation[i], experiments[i]) for i in rows], asked.config.gene_aggregation
    )
    found = replicate_consistency(
        profiles,
        [perturbation for perturbation, _ in keys],
        [experiment for _, experiment in keys],
        bootstrap_draws=asked.config.draws,
        seed=asked.config.seed,
    )
    for metric, interval in (
        ("kolmogorov_smirnov", found.kolmogorov_smirnov),
        ("cramer_von_mises", found.cramer_von_mises),
        ("cramer_von_mises_per_pair", found.cramer_von_mises_per_pair),
    ):
        yield score(
            "replicate_consistency", "perturbation", metric, interval.value, interval, split=across,
            n_test=found.n_pairs, n_classes=found.n_perturbations, aggregation=asked.config.gene_aggregation,
        )  # fmt: skip


def _leakage(asked: Asked) -> Iterator[Score]:
    wells, compared = asked.wells, asked.compared.checked()
    found = batch_leakage(compared.vectors, wells.plate, is_control=compared.is_control)
    yield score(
        "batch_leakage", "plate", "balanced_accuracy", found.balanced_accuracy.value, found.balanced_accuracy,
        split="well", n_test=found.n_wells, n_classes=found.n_batches, chance=found.chance,
        p_value=found.p_value, controls=_controls(compared),
    )  # fmt: skip


def _false_positives(asked: Asked) -> Iterator[Score]:
    wells = asked.wells
    found = false_positives_of_wells(asked.vectors, wells.plate, wells.is_control)
    yield score(
        "false_positives", "control", "rate", found.rate.value, found.rate, split="plate", n_test=found.rate.total,
        alpha=found.alpha, discovered=found.discovered.hits,
    )  # fmt: skip


def _dose(asked: Asked) -> Iterator[Score]:
    wells = asked.wells
    has_dose = np.asarray([bool(each) for each in wells.compound]) & np.isfinite(wells.dose)
    rows = np.flatnonzero(wells.is_control | has_dose)
    found = dose_response(
        asked.vectors[rows],
        [wells.compound[i] for i in rows],
        np.nan_to_num(wells.dose[rows]).tolist(),
        [wells.plate[i] for i in rows],
        wells.is_control[rows],
        n_draws=asked.config.draws - 1,
        seed=asked.config.seed,
    )
    if not found.increasing.total:
        why = sorted({str(row["reason"]) for row in found.table.to_pylist()})
        raise ValueError(
            f"no compound can be tested ({'; '.join(why[:2]) or 'no treated well has a compound and a dose'})."
        )
    tested = [row for row in found.table.to_pylist() if row["p_value"] is not None]
    yield score(
        "dose_response", "dose", "share_increasing", found.increasing.value, found.increasing,
        n_test=found.increasing.total, median_spearman=finite(found.median_spearman), discovered=found.discovered.hits,
        spearman=kept({row["compound"]: row["spearman"] for row in tested}),
        p_values=kept({row["compound"]: row["p_value"] for row in tested}),
        q_values=kept({row["compound"]: row["q_value"] for row in tested}),
    )  # fmt: skip


TASKS: dict[Task, Callable[[Asked], Iterator[Score]]] = {
    "relations": _relation_recall,
    "consistency": _consistency,
    "magnitude": _magnitude,
    "replicates": _replicates,
    "percent_replicating": percent_replicating,
    "grit": grit_of_replicates,
    "activity": retrieval_tasks.activity,
    "mechanism": retrieval_tasks.mechanism,
    "nsc": retrieval_tasks.nearest("nsc"),
    "nscb": retrieval_tasks.nearest("nscb"),
    "sibling_retrieval": retrieval_tasks.sibling_retrieval,
    "leakage": _leakage,
    "false_positives": _false_positives,
    "dose": _dose,
    "clusters": cluster_separation,
    "compound_gene": compound_gene,
    "feature_regression": feature_regression_of_families,
    "batch_mixing": embedding_task("batch_mixing"),
    "linear_separability": embedding_task("linear_separability"),
    "nearest_neighbours": embedding_task("nearest_neighbours"),
    "reconstruction": embedding_task("reconstruction"),
}


def _attainable(found: RelationRecall) -> float:
    """Recall if known pairs filled the tails: below 1 where few genes make known pairs a large part of all."""
    low, high = found.thresholds
    return min(1.0, (low + 1 - high) * found.n_null_pairs / found.n_pairs)
