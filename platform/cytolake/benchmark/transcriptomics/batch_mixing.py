"""T1, batch mixing: number of batches among the neighbours of a row (LISI).

LISI is the inverse Simpson index of the neighbours' batches, weighted by closeness: 1 where all neighbours are of one
batch, B where B batches have equal shares.

Shapes: N rows, k neighbours, B batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.neighbours import nearest_others
from cytolake.benchmark.transcriptomics.screen import Codes

Floats = NDArray[np.float64]
PERPLEXITY = 83  # a third of 251 neighbours, the published setting
MAX_ITERATIONS, TOLERANCE = 50, 1e-5


@dataclass(frozen=True, slots=True)
class Mixing:
    """LISI of every row, and its value by chance."""

    lisi: Floats
    """(N,) 1 .. B."""
    chance: Floats
    """(N,) LISI of the same weights with random batches: 1 / (s + (1 - s) sum w^2), with s the sum of the squared
    shares of the batches."""

    @property
    def mean(self) -> float:
        """Mean LISI, not normalised. It is below B with few neighbours: at perplexity 83, perfectly mixed batches of
        equal size have 1.95 of 2 and 2.83 of 3, and more with a larger perplexity."""
        return float(self.lisi.mean())

    @property
    def normalised(self) -> Floats:
        """(N,) (LISI - 1) / (chance - 1): 0 for separate batches, 1 (up to 1.1 at small perplexities) for chance."""
        return np.asarray((self.lisi - 1) / (self.chance - 1))


def ilisi(vectors_ND: NDArray[np.floating], batches: Codes, perplexity: float = PERPLEXITY) -> Mixing:
    """LISI of each row over its 3 * perplexity - 1 nearest other rows.

    The weight of a neighbour at distance d is exp(-beta d). For each row, bisection finds the beta with an entropy of
    the weights of log(perplexity), in at most 50 steps, to 1e-5.

    Args:
        vectors_ND: (N, D) all rows, controls included.
        batches: (N,)
        perplexity: Effective number of neighbours, above 1.

    Raises:
        ValueError: Too few rows for the perplexity, or a single batch.

    Source: Korsunsky et al. 2019, doi:10.1038/s41592-019-0619-0; as in Tx-Evaluation, distances are not squared.
    """
    n_neighbours = int(3 * perplexity) - 1
    if perplexity <= 1 or n_neighbours >= len(vectors_ND):
        raise ValueError(
            f"iLISI: perplexity {perplexity} takes {n_neighbours} neighbours of {len(vectors_ND) - 1} other rows. "
            "Expected a perplexity above 1 and at most a third of the rows: set config.perplexity."
        )
    names, codes, counts = np.unique(batches, return_inverse=True, return_counts=True)
    if len(names) < 2:
        raise ValueError(
            "iLISI: all rows are of one batch. Expected 2 or more: set config.mixing_rows='all' where too few batches "
            "are held out, or leave the task batch_mixing out."
        )
    lisi_N, chance_N = np.empty(len(vectors_ND)), np.empty(len(vectors_ND))
    same = float(np.square(counts / counts.sum()).sum())
    for block, distances, found in nearest_others(vectors_ND, n_neighbours):
        weights = neighbour_weights(distances, perplexity)
        place = np.arange(len(found))[:, None] * len(names) + codes[found]
        shares_QB = np.bincount(place.ravel(), weights.ravel(), len(found) * len(names)).reshape(-1, len(names))
        lisi_N[block] = 1 / np.square(shares_QB).sum(axis=1)
        chance_N[block] = 1 / (same + (1 - same) * np.square(weights).sum(axis=1))
    return Mixing(lisi_N, chance_N)


def neighbour_weights(distances_Nk: Floats, perplexity: float) -> Floats:
    """(N, k) weights exp(-beta d), with sum 1 and entropy log(perplexity) in each row.

    A row that cannot have that entropy (equal distances, too many neighbours at distance 0) has the nearest possible.
    """
    # Subtracting the smallest distance does not change the weights, and the largest no longer underflows.
    offset_Nk = distances_Nk - distances_Nk.min(axis=1, keepdims=True)
    typical = offset_Nk.mean(axis=1, keepdims=True)
    offset_Nk = offset_Nk / np.where(typical > 0, typical, 1.0)
    n = len(offset_Nk)
    beta, low, high = np.ones(n), np.zeros(n), np.full(n, np.inf)
    target = np.log(perplexity)
    for _ in range(MAX_ITERATIONS):
        _, entropy = _weights(offset_Nk, beta)
        if (np.abs(entropy - target) < TOLERANCE).all():
            break
        is_flat = entropy > target
        low, high = np.where(is_flat, beta, low), np.where(is_flat, high, beta)
        middle = np.where(np.isinf(high), 2 * beta, (low + np.where(np.isinf(high), 0, high)) / 2)
        beta = np.where(np.abs(entropy - target) < TOLERANCE, beta, middle)
    return _weights(offset_Nk, beta)[0]


def _weights(offset_Nk: Floats, beta: Floats) -> tuple[Floats, Floats]:
    weights = np.exp(-beta[:, None] * offset_Nk)
    total = weights.sum(axis=1)
    entropy = np.log(total) + beta * (weights * offset_Nk).sum(axis=1) / total
    return weights / total[:, None], entropy
