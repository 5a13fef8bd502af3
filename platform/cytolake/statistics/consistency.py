"""Consistency: a permutation test of the mean cosine of all pairs of a group's rows.

The null distribution is the same statistic of equally many treated rows, drawn at random from the same strata (plates
or batches). An effect that all treated rows share, such as that of the treatment procedure, then does not count as
consistency. Control rows are never drawn: they lack that shared effect, and an alignment that centres on them places
them nearer to the origin than any other row.

The draws include the group's own rows. Under the null hypothesis, that treated rows of one stratum are exchangeable,
its rows are one of the equally likely draws, so p is exact; with draws from the other groups alone it would not be.

Rows are wells, or means of guides. Crops of one well are similar because of the well and would pass every test.

Source: Celik et al. 2024, doi:10.1371/journal.pcbi.1012463.

Shapes: N rows, D features, B draws, n rows of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.p_values import permutation_p_value
from cytolake.statistics.random_subsets import (
    at_most,
    can_reach_significance,
    random_subsets,
    rows_of_groups,
    seeded_generator,
)
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

MIN_ROWS = 2
NOT_TESTED = -1
"""Group of rows that can be drawn and are not tested."""
DRAWS_AT_ONCE = 1024
COSINES_UP_TO = 4096
"""Rows whose cosines are all computed first, 134 MB: a draw then adds n (n - 1) / 2 numbers, not n D."""
TIE = 1e-9  # a draw of the group's own rows sums them in another order


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyTest:
    """Similarity of the rows of one group."""

    group: int
    n_rows: int
    """Rows tested: all of the group's, or a sample."""
    cosine: float
    """Mean over all pairs of these rows, -1..1; a row of zeros has cosine 0 with all."""
    p_value: float
    """(1 + draws with as high a cosine or a higher one) / (1 + draws); NaN where there are too few ways to draw."""


def consistency_tests(
    vectors: NDArray[np.floating],
    groups: Codes,
    strata: Codes,
    n_draws: int,
    seed: int,
    name: str = "",
    max_rows: int | None = None,
) -> list[ConsistencyTest]:
    """Test every group of two rows or more.

    Groups with equal numbers of rows in every stratum share one null distribution.

    Args:
        vectors: (N, D) of treated rows, aligned so that the origin is a typical control; compared by cosine.
        groups: (N,) number of each row's group from 0 up; `NOT_TESTED` where it has none.
        strata: (N,) number of each row's stratum, from 0 up; a draw has as many rows of each stratum as the group.
        n_draws: B. No p-value is below 1 / (1 + B).
        seed: Seed of the draws.
        name: Fixes the draws together with the seed.
        max_rows: Most rows of a group that are tested, a seeded sample; all where None.

    Returns:
        Sorted by group.
    """
    unit_ND = unit_vectors(vectors, in_float64=True)
    n_strata = int(strata.max()) + 1 if len(strata) else 0
    pool = [np.flatnonzero(strata == stratum) for stratum in range(n_strata)]
    cosines_NN = unit_ND @ unit_ND.T if len(unit_ND) <= COSINES_UP_TO else None
    alike: dict[tuple[int, ...], list[tuple[int, Codes]]] = {}
    for group, own in rows_of_groups(groups):
        if max_rows is not None and len(own) > max_rows:
            own = at_most(seeded_generator(seed, "rows", name, group), own, max_rows)
        if len(own) >= MIN_ROWS:
            counts = tuple(np.bincount(strata[own], minlength=n_strata).tolist())
            alike.setdefault(counts, []).append((group, own))
    tests = []
    for counts, members in alike.items():
        null = None
        if can_reach_significance([len(rows) for rows in pool], counts):
            rng = seeded_generator(seed, "null", name, *counts)
            null = _null(unit_ND, cosines_NN, pool, counts, n_draws, rng)
        for group, own in members:
            cosine = mean_pairwise_cosine(unit_ND[own])
            p_value = np.nan
            if null is not None:
                p_value = permutation_p_value(cosine, null, TIE)
            tests.append(ConsistencyTest(group=group, n_rows=len(own), cosine=cosine, p_value=p_value))
    return sorted(tests, key=lambda test: test.group)


def mean_pairwise_cosine(unit_ND: Floats) -> float:
    """Mean cosine of all pairs of rows of length 1 (or 0: such a row has cosine 0 with all)."""
    total = unit_ND.sum(axis=0)
    n = len(unit_ND)
    cosine = float((total @ total - np.square(unit_ND).sum()) / (n * (n - 1)))
    return min(max(cosine, -1.0), 1.0)  # the mean of cosines that are all 1 is 1 but for rounding


def _null(
    unit_ND: Floats,
    cosines_NN: Floats | None,
    pool: Sequence[NDArray[np.intp]],
    counts: Sequence[int],
    n_draws: int,
    rng: np.random.Generator,
) -> Floats:
    """(B,) mean pairwise cosines of random rows, `counts` of each stratum."""
    drawn = np.concatenate(
        [
            of_stratum[random_subsets(rng, len(of_stratum), count, n_draws)]
            for of_stratum, count in zip(pool, counts, strict=True)
            if count
        ],
        axis=1,
    )
    n = drawn.shape[1]
    if cosines_NN is not None and n < 2 * unit_ND.shape[1]:
        total_B = np.zeros(n_draws)
        for i in range(n):
            for j in range(i):
                total_B += cosines_NN[drawn[:, i], drawn[:, j]]
        total_B *= 2 / (n * (n - 1))
    else:
        squares = np.square(unit_ND).sum(axis=1)
        total_B = np.empty(n_draws)
        for start in range(0, n_draws, DRAWS_AT_ONCE):
            block = drawn[start : start + DRAWS_AT_ONCE]
            sums = np.zeros((len(block), unit_ND.shape[1]))
            for position in range(n):
                sums += unit_ND[block[:, position]]
            pairs = np.einsum("bd,bd->b", sums, sums) - squares[block].sum(axis=1)
            total_B[start : start + DRAWS_AT_ONCE] = pairs / (n * (n - 1))
    return total_B
