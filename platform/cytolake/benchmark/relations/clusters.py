"""Separation of known gene clusters: cosines within a cluster compared with cosines to all other genes.

Source: the cluster benchmark of EFAAR (Celik et al. 2024, doi:10.1371/journal.pcbi.1012463): a two-sided two-sample
Kolmogorov-Smirnov test. The adjustment for many clusters is ours (Benjamini and Hochberg 1995).

Letters: N entities, D features, C genes of a cluster.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cytolake.benchmark.relations.cosine_blocks import Floats, round_to_grid
from cytolake.benchmark.relations.recall import check_map
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.unit_vectors import unit_vectors_of_any_size


@dataclass(frozen=True, slots=True)
class ClusterTest:
    """Test of one cluster."""

    cluster: str
    genes: tuple[str, ...]
    """Genes of the cluster that are in the map."""
    within: float
    """Mean cosine of two genes of the cluster."""
    between: float
    """Mean cosine of a gene of the cluster and one of the rest."""
    statistic: float
    """Kolmogorov-Smirnov: largest difference of the two distributions, 0..1."""
    p_value: float
    """It treats cosines as independent, though those of one gene are not: too small, but good for ranking clusters."""
    q_value: float
    """p-value adjusted for the number of clusters tested (false discovery rate)."""


def cluster_tests(
    vectors_ND: NDArray[Any],
    entities: Sequence[str],
    clusters: Mapping[str, Iterable[str]],
    min_genes: int = 10,
) -> list[ClusterTest]:
    """Test every cluster with enough genes in the map, unless it holds the whole map.

    Args:
        vectors_ND: (N, D) one vector for each entity. A zero vector has cosine 0 to all.
        entities: (N,) names, each once.
        clusters: Name to genes, such as from `read_clusters`.
        min_genes: Fewest genes of the cluster in the map, 2 or more.

    Returns:
        In the order of `clusters`; empty where no cluster is large enough.

    Raises:
        ValueError: A name that comes twice, a vector that is not finite, or `min_genes` below 2.
    """
    if min_genes < 2:
        raise ValueError(f"min_genes is {min_genes}, expected 2 or more: one gene has no cosine within.")
    check_map(vectors_ND, entities, min_entities=3)
    unit_ND = unit_vectors_of_any_size(vectors_ND)
    row_of = {entity: row for row, entity in enumerate(entities)}
    tests = []
    for name, genes in clusters.items():
        rows = sorted(row_of[gene] for gene in set(genes) if gene in row_of)
        if min_genes <= len(rows) < len(entities):
            tests.append(_test(name, np.asarray(rows), unit_ND, entities))
    q_values = benjamini_hochberg([test.p_value for test in tests])
    return [replace(test, q_value=float(q)) for test, q in zip(tests, q_values, strict=True)]


def _test(name: str, rows: NDArray[np.int64], unit_ND: Floats, entities: Sequence[str]) -> ClusterTest:
    cosines_CN = round_to_grid(unit_ND[rows] @ unit_ND.T)
    within = cosines_CN[:, rows][np.triu_indices(len(rows), k=1)]
    between = np.delete(cosines_CN, rows, axis=1).ravel()
    with warnings.catch_warnings():
        # A p-value too small for the exact method: scipy then uses the asymptotic one, as for large samples.
        warnings.filterwarnings("ignore", message="ks_2samp: Exact calculation unsuccessful", category=RuntimeWarning)
        result = stats.ks_2samp(within, between)
    genes = tuple(entities[row] for row in rows.tolist())
    p_value = float(result.pvalue)
    return ClusterTest(
        name, genes, float(within.mean()), float(between.mean()), float(result.statistic), p_value, p_value
    )
