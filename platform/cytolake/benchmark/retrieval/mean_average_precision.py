"""Mean average precision of groups of rows, such as the replicates of a perturbation, with a p-value against chance.

The null distribution is that of copairs (Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2): means of random average
precisions, where rows with the same numbers of positives and negatives share their draws. The rows of a group rank each
other and are far from independent; shared draws treat them as fully dependent. A group whose rows all have the same
numbers is compared with the null distribution of one row, and its p-value is exact where that distribution is.

Draws equal to the mean count, as in copairs 0.6. copairs 0.5 counts only higher ones, so a perfect mean always gets the
smallest possible p-value: two replicates and 330 controls give 1 with probability 1/331, which copairs 0.5 reports as
1/10,001. `count_ties=False` reproduces 0.5.

Shapes: N rows, G groups, B draws, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.null_distribution import EXACT_UP_TO, TIE, exact_null, is_exact, sampled_null
from cytolake.benchmark.retrieval.pairs import Metadata, as_table, column, column_codes, joint_codes
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import Interval, mean_of_groups
from cytolake.statistics.p_values import permutation_p_value

Floats = NDArray[np.float64]


def mean_average_precision(
    scores: Metadata,
    sameby: Sequence[str],
    *,
    null_size: int = 10_000,
    seed: int = 0,
    exact_up_to: int = EXACT_UP_TO,
    count_ties: bool = True,
) -> pa.Table:
    """Mean average precision of each group, its p-value, and the p-value adjusted for the number of groups.

    Args:
        scores: N rows of `average_precision`.
        sameby: Columns in which the rows of a group agree.
        null_size: Draws of a sampled null distribution.
        seed: Seed of the draws.
        exact_up_to: Most placements of positives that are listed rather than sampled; 0 always samples.
        count_ties: Whether draws equal to the group's mean count. False reproduces copairs 0.5 and always samples.

    Returns:
        One row for each group, in order of first appearance: the columns of `sameby`, `n_rows`, `n_scored`,
        `mean_average_precision`, `mean_normalised_average_precision`, `p_value`, `adjusted_p_value` (Benjamini-Hochberg
        over the groups that have a p-value), `null` (`exact` or `sampled`) and `reason`. A group without a scored row
        has nulls and a reason.

    Raises:
        ValueError: `sameby` is empty, or a column is missing or null.
    """
    if isinstance(sameby, str) or not sameby:
        raise ValueError(f"sameby is {sameby!r}, expected a list of one or more columns.")
    table = as_table(scores)
    joint = joint_codes([column_codes(table, name) for name in sameby], table.num_rows)
    _, first_of, of_row = np.unique(joint, return_index=True, return_inverse=True)
    group, first_rows = np.argsort(np.argsort(first_of))[of_row], np.sort(first_of)
    values, normalised = (_numbers(table, name) for name in ("average_precision", "normalised_average_precision"))
    sizes = np.stack([_numbers(table, name) for name in ("n_positives", "n_total")], axis=1).astype(np.int64)
    scored = np.flatnonzero(~np.isnan(values))
    n_groups = len(first_rows)
    n_scored = np.bincount(group[scored], minlength=n_groups)
    has = n_scored > 0
    means = np.full((2, n_groups), np.nan)
    for mean, each in zip(means, (values, normalised), strict=True):
        mean[has] = np.bincount(group[scored], each[scored], minlength=n_groups)[has] / n_scored[has]
    p_value = np.full(n_groups, np.nan)
    nulls = np.full(n_groups, None, dtype=object)
    by_group = scored[np.argsort(group[scored], kind="stable")]
    for rows in np.split(by_group, np.cumsum(n_scored)[:-1]):
        if len(rows):
            of = group[rows[0]]
            p_value[of], nulls[of] = _p_value(
                means[0, of], sizes[rows], null_size, seed, exact_up_to, count_ties=count_ties
            )
    adjusted = benjamini_hochberg(p_value)
    reason = np.full(n_groups, "no row with positives and negatives", dtype=object)
    reason[has] = None
    groups = table.select(list(sameby)).take(first_rows)
    for name, values_of in {
        "n_rows": pa.array(np.bincount(group, minlength=n_groups)),
        "n_scored": pa.array(n_scored),
        "mean_average_precision": pa.array(means[0], mask=~has),
        "mean_normalised_average_precision": pa.array(means[1], mask=~has),
        "p_value": pa.array(p_value, mask=~has),
        "adjusted_p_value": pa.array(adjusted, mask=~has),
        "null": pa.array(nulls, pa.string()),
        "reason": pa.array(reason, pa.string()),
    }.items():
        groups = groups.append_column(name, values_of)
    return groups


def bootstrap_over_groups(
    maps: Metadata,
    *,
    value: str = "mean_average_precision",
    cluster: str | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean over groups of their mean average precision, with a 95 % interval from resampled groups.

    Args:
        maps: G rows of `mean_average_precision`; those with a null do not count.
        value: Column to average.
        cluster: Column whose values are resampled whole, such as the compound of several doses, which are not
            independent; single groups where None.

    Raises:
        ValueError: No group has a value, or a column is missing.
    """
    table = as_table(maps)
    values = _numbers(table, value)
    codes = np.arange(len(values)) if cluster is None else column_codes(table, cluster)
    has = ~np.isnan(values)
    if not has.any():
        raise ValueError(f"no group has a {value} to average: see the column `reason`.")
    _, of_group = np.unique(codes[has], return_inverse=True)
    counts, sums = np.bincount(of_group), np.bincount(of_group, values[has])
    bounds = (0.0, 1.0) if value == "mean_average_precision" else (-math.inf, 1.0)
    return mean_of_groups(
        sums.astype(np.float64), counts.astype(np.float64), n_draws, np.random.default_rng(seed), bounds
    )


def _p_value(
    mean: float,
    sizes: NDArray[np.int64],
    null_size: int,
    seed: int,
    exact_up_to: int,
    *,
    count_ties: bool,
) -> tuple[float, str]:
    kinds, counts = np.unique(sizes, axis=0, return_counts=True)
    n_positives, n_total = kinds[0].tolist()
    if count_ties and len(kinds) == 1 and is_exact(n_positives, n_total, exact_up_to):
        return float(np.mean(exact_null(n_positives, n_total) >= mean - TIE)), "exact"
    null_B = np.zeros(null_size)
    for (positives, total), count in zip(kinds.tolist(), counts.tolist(), strict=True):
        null_B += count * sampled_null(positives, total, null_size, seed)
    return permutation_p_value(mean, null_B / counts.sum(), TIE if count_ties else -TIE), "sampled"


def _numbers(table: pa.Table, name: str) -> Floats:
    """Values of a column; NaN where it is null."""
    return np.asarray(column(table, name).to_pandas(), np.float64)
