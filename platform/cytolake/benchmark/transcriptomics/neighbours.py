"""Exact nearest neighbours in blocks of queries, with memory for one block instead of queries x references.

Shapes: M references, N queries, Q queries of a block, k neighbours, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.screen import Codes

Floats = NDArray[np.float64]
BLOCK_VALUES = 4_000_000
"""Size Q k D of a block's differences, 32 MB."""


def nearest(
    references_MD: NDArray[np.floating], queries_ND: NDArray[np.floating], k: int, *, block_values: int = BLOCK_VALUES
) -> Iterator[tuple[slice, Floats, Codes]]:
    """Euclidean neighbours of each block of queries.

    Yields:
        The block, its (Q, k) distances ascending, and (Q, k) indices of the neighbours.

    Raises:
        ValueError: Fewer references than neighbours.
    """
    from sklearn.neighbors import NearestNeighbors

    if not 1 <= k <= len(references_MD):
        raise ValueError(f"{k} neighbours among {len(references_MD)} references; expected 1 to {len(references_MD)}.")
    # The search computes |x|^2 + |y|^2 - 2 xy, which loses digits far from the origin.
    origin_D = references_MD.mean(axis=0, dtype=np.float64)
    references = references_MD - origin_D
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references)
    step = max(1, block_values // (k * max(1, references.shape[1])))
    for start in range(0, len(queries_ND), step):
        block = slice(start, min(start + step, len(queries_ND)))
        queries = queries_ND[block] - origin_D
        found = search.kneighbors(queries, return_distance=False)
        # Distances from the differences: equal vectors then have distance exactly 0, on which weights 1 / d depend.
        distances = np.sqrt(np.square(references[found] - queries[:, None, :]).sum(axis=2))
        order = np.argsort(distances, axis=1, kind="stable")
        yield block, np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)


def nearest_others(vectors_ND: NDArray[np.floating], k: int) -> Iterator[tuple[slice, Floats, Codes]]:
    """The k nearest other rows of each row; the row itself is excluded by its index, so equal rows are neighbours.

    Raises:
        ValueError: Fewer other rows than neighbours.
    """
    if k >= len(vectors_ND):
        raise ValueError(f"{k} neighbours among {len(vectors_ND) - 1} other rows; expected that many or fewer.")
    for block, distances, found in nearest(vectors_ND, vectors_ND, k + 1):
        is_self = found == np.arange(block.start, block.stop)[:, None]
        # With more than k equal rows the row itself may be missing; the last one is then dropped.
        is_self[~is_self.any(axis=1), -1] = True
        shape = (len(found), k)
        yield block, distances[~is_self].reshape(shape), found[~is_self].reshape(shape)
