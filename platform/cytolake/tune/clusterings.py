"""Agreement of a representation's clusters with labellings: the phenotype, the plate, the density of cells.

N crops, D features, K clusters.

Source: the clustering relevance of Bendidi et al. 2023, arXiv:2304.11718, computed for every label that is available.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.unit_vectors import unit_vectors


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of clusters with one labelling."""

    ami: float
    """Adjusted mutual information: 0 by chance, 1 where they are the same."""
    nmi: float
    """Normalised mutual information, not adjusted: it grows with the number of clusters."""
    ari: float
    """Adjusted Rand index."""
    n_clusters: int
    n_crops: int
    """Crops with the label."""


def cluster_agreement(
    vectors_ND: NDArray[np.floating],
    labels: Mapping[str, NDArray[np.intp]],
    restarts: int = 20,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> dict[str, Agreement]:
    """k-means on unit vectors against every labelling, as many clusters as it has classes; means over seeds.

    Args:
        vectors_ND: (N, D).
        labels: (N,) codes of each labelling; negative where a crop has no label.
        restarts: Of k-means; the one of least inertia counts.

    Returns:
        For each labelling of two or more classes.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

    unit = unit_vectors(vectors_ND, least_length=1e-12)
    found = {}
    for name, code in labels.items():
        rows = np.flatnonzero(code >= 0)
        n_clusters = len(np.unique(code[rows]))
        if n_clusters < 2 or len(rows) < n_clusters:
            continue
        clusterings = [KMeans(n_clusters, n_init=restarts, random_state=seed).fit_predict(unit[rows]) for seed in seeds]
        found[name] = Agreement(
            ami=float(np.mean([adjusted_mutual_info_score(code[rows], each) for each in clusterings])),
            nmi=float(np.mean([normalized_mutual_info_score(code[rows], each) for each in clusterings])),
            ari=float(np.mean([adjusted_rand_score(code[rows], each) for each in clusterings])),
            n_clusters=n_clusters,
            n_crops=len(rows),
        )
    return found


def terciles(values: NDArray[np.floating]) -> NDArray[np.intp]:
    """(N,) low, middle, high third of a number such as the count of cells; -1 where it is not known."""
    known = np.isfinite(values)
    codes = np.full(len(values), -1, dtype=np.intp)
    if known.any():
        codes[known] = np.searchsorted(np.quantile(values[known], [1 / 3, 2 / 3]), values[known], side="right")
    return codes
