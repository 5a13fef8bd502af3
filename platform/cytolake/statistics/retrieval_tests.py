"""Permutation tests of the mean average precision with which rows of one label retrieve each other.

The published test (Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2) places positives among the ranks of one query
at random. The queries of a group rank each other, so the mean over queries varies less than one query and more than
independent ones: that null is conservative (0.3 to 2 % of groups without an effect have p up to 0.05). Here labels are
permuted among the rows, which keeps every dependence between rows, and p is exact.

- `activity_tests`: replicates of a perturbation against controls, labels exchanged within each stratum;
  `exchanged_labels` says which vectors such a test needs.
- `label_tests`: perturbations of one label against all others, labels permuted among perturbations.

Shapes: N rows, D features, B draws, n rows with the label.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.exchanged_labels import exchanges
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
Ranks = NDArray[np.int32]

TIE = 1e-12
"""Two mean average precisions this near are equal but for rounding."""
DECIMALS = 9  # of cosines: two this near are a tie
CELLS_AT_ONCE = 2_000_000  # ranks sorted at the same time, some 100 MB with what is made of them


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalTest:
    """Retrieval of the rows of one group by each other."""

    group: int
    n_rows: int
    """Rows tested: all of the group's that can be, or a sample."""
    mean_average_precision: float
    """Mean over the rows that have a positive; equal similarities count as ranked before."""
    p_value: float
    """(1 + draws as high or higher) / (1 + draws)."""


def activity_tests(
    vectors: NDArray[np.floating],
    groups: Codes,
    is_control: NDArray[np.bool_],
    strata: Codes,
    n_draws: int,
    seed: int,
    *,
    across_strata: bool = False,
    max_rows: int = 200,
    max_controls: int = 300,
) -> list[RetrievalTest]:
    """Test whether the rows of each group rank each other above the controls of their strata.

    Args:
        vectors: (N, D) of groups and of controls; compared by cosine.
        groups: (N,) number of each row's group from 0 up, below 0 where it has none; not read for control rows.
        is_control: (N,)
        strata: (N,) number of each row's stratum.
        n_draws: B. No p-value is below 1 / (1 + B).
        seed: Seed of draws and samples.
        across_strata: Whether rows of one stratum are no positives of each other.
        max_rows: Most rows of a group; a seeded sample of more.
        max_controls: Most controls of its strata; a seeded sample of more.

    Returns:
        Sorted by group, without groups of one row, that cannot be tested (see `exchanges`), or without a positive.
    """
    unit_ND = unit_vectors(vectors, in_float64=True)
    tests = []
    for each in exchanges(
        groups, is_control, strata, n_draws, seed, min_rows=2, max_rows=max_rows, max_controls=max_controls
    ):
        rows = np.concatenate([each.own, each.controls])
        blocks = strata[rows] if across_strata else np.arange(len(rows))
        means = mean_average_precisions(similarity_ranks(unit_ND[rows]), each.labelled, blocks)
        if not np.isnan(means[0]):
            tests.append(_test(each.group, len(each.own), means))
    return sorted(tests, key=lambda test: test.group)


def label_tests(
    vectors: NDArray[np.floating], labels: Codes, units: Codes, n_draws: int, seed: int, max_rows: int = 2000
) -> list[RetrievalTest]:
    """Test whether the rows of each label rank each other above rows of other labels.

    Args:
        vectors: (N, D) of treatments, such as compounds at one dose; compared by cosine.
        labels: (N,) number of each row's label from 0 up, such as its mechanism.
        units: (N,) number of the unit that carries the label, such as the compound whatever its dose: its rows are no
            positives of each other, and labels are permuted among units with equal numbers of rows.
        n_draws: B.
        seed: Seed of draws and samples.
        max_rows: Most rows behind the test of a label: its own and a seeded sample of the others where there are more.

    Returns:
        Sorted by label, without labels of one unit or with fewer than 20 possible placements.
    """
    unit_ND = unit_vectors(vectors, in_float64=True)
    whole = similarity_ranks(unit_ND) if len(unit_ND) <= max_rows else None
    tests = []
    for label, own in rows_of_groups(labels):
        rows = np.arange(len(labels))
        if whole is None:
            others = at_most(seeded_generator(seed, "others", label), np.flatnonzero(labels != label), max_rows)
            rows = np.concatenate([own, others])
        ranks = whole if whole is not None else similarity_ranks(unit_ND[rows])
        means = [
            mean_average_precisions(ranks, labelled, units[rows])
            for labelled in _permuted_units(
                np.isin(rows, own), units[rows], n_draws, seeded_generator(seed, "l", label)
            )
        ]
        if means and not np.isnan(means[0][0]):
            tests.append(_test(label, len(own), np.concatenate(means)))
    return tests


