"""Positives and negatives of each row, defined by columns of the metadata.

The rules are those of copairs (Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2): two rows are a positive pair if
they agree in every column of `pos_sameby` and differ in every column of `pos_diffby`; `neg_sameby` and `neg_diffby`
define negative pairs in the same way. There is no list of pairs: the partners of a row are looked up when needed.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

Metadata: TypeAlias = "pa.Table | pd.DataFrame"
Codes = NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairRules:
    """Definition of positive and negative pairs."""

    pos_sameby: tuple[str, ...] = ()
    """Columns in which a positive pair agrees, such as the perturbation."""
    pos_diffby: tuple[str, ...] = ()
    """Columns in each of which a positive pair differs, such as the plate."""
    neg_sameby: tuple[str, ...] = ()
    """Columns in which a negative pair agrees, such as the plate."""
    neg_diffby: tuple[str, ...] = ()
    """Columns in each of which a negative pair differs."""

    def __post_init__(self) -> None:
        for sign, same, differ in (
            ("pos", self.pos_sameby, self.pos_diffby),
            ("neg", self.neg_sameby, self.neg_diffby),
        ):
            for name, columns in ((f"{sign}_sameby", same), (f"{sign}_diffby", differ)):
                if not isinstance(columns, tuple):  # the letters of a text would be taken for columns
                    raise ValueError(f"{name} is {columns!r}, expected a tuple of columns, such as ('plate',).")
            if not same and not differ:
                raise ValueError(f"{sign}_sameby and {sign}_diffby are both empty: name at least one column.")
            if both := sorted(set(same) & set(differ)):
                raise ValueError(
                    f"{', '.join(both)} is in {sign}_sameby and in {sign}_diffby: no pair agrees and differs in a "
                    "column. Take it out of one of them."
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a rule names, once."""
        return tuple(dict.fromkeys((*self.pos_sameby, *self.pos_diffby, *self.neg_sameby, *self.neg_diffby)))


@dataclass(frozen=True, slots=True)
class Partners:
    """The partners of any row under one pair of rules (`sameby`, `diffby`)."""

    group: Codes
    """(N,) number of the row's group: rows that agree in `sameby`."""
    members: Codes
    """(N,) rows, group after group, ascending within each."""
    starts: NDArray[np.int64]
    """(groups + 1,) start of each group in `members`."""
    place: Codes
    """(N,) position of each row in `members`."""
    differ: tuple[Codes, ...]
    """For each column of `diffby`, (N,) codes in the order of `members`."""

    def of(self, row: int) -> Codes:
        """Ascending rows; without `diffby` they include the row itself, which the caller leaves out."""
        group = self.group[row]
        of_group = slice(self.starts[group], self.starts[group + 1])
        members = self.members[of_group]
        keep: NDArray[np.bool_] | None = None
        for codes in self.differ:
            differs = codes[of_group] != codes[self.place[row]]
            keep = differs if keep is None else keep & differs
        return members if keep is None else members[keep]

    def is_partner(self, row: int, others: Codes) -> NDArray[np.bool_]:
        """Which of `others` are partners of the row; a row is no partner of itself."""
        keep = (self.group[others] == self.group[row]) & (others != row)
        for codes in self.differ:
            keep &= codes[self.place[others]] != codes[self.place[row]]
        return np.asarray(keep)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The partners of all rows. Small and picklable, so that a task on a block of rows can take all of it."""

    rules: PairRules
    positive: Partners
    negative: Partners
    order: Codes
    """(N,) rows, ordered by the group of negatives, then by partners."""
    class_starts: NDArray[np.int64]
    """(classes + 1,) start in `order` of each class of rows with the same partners, apart from themselves."""
    may_overlap: bool
    """Whether the columns allow a pair to be both positive and negative."""

    def __len__(self) -> int:
        return len(self.order)


def find_pairs(metadata: Metadata, rules: PairRules) -> Pairs:
    """Index the metadata for the rules.

    Args:
        metadata: N rows with every column of the rules, without nulls.

    Raises:
        ValueError: A column is missing, holds lists or a null, or the table has no row.
    """
    table = as_table(metadata)
    codes = {name: column_codes(table, name) for name in rules.columns}
    n_rows = table.num_rows
    if n_rows == 0:
        raise ValueError("the metadata have no row. Expected one for each vector.")
    positive = _partners(codes, rules.pos_sameby, rules.pos_diffby, n_rows)
    negative = _partners(codes, rules.neg_sameby, rules.neg_diffby, n_rows)
    # lexsort takes its last key first: rows of one group of negatives (a plate) stay together.
    keys = [codes[name] for name in (*rules.neg_diffby, *rules.pos_diffby)] + [positive.group, negative.group]
    order = np.lexsort(keys)
    changes = np.zeros(n_rows - 1, dtype=bool)
    for key in keys:
        changes |= np.diff(key[order]) != 0
    class_starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [n_rows]])
    separated = set(rules.pos_sameby) & set(rules.neg_diffby) or set(rules.pos_diffby) & set(rules.neg_sameby)
    return Pairs(rules, positive, negative, order.astype(np.int32), class_starts.astype(np.int64), not separated)


def as_table(metadata: Metadata) -> pa.Table:
    """An Arrow table of the metadata; the index of a DataFrame is left out.

    Raises:
        ValueError: A column of a DataFrame mixes types.
    """
    if isinstance(metadata, pa.Table):
        return metadata
    try:
        return pa.Table.from_pandas(metadata, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"the metadata mix types in a column: {'; '.join(map(str, error.args))}.") from error


def column_codes(table: pa.Table, name: str) -> Codes:
    """(N,) equal numbers for equal values of one column, in order of first appearance.

    Raises:
        ValueError: The column is missing, holds lists, or has a null.
    """
    values = column(table, name).to_pandas()
    try:
        codes, _ = pd.factorize(values)
    except TypeError as error:
        raise ValueError(
            f"column {name!r} holds values that cannot be compared ({error}). Expected one text, number or truth value "
            "a row: explode a column of lists first."
        ) from error
    rows = np.flatnonzero(codes < 0)
    if len(rows):
        raise ValueError(
            f"column {name!r} is null in {len(rows)} of {len(codes)} rows, first in row {rows[0]}. A null neither "
            "agrees nor differs: fill it in or leave these rows out."
        )
    return np.asarray(codes, np.int32)


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column by name; where it is missing, a ValueError lists the columns of the table."""
    if name not in table.column_names:
        raise ValueError(
            f"the table has no column {name!r}; it has {', '.join(table.column_names) or 'none'}. Expected the name of "
            "a column, not a condition on it: filter the rows before."
        )
    return table[name]


def joint_codes(codes: Sequence[Codes], n_rows: int) -> Codes:
    """(N,) equal numbers, from 0 up, for rows that agree in all columns; all rows agree in no columns."""
    joint = np.zeros(n_rows, np.int64)
    for each in codes:
        # Renumbered after every column, so that the product stays far below 2**63.
        _, joint = np.unique(joint * (int(each.max(initial=0)) + 1) + each, return_inverse=True)
    return joint.astype(np.int32)


def _partners(codes: dict[str, Codes], sameby: Sequence[str], diffby: Sequence[str], n_rows: int) -> Partners:
    group = joint_codes([codes[name] for name in sameby], n_rows)
    members = np.argsort(group, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(group))])
    place = np.empty(n_rows, np.int32)
    place[members] = np.arange(n_rows, dtype=np.int32)
    return Partners(group, members, starts, place, tuple(codes[name][members] for name in diffby))
