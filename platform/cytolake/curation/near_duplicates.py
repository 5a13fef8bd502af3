"""Near duplicates in embedding space: of vectors with nearly the same direction, the first one stays.

Shapes: N vectors, D features, K clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.ray_tasks import run_tasks
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

BLOCK = 1024  # rows compared at once; with KEPT_AT_ONCE this bounds the memory of a comparison to 16 MB
KEPT_AT_ONCE = 4096
EXACT_UP_TO = 50_000  # rows: all pairs of 50,000 vectors of 384 values take about 20 s on one core
ROWS_PER_CLUSTER = 10_000
FEW = 256  # vectors; k-means on so few is fast, and its starting points matter more


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """For each vector the vector that it duplicates."""

    original: Rows
    """(N,) row of an earlier vector with at least the minimum cosine; -1 if there is none and the vector stays."""
    cosine: Floats
    """(N,) cosine to that vector; NaN if the vector stays."""


def find_duplicates(
    vectors_ND: Floats,
    min_cosine: float,
    *,
    n_clusters: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Duplicates:
    """Go through vectors in order, and mark each that is near an earlier one that stays.

    Every vector that goes is near one before it; of those that stay, no two are near. (With clusters: no two that have
    one of their two nearest clusters in common.) Memory grows with N, not with its square.

    Args:
        vectors_ND: (N, D); the first of a group stays. Rows of length 0 are similar to no other.
        min_cosine: Vectors with this cosine or more are duplicates, -1..1.
        n_clusters: Compare only within k-means clusters, each vector in the two nearest to it; 1 compares all pairs.
            None: all pairs up to EXACT_UP_TO vectors, clusters of about ROWS_PER_CLUSTER beyond.
        progress: Called after each compared cluster; each is a task if Ray is running.
    """
    unit_ND = unit_rows(vectors_ND)
    n = len(unit_ND)
    if n_clusters is None:
        n_clusters = 1 if n <= EXACT_UP_TO else -(-n // ROWS_PER_CLUSTER)
    if n_clusters <= 1 or n <= n_clusters:
        return compare_in_order(unit_ND, min_cosine)
    nearest_N2 = two_nearest(unit_ND, cluster_centres(unit_ND, n_clusters, seed))
    members = [np.flatnonzero((nearest_N2 == cluster).any(axis=1)) for cluster in range(n_clusters)]
    tasks = ((unit_ND[rows], min_cosine) for rows in members)
    compared = run_tasks(compare_in_order, tasks, n_clusters, "clusters compared", progress)
    found = Duplicates(original=np.full(n, -1, np.int64), cosine=np.full(n, np.nan, np.float32))
    for rows, inside in zip(members, compared, strict=True):
        is_new = (inside.original >= 0) & (found.original[rows] < 0)
        found.original[rows[is_new]] = rows[inside.original[is_new]]
        found.cosine[rows[is_new]] = inside.cosine[is_new]
    return found


def centred(vectors_ND: NDArray[np.floating], groups_N: Rows) -> Floats:
    """(N, D) minus the mean of each group's vectors; a group of one becomes 0, which is similar to no other.

    Staining and optics of a plate are common to its vectors and would make any two of them similar.
    """
    result = np.array(vectors_ND, np.float32)
    order = np.argsort(groups_N, kind="stable")
    starts = np.flatnonzero(np.diff(groups_N[order])) + 1
    for members in np.split(order, starts) if len(order) else ():
        result[members] -= result[members].mean(axis=0, dtype=np.float64).astype(np.float32)
    return result


def standardised(vectors_ND: NDArray[np.floating]) -> Floats:
    """(N, D), each feature with mean 0 and standard deviation 1 over the vectors; a constant feature is 0.

    Without this, all vectors of raw statistics or of many encoders have nearly the same direction.
    """
    mean = vectors_ND.mean(axis=0, dtype=np.float64)
    deviation = vectors_ND.std(axis=0, dtype=np.float64)
    return np.asarray((vectors_ND - mean) / np.where(deviation > 0, deviation, 1.0), np.float32)


def unit_rows(vectors_ND: NDArray[np.floating]) -> Floats:
    """(N, D) scaled to length 1; rows of length 0 stay 0."""
    return np.asarray(unit_vectors(vectors_ND), np.float32)


def cluster_centres(vectors_ND: Floats, n_clusters: int, seed: int) -> Floats:
    """(K, D) centres of k-means; the same vectors in the same order and the same seed give the same centres."""
    from sklearn.cluster import KMeans, MiniBatchKMeans  # seconds to import; only rules on embeddings need it

    n_clusters = min(n_clusters, len(vectors_ND))
    if len(vectors_ND) <= FEW:
        means = KMeans(n_clusters, random_state=seed, n_init=20)
    else:
        means = MiniBatchKMeans(n_clusters, random_state=seed, batch_size=4096, n_init=3)
    return np.asarray(means.fit(vectors_ND).cluster_centers_, np.float32)


def two_nearest(vectors_ND: Floats, centres_KD: Floats) -> Rows:
    """(N, 2) numbers of the nearest and second nearest centre of each vector (both 0 if K is 1)."""
    squares_K = np.square(centres_KD).sum(axis=1)
    nearest_N2 = np.zeros((len(vectors_ND), 2), np.int64)
    if len(centres_KD) < 2:
        return nearest_N2
    for start in range(0, len(vectors_ND), BLOCK):
        distance = squares_K - 2 * vectors_ND[start : start + BLOCK] @ centres_KD.T  # without the vector's own length
        two = np.argpartition(distance, 1, axis=1)[:, :2]
        swap = np.take_along_axis(distance, two, axis=1)
        two = np.where((swap[:, :1] <= swap[:, 1:]), two, two[:, ::-1])
        nearest_N2[start : start + BLOCK] = two
    return nearest_N2


def compare_in_order(unit_ND: Floats, min_cosine: float) -> Duplicates:
    """`find_duplicates` of vectors of length 1 (or 0), all pairs."""
    n = len(unit_ND)
    found = Duplicates(original=np.full(n, -1, np.int64), cosine=np.full(n, np.nan, np.float32))
    kept = np.empty(n, np.int64)
    n_kept = 0
    for start in range(0, n, BLOCK):
        block = np.arange(start, min(start + BLOCK, n))
        cosine, original = _nearest(unit_ND, block, kept[:n_kept])
        fresh = np.flatnonzero(cosine < min_cosine)
        inside = unit_ND[block[fresh]] @ unit_ND[block[fresh]].T
        stay: list[int] = []
        for position, row in enumerate(fresh.tolist()):
            if stay:
                best = int(np.argmax(inside[position, stay]))
                if inside[position, stay[best]] >= min_cosine:
                    cosine[row], original[row] = inside[position, stay[best]], block[fresh[stay[best]]]
                    continue
            stay.append(position)
        kept[n_kept : n_kept + len(stay)] = block[fresh[stay]]
        n_kept += len(stay)
        is_near = cosine >= min_cosine
        found.original[block[is_near]] = original[is_near]
        found.cosine[block[is_near]] = cosine[is_near]
    return found


def _nearest(unit_ND: Floats, block: Rows, kept: Rows) -> tuple[Floats, Rows]:
    """The largest cosine of each row of a block with any kept row, and that row."""
    cosine = np.full(len(block), -np.inf, np.float32)
    original = np.full(len(block), -1, np.int64)
    for start in range(0, len(kept), KEPT_AT_ONCE):
        part = kept[start : start + KEPT_AT_ONCE]
        cosines = unit_ND[block] @ unit_ND[part].T
        best = cosines.argmax(axis=1)
        value = cosines[np.arange(len(block)), best]
        is_better = value > cosine
        cosine[is_better], original[is_better] = value[is_better], part[best[is_better]]
    return cosine, original