def similarity_ranks(unit_ND: Floats) -> Ranks:
    """(N, N) rank of row j among the other rows by similarity to row i, from 1; 0 on the diagonal.

    Equal similarities all get the last rank, so the order of rows has no effect.
    """
    cosines = np.round(unit_ND @ unit_ND.T, DECIMALS)
    np.fill_diagonal(cosines, -np.inf)
    ranks = np.empty(cosines.shape, np.int32)
    for i, row in enumerate(cosines):
        ranks[i] = len(row) - np.searchsorted(np.sort(row), row, "left")
    np.fill_diagonal(ranks, 0)
    return ranks


def mean_average_precisions(ranks: Ranks, labelled: Codes, blocks: Codes) -> Floats:
    """(B,) mean average precision of each set of labelled rows as queries; NaN where none has a positive.

    Positives of a query are the labelled rows of other blocks, negatives the rows without the label. Labelled rows of
    the query's block are neither.

    Args:
        ranks: (N, N) of `similarity_ranks`.
        labelled: (B, n)
        blocks: (N,)
    """
    n = labelled.shape[1]
    at_once = max(1, CELLS_AT_ONCE // n**2)
    return np.concatenate(
        [
            _mean_average_precisions(ranks, labelled[start : start + at_once], blocks)
            for start in range(0, len(labelled), at_once)
        ]
    )


def _mean_average_precisions(ranks: Ranks, labelled: Codes, blocks: Codes) -> Floats:
    rank_Bnn = ranks[labelled[:, :, None], labelled[:, None, :]].astype(np.int64)
    of_Bn = blocks[labelled]
    is_positive = of_Bn[:, :, None] != of_Bn[:, None, :]
    # Among equal ranks the non-positives come first: they are subtracted from the rank.
    order = np.argsort(2 * rank_Bnn + is_positive, axis=2)
    rank_Bnn, is_positive = (np.take_along_axis(each, order, axis=2) for each in (rank_Bnn, is_positive))
    # The query itself has rank 0 and is in its own block; it is no other row.
    taken_out = np.cumsum(~is_positive, axis=2) - 1
    found = np.cumsum(is_positive, axis=2)
    precision = np.where(is_positive, found / np.maximum(rank_Bnn - taken_out, 1), 0.0)
    n_positives = found[:, :, -1]
    with np.errstate(invalid="ignore"):
        average = precision.sum(axis=2) / n_positives
        return np.asarray(np.nansum(average, axis=1) / (n_positives > 0).sum(axis=1))


def _permuted_units(is_own: NDArray[np.bool_], units: Codes, n_draws: int, rng: np.random.Generator) -> Iterator[Codes]:
    """The labelled rows (1, n), then (B, n) random ones; nothing where too few draws are possible.

    Units are exchanged with units of equal numbers of rows, so that every draw has n rows.
    """
    numbers, of_row, sizes = np.unique(units, return_inverse=True, return_counts=True)
    has_label = np.zeros(len(numbers), np.bool_)
    has_label[of_row[is_own]] = True
    rows_of_unit = [rows for _, rows in rows_of_groups(of_row.astype(np.int64))]
    pools, counts, blocks = [], [], []
    for size in np.unique(sizes[has_label]).tolist():
        alike = np.flatnonzero(sizes == size)
        pools.append(len(alike))
        counts.append(int(has_label[alike].sum()))
        blocks.append(np.stack([rows_of_unit[unit] for unit in alike.tolist()]))
    if has_label.sum() < 2 or not can_reach_significance(pools, counts):
        return
    yield np.flatnonzero(is_own)[None, :]
    drawn = [
        rows[random_subsets(rng, n_all, count, n_draws)].reshape(n_draws, -1)
        for rows, n_all, count in zip(blocks, pools, counts, strict=True)
    ]
    yield np.concatenate(drawn, axis=1)


def _test(group: int, n_rows: int, means: Floats) -> RetrievalTest:
    p_value = permutation_p_value(means[0], means[1:], TIE)
    return RetrievalTest(group=group, n_rows=n_rows, mean_average_precision=float(means[0]), p_value=p_value)
