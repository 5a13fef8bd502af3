"""The benchmarks of well profiles: each a function of profiles and wells that gives scores, or says why it cannot.

Shapes: W wells, D features, G genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from cytolake.benchmark.guard_rails import batch_leakage, dose_response, false_positives_of_wells
from cytolake.benchmark.perturbation_signal.perturbations import Signal, SignalConfig, consistency, magnitude
from cytolake.benchmark.perturbation_signal.replicates import replicate_consistency
from cytolake.benchmark.profiles import retrieval_tasks
from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.asked import Asked, Floats, Score, finite, gene_profiles, kept, score
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig, Task
from cytolake.benchmark.profiles.embedding_tasks import embedding_task
from cytolake.benchmark.profiles.feature_tasks import feature_regression_of_families
from cytolake.benchmark.profiles.gene_tasks import cluster_separation, compound_gene
from cytolake.benchmark.profiles.replicate_tasks import grit_of_replicates, percent_replicating
from cytolake.benchmark.profiles.wells import Wells
from cytolake.benchmark.relations.recall import RecallConfig, RelationRecall, relationship_recall
from cytolake.statistics.false_discovery import benjamini_hochberg

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
    yield _share_with_signal("perturbation_consistency", consistency, asked.vectors, asked.wells, asked.config)


def _magnitude(asked: Asked) -> Iterator[Score]:
    yield _share_with_signal("perturbation_magnitude", magnitude, asked.vectors, asked.wells, asked.config)


def _share_with_signal(
    name: str, measure: Callable[..., Signal], vectors: Floats, wells: Wells, config: ProfileBenchmarkConfig
) -> Score:
    settings = SignalConfig(n_draws=config.draws - 1, seed=config.seed)
    named = [bool(each) or bool(c) for each, c in zip(wells.perturbation, wells.is_control, strict=True)]
    rows = np.flatnonzero(named)
    signal = measure(
        vectors[rows],
        [wells.perturbation[i] for i in rows],
        [wells.plate[i] for i in rows],
        wells.is_control[rows],
        settings,
    )
    if not signal.n_defined:
        why = sorted({str(row["reason"]) for row in signal.table.to_pylist() if row["reason"]})
        raise ValueError(f"no perturbation has a p-value ({'; '.join(why[:2])}).")
    p_values = {row["perturbation"]: row["p_value"] for row in signal.table.to_pylist() if row["p_value"] is not None}
    return score(
        name, "perturbation", "share_significant", signal.significant.value, signal.significant,
        n_test=signal.n_defined, p_values=kept(p_values),
    )  # fmt: skip


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
    wells = asked.wells
    found = batch_leakage(asked.vectors, wells.plate, is_control=wells.is_control, bootstrap_draws=asked.config.draws)
    yield score(
        "batch_leakage", "plate", "balanced_accuracy", found.balanced_accuracy.value, found.balanced_accuracy,
        split="well", n_test=found.n_wells, n_classes=found.n_batches, chance=found.chance,
    )  # fmt: skip


def _false_positives(asked: Asked) -> Iterator[Score]:
    wells = asked.wells
    found = false_positives_of_wells(asked.vectors, wells.plate, wells.is_control)
    yield score(
        "false_positives", "control", "rate", found.rate.value, found.rate, split="plate", n_test=found.rate.total,
        alpha=found.alpha,
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
        raise ValueError("no compound has three doses.")
    tested = [row for row in found.table.to_pylist() if row["spearman"] is not None]
    compounds = [row["compound"] for row in tested]
    p_values = [row["p_value"] for row in tested]
    yield score(
        "dose_response", "dose", "share_increasing", found.increasing.value, found.increasing,
        n_test=found.increasing.total, median_spearman=finite(found.median_spearman),
        spearman=kept({row["compound"]: row["spearman"] for row in tested}),
        p_values=kept(dict(zip(compounds, p_values, strict=True))),
        q_values=kept(dict(zip(compounds, benjamini_hochberg(p_values).tolist(), strict=True))),
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
