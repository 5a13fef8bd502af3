"""Profile benchmarks of genes: recall of known relations, separation of clusters, targets of compounds.

Shapes: W wells, D features, G genes, K clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cytolake.benchmark.compound_gene import MAX, CompoundGeneConfig, compound_gene_activity
from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.profile_input import (
    BenchmarkInput,
    ScoreRow,
    by_class,
    finite,
    gene_profiles,
    score_row,
)
from cytolake.benchmark.relations.clusters import cluster_tests
from cytolake.benchmark.relations.recall import RecallConfig, RelationRecall, relationship_recall
from cytolake.statistics.intervals import mean_of_groups, share_of

SIGNIFICANT_Q = 0.05


def relation_recall(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Recall of the known relations of each source at each pair of thresholds."""
    genes, profiles_GD = gene_profiles(data)
    if len(genes) < data.config.min_genes:
        raise ValueError(
            f"{len(genes)} genes with profiles, expected {data.config.min_genes} or more for tails of pairs."
        )
    if not data.relations:
        raise ValueError("no relations: set benchmark.profiles.relation_files, or give wells a pathway.")
    settings = RecallConfig(
        min_entities=data.config.min_genes, bootstrap_draws=data.config.draws, seed=data.config.seed
    )
    for found in relationship_recall(profiles_GD, genes, data.relations, settings):
        if not found.n_pairs:
            continue
        low, high = (round(100 * each) for each in found.thresholds)
        yield score_row(
            "relation_recall", found.source, f"recall_{low:02d}_{high:02d}", found.recall.value, found.recall,
            n_test=found.n_pairs, n_classes=found.n_genes, random=finite(found.random),
            random_p_value=finite(found.random_p_value), attainable=_attainable(found), n_low=found.n_low,
            n_high=found.n_high, aggregation=data.config.gene_aggregation,
        )  # fmt: skip


def cluster_separation(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Share of the clusters of each source that are separated, and the mean statistic."""
    genes, profiles_GD = gene_profiles(data)
    clusters = data.gene_sets.clusters
    if not clusters:
        raise ValueError("no clusters: set benchmark.profiles.cluster_files, or give wells a pathway.")
    if len(genes) < data.config.min_genes:
        raise ValueError(f"{len(genes)} genes with profiles, expected {data.config.min_genes} or more.")
    tests = {
        source: cluster_tests(profiles_GD, genes, of_source, data.config.min_cluster_genes)
        for source, of_source in clusters.items()
    }
    if not any(tests.values()):
        raise ValueError(
            f"no cluster of {', '.join(clusters)} has {data.config.min_cluster_genes} or more of the {len(genes)} "
            "genes with profiles, and not all of them."
        )
    for source, found in tests.items():
        if not found:
            continue
        share = share_of(sum(test.q_value <= SIGNIFICANT_Q for test in found), len(found))
        statistics = {test.cluster: test.statistic for test in found}
        values = np.asarray(list(statistics.values()))
        rng = np.random.default_rng(data.config.seed)
        mean = mean_of_groups(values, np.ones(len(values)), data.config.draws, rng, (-math.inf, math.inf))
        for metric, interval in (("share_significant", share), ("mean_statistic", mean)):
            yield score_row(
                "cluster_separation", source, metric, interval.value, interval, n_test=len(found),
                n_classes=len({gene for test in found for gene in test.genes}), statistics=by_class(statistics),
                p_values=by_class({test.cluster: test.p_value for test in found}),
            q_values=by_class({test.cluster: test.q_value for test in found}), aggregation=data.config.gene_aggregation,
            )  # fmt: skip


def compound_gene(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Ranks of the known targets of compounds among the screen's genes."""
    wells, truth = data.wells, data.gene_sets.truth
    if truth is None:
        raise ValueError("no known targets of compounds: set benchmark.profiles.compound_gene_truth.")
    genes, profiles_GD = gene_profiles(data)
    rows = [i for i in wells.treated if wells.compound[i] and 0 < wells.dose[i] < math.inf]
    if not genes or not rows:
        raise ValueError(
            f"{len(genes)} genes with wells of no compound, and {len(rows)} wells of a compound with a dose, expected "
            "some of both."
        )
    treatments, profiles = aggregated(
        data.vectors[rows], [(wells.compound[i], float(wells.dose[i])) for i in rows], data.config.gene_aggregation
    )
    found = compound_gene_activity(
        profiles,
        [compound for compound, _ in treatments],
        [dose for _, dose in treatments],
        profiles_GD,
        genes,
        truth,
        CompoundGeneConfig(bootstrap_draws=data.config.draws, seed=data.config.seed),
    )
    of_compound = [row for row in found.compounds.to_pylist() if row["concentration"] == MAX and not row["reason"]]
    summary = {
        row["metric"]: row
        for row in found.summary.to_pylist()
        if row["concentration"] == MAX and row["average"] == "mean"
    }
    for metric, interval in (("average_precision", found.average_precision), ("auroc", found.auroc)):
        yield score_row(
            "compound_gene", "gene", metric, interval.value, interval, n_test=len(of_compound), n_classes=len(genes),
            z_score=summary[metric]["z_score"], random=summary[metric]["baseline"],
            of_compound=by_class({row["compound"]: row[metric] for row in of_compound}), not_in_map=found.n_not_in_map,
            aggregation=data.config.gene_aggregation,
        )  # fmt: skip


def _attainable(found: RelationRecall) -> float:
    """Recall if known pairs filled the tails: below 1 where known pairs are a large part of the pairs of few genes."""
    low, high = found.thresholds
    return min(1.0, (low + 1 - high) * found.n_null_pairs / found.n_pairs)
