"""The profile benchmarks by name; each is a function of `BenchmarkInput` that gives rows of scores or a ValueError."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cytolake.benchmark.profiles import gene_tasks, guard_rail_tasks, retrieval_tasks, signal_tasks
from cytolake.benchmark.profiles.config import Task
from cytolake.benchmark.profiles.embedding_tasks import embedding_task
from cytolake.benchmark.profiles.feature_tasks import feature_regression_of_families
from cytolake.benchmark.profiles.profile_input import BenchmarkInput, ScoreRow

TASKS: dict[Task, Callable[[BenchmarkInput], Iterator[ScoreRow]]] = {
    "relations": gene_tasks.relation_recall,
    "consistency": signal_tasks.consistency_of_perturbations,
    "magnitude": signal_tasks.magnitude_of_perturbations,
    "replicates": signal_tasks.replicates_across_experiments,
    "percent_replicating": signal_tasks.percent_replicating,
    "grit": signal_tasks.grit_of_replicates,
    "activity": retrieval_tasks.activity,
    "mechanism": retrieval_tasks.mechanism,
    "nsc": retrieval_tasks.nearest("nsc"),
    "nscb": retrieval_tasks.nearest("nscb"),
    "sibling_retrieval": retrieval_tasks.sibling_retrieval,
    "leakage": guard_rail_tasks.leakage_of_plates,
    "false_positives": guard_rail_tasks.false_positives,
    "dose": guard_rail_tasks.dose,
    "clusters": gene_tasks.cluster_separation,
    "compound_gene": gene_tasks.compound_gene,
    "feature_regression": feature_regression_of_families,
    "batch_mixing": embedding_task("batch_mixing"),
    "linear_separability": embedding_task("linear_separability"),
    "nearest_neighbours": embedding_task("nearest_neighbours"),
    "reconstruction": embedding_task("reconstruction"),
}
