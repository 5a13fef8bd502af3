"""Benchmarks of genes against what is known of them: clusters set apart, compounds that look like their targets.

Shapes: W wells, D features, G genes, K clusters, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from cytolake.benchmark.compound_gene import MAX, CompoundGeneConfig, compound_gene_activity
from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.asked import Asked, Score, gene_profiles, kept, score
from cytolake.benchmark.relations.clusters import cluster_tests
from cytolake.statistics.intervals import mean_of_groups
from cytolake.statistics.shares import share_of

SIGNIFICANT_Q = 0.05


def cluster_separation(asked: Asked) -> Iterator[Score]:
    """Share of the clusters of each source that stand apart, and the mean statistic."""
    genes, profiles_GD = gene_profiles(asked)
    clusters = asked.gene_sets.clusters
    if not clusters:
        raise ValueError("no clusters: set benchmark.profiles.cluster_files, or give wells a pathway.")
    if len(genes) < asked.config.min_genes:
        raise ValueError(f"{len(genes)} genes with profiles, expected {asked.config.min_genes} or more.")
    tests = {
        source: cluster_tests(profiles_GD, genes, of_source, asked.config.min_cluster_genes)
        for source, of_source in clusters.items()
    }
    if not any(tests.values()):
        raise ValueError(
            f"no cluster of {', '.join(clusters)} has {asked.config.min_cluster_genes} or more of the {len(genes)} "
            "genes with profiles, and not all of them."
        )
    for source, found in tests.items():
        if not found:
            continue
        share = share_of(sum(test.q_value <= SIGNIFICANT_Q for test in found), len(found))
        statistics = {test.cluster: test.statistic for test in found}
        values = np.asarray(list(statistics.values()))
        rng = np.random.default_rng(asked.config.seed)
        mean = mean_of_groups(values, np.ones(len(values)), asked.config.draws, rng, (-math.inf, math.inf))
        for metric, interval in (("share_significant", share), ("mean_statistic", mean)):
            yield score(
                "cluster_separation", source, metric, interval.value, interval, n_test=len(found),
                n_classes=len({gene for test in found for gene in test.genes}), statistics=kept(statistics),
                p_values=kept({test.cluster: test.p_value for test in found}),
            q_values=kept({test.cluster: test.q_value for test in found}), aggregation=asked.config.gene_aggregation,
            )  # fmt: skip


def compound_gene(asked: Asked) -> Iterator[Score]:
    """How high the known targets of compounds rank among the screen's genes."""
    wells, truth = asked.wells, asked.gene_sets.truth
    if truth is None:
        raise ValueError("no known targets of compounds: set benchmark.profiles.compound_gene_truth.")
    genes, profiles_GD = gene_profiles(asked)
    rows = [i for i in wells.treated if wells.compound[i] and 0 < wells.dose[i] < math.inf]
    if not genes or not rows:
        raise ValueError(
            f"{len(genes)} genes with wells of no compound, and {len(rows)} wells of a compound with a dose, expected "
            "some of both."
        )
    treatments, profiles = aggregated(
        asked.vectors[rows], [(wells.compound[i], float(wells.dose[i])) for i in rows], asked.config.gene_aggregation
    )
    found = compound_gene_activity(
        profiles,
        [compound for compound, _ in treatments],
        [dose for _, dose in treatments],
        profiles_GD,
        genes,
        truth,
        CompoundGeneConfig(bootstrap_draws=asked.config.draws, seed=asked.config.seed),
    )
    of_compound = [row for row in found.compounds.to_pylist() if row["concentration"] == MAX and not row["reason"]]
    summary = {
        row["metric"]: row
        for row in found.summary.to_pylist()
        if row["concentration"] == MAX and row["average"] == "mean"
    }
    for metric, interval in (("average_precision", found.average_precision), ("auroc", found.auroc)):
        yield score(
            "compound_gene", "gene", metric, interval.value, interval, n_test=len(of_compound), n_classes=len(genes),
            z_score=summary[metric]["z_score"], random=summary[metric]["baseline"],
            of_compound=kept({row["compound"]: row[metric] for row in of_compound}), not_in_map=found.n_not_in_map,
            aggregation=asked.config.gene_aggregation,
        )  # fmt: skip
