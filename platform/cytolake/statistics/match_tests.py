"""Permutation test of retrieval between two kinds of rows, such as compounds and knock-outs of their targets.

The statistic is the mean average precision of a target's rows of one kind as queries among the rows of the other.
Rows of one reagent (doses of a compound) are similar, and so are reagents of one target, so ranks of positives are not
independent. Therefore targets are permuted among the reagents of one kind: similarities within a kind stay, and only
the pairing of the two kinds is random.

Shapes: N rows of the first kind, M rows of the second, D features, B draws, n and m rows of one target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.p_values import permutation_p_value
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
Codes = NDArray[np.intp]

TIE = 1e-12
"""Two mean average precisions this near are equal but for rounding."""
DECIMALS = 9  # of cosines: two this near are a tie


@dataclass(frozen=True, slots=True)
class MatchTest:
    """Retrieval of one target."""

    target: str
    mean_average_precision: float
    """Mean over the target's rows of both kinds as queries among all rows of the other; equal similarities count as
    ranked before."""
    p_value: float
    """(1 + draws as high or higher) / (1 + draws)."""


def match_tests(
    first: NDArray[np.floating],
    first_targets: Sequence[str],
    second: NDArray[np.floating],
    second_targets: Sequence[str],
    second_reagents: Sequence[str],
    n_draws: int,
    seed: int,
) -> list[MatchTest]:
    """Test every target with rows of both kinds.

    Args:
        first: (N, D) such as knock-outs; compared by cosine.
        first_targets: (N,)
        second: (M, D) such as compounds at their doses.
        second_targets: (M,)
        second_reagents: (M,) reagent of each row, which has one target whatever its dose. Targets are permuted among
            reagents with equal numbers of rows; a target whose reagents have numbers of rows that no other reagent has
            gets a p-value near 1.
        n_draws: B.
        seed: Seed of the draws.

    Returns:
        Sorted by target.

    Raises:
        ValueError: A reagent has several targets.
    """
    first_ND, second_MD = unit_vectors(first, in_float64=True), unit_vectors(second, in_float64=True)
    cosines_NM = np.round(first_ND @ second_MD.T, DECIMALS)
    rank_NM, rank_MN = _ranks(cosines_NM), _ranks(cosines_NM.T)
    targets, target_M = np.unique(np.asarray(second_targets, dtype=str), return_inverse=True)
    rows_of_target = [np.flatnonzero(target_M == target) for target in range(len(targets))]
    placed_BM = _permuted(target_M, np.asarray(second_reagents, dtype=str), n_draws, seed)
    names = np.asarray(first_targets, dtype=str)
    tests = []
    for number, target in enumerate(targets.tolist()):
        own = np.flatnonzero(names == target)
        if not len(own):
            continue
        # Each row of the second kind as a query: ranks of the target's rows of the first kind.
        of_second_M = _average_precisions(rank_MN[:, own])
        # Every draw has the same number of rows of the target, so their row numbers are a matrix.
        drawn_Bm = np.stack([rows_of_target[number], *_rows_with(placed_BM, number)])
        of_first_nB = np.stack([_average_precisions(rank_NM[row][drawn_Bm]) for row in own.tolist()])
        n_queries = len(own) + drawn_Bm.shape[1]
        means_B = (of_first_nB.sum(axis=0) + of_second_M[drawn_Bm].sum(axis=1)) / n_queries
        p_value = permutation_p_value(means_B[0], means_B[1:], TIE)
        tests.append(MatchTest(target, float(means_B[0]), p_value))
    return tests


def _permuted(target_M: Codes, reagents: NDArray[np.str_], n_draws: int, seed: int) -> Codes:
    """(B, M) targets of rows, permuted among reagents with equal numbers of rows."""
    _, reagent_M, sizes = np.unique(reagents, return_inverse=True, return_counts=True)
    target_of = np.empty(len(sizes), np.intp)
    target_of[reagent_M] = target_M
    wrong = np.flatnonzero(target_of[reagent_M] != target_M)
    if len(wrong):
        raise ValueError(
            f"reagent {reagents[wrong[0]]} has several targets, expected one. Give each reagent its main target."
        )
    rng = np.random.default_rng(seed)
    placed = np.broadcast_to(target_of, (n_draws, len(sizes))).copy()
    for size in np.unique(sizes).tolist():
        alike = np.flatnonzero(sizes == size)
        placed[:, alike] = rng.permuted(placed[:, alike], axis=1)
    return placed[:, reagent_M]


def _rows_with(placed_BM: Codes, target: int) -> Codes:
    """(B, m) rows that have the target in each draw; m is the same in every draw."""
    return np.nonzero(placed_BM == target)[1].reshape(len(placed_BM), -1)


def _ranks(cosines: Floats) -> Codes:
    """Rank of each value in its row: how many are as large or larger, itself included."""
    ascending = np.sort(cosines, axis=1)
    return np.stack(
        [
            len(row) - np.searchsorted(row_sorted, row, "left")
            for row, row_sorted in zip(cosines, ascending, strict=True)
        ]
    )


def _average_precisions(ranks_Bn: Codes) -> Floats:
    """(B,) average precision of queries whose positives have these ranks; equal ranks all count as the last."""
    ascending = np.sort(ranks_Bn, axis=1)
    return np.asarray(np.mean(np.arange(1, ascending.shape[1] + 1) / ascending, axis=1))
