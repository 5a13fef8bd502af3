"""Average precision of each row as a query that ranks its positives and negatives by cosine similarity.

Equal to copairs 0.5.5 (Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2) for vectors of 64-bit floats, in bounded
memory: blocks of rows are compared with the rows that they need, and ranks are counted without a list of all pairs.
Blocks are independent and can run in any order.

Ties. copairs stores a similarity s as a 32-bit float, orders by the 32-bit 1 - s, and ranks positives before negatives
of the same value (determined by experiment). This module does the same, which favours a collapsed encoder: equal
vectors have an average precision of 1. `average_precision_ties_last` ranks negatives first; where the two differ, ties
determine the score.

Differences from copairs: a row with positives and no negative has no average precision (copairs: 1); a vector of length
0 and a pair that is both positive and negative are errors (copairs: NaN, and counted twice).

Shapes: N rows, D features, R rows of a block or class, U columns of a block, P positives, M negatives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.null_distribution import normalise
from cytolake.benchmark.retrieval.pairs import Codes, Metadata, PairRules, Pairs, as_table, find_pairs
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
Keys = NDArray[np.float32]

COLUMNS = (
    "n_positives",
    "n_total",
    "average_precision",
    "average_precision_ties_last",
    "normalised_average_precision",
    "reason",
)
COUNT_UP_TO = 20  # positives: each takes two comparisons, 1/40 of a sort of 100,000 negatives (measured)
MAX_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class BlockScores:
    """Scores of one block of rows."""

    rows: Codes
    """(R,) row numbers."""
    n_positives: NDArray[np.int64]
    """(R,)"""
    n_negatives: NDArray[np.int64]
    """(R,)"""
    average_precision: Floats
    """(R,) 0..1, NaN without positives or negatives; positives first among equal similarities."""
    average_precision_ties_last: Floats
    """(R,) the same with negatives first."""


def average_precision(
    metadata: Metadata,
    vectors: NDArray[np.floating],
    rules: PairRules,
    *,
    included: NDArray[np.bool_] | None = None,
    block_mb: int = 128,
) -> pa.Table:
    """Average precision of every row.

    Args:
        metadata: N rows.
        vectors: (N, D) finite, not 0; only their directions count.
        rules: Which rows are positives and negatives of a row.
        included: (N,) rows that take part; the others get the reason `not compared`. All where None.
        block_mb: Megabytes of one block's similarities. The peak is about twice this, plus 8 N D bytes of vectors.

    Returns:
        The metadata with `n_positives`, `n_total` (positives and negatives), `average_precision`,
        `average_precision_ties_last`, `normalised_average_precision` (0 is chance, 1 is perfect) and `reason`. A row
        without positives or negatives has nulls and a reason; the reason of a scored row is null.

    Raises:
        ValueError: Vectors that are not finite, 0, or not one for each row; a column missing or null; a pair that is
            both positive and negative; no row left.
    """
    table = as_table(metadata)
    n_rows = table.num_rows
    taken = np.ones(n_rows, dtype=bool) if included is None else np.asarray(included, dtype=bool)
    if taken.shape != (n_rows,) or len(vectors) != n_rows:
        raise ValueError(
            f"{n_rows} rows of metadata, {len(vectors)} vectors and {len(taken)} marks of included rows. Expected as "
            "many of each."
        )
    rows = np.flatnonzero(taken)
    pairs = find_pairs(table if len(rows) == n_rows else table.take(rows), rules)
    unit_ND = unit_vectors(vectors if len(rows) == n_rows else vectors[rows], zero_rows="refuse", row_numbers=rows)
    blocks = (score_block(unit_ND, pairs, start, stop) for start, stop in block_ranges(pairs, block_mb))
    return scores_table(table, blocks, rows)


def block_ranges(pairs: Pairs, block_mb: int = 128) -> list[tuple[int, int]]:
    """Ranges of `pairs.order` that cover all rows; the similarities of one with all rows fit in `block_mb`."""
    n_rows = len(pairs)
    size = min(MAX_BLOCK_ROWS, max(1, block_mb * 1_000_000 // (8 * n_rows)))
    return [(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def score_block(unit_ND: Floats, pairs: Pairs, start: int, stop: int) -> BlockScores:
    """Average precision of the rows `pairs.order[start:stop]`.

    Args:
        unit_ND: (N, D) rows of length 1.
        pairs: Positives and negatives of every row.
        start: First position in `pairs.order`.
        stop: Position after the last.
    """
    rows = pairs.order[start:stop]
    n_positives, n_negatives = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    first, last = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    classes = []
    is_needed = np.zeros(len(pairs), dtype=bool)
    for low, high in _class_ranges(pairs, start, stop):
        positives, negatives = pairs.positive.of(rows[low]), pairs.negative.of(rows[low])
        # Without diffby a row is among its own partners.
        n_positives[low:high] = len(positives) - (not pairs.rules.pos_diffby)
        n_negatives[low:high] = len(negatives) - (not pairs.rules.neg_diffby)
        if n_positives[low] and n_negatives[low]:
            if pairs.may_overlap:
                _refuse_overlap(pairs, int(rows[low]), positives)
            is_needed[positives] = is_needed[negatives] = True
            classes.append((low, high, positives, negatives))
    if not classes:
        return BlockScores(rows, n_positives, n_negatives, first, last)
    scored = np.concatenate([np.arange(low, high) for low, high, *_ in classes])
    needed = np.flatnonzero(is_needed)
    if 2 * len(needed) > len(pairs):  # most rows are needed: a copy would cost more than it saves
        needed = np.arange(len(pairs))
    columns = unit_ND if len(needed) == len(pairs) else unit_ND[needed]
    place = np.full(len(pairs), -1, np.int32)
    place[needed] = np.arange(len(needed), dtype=np.int32)
    keys_RU = _tie_keys(unit_ND[rows[scored]], columns)
    done = 0
    for low, high, positives, negatives in classes:
        of_class = keys_RU[done : done + high - low]
        done += high - low
        own = place[rows[low:high]]
        first[low:high], last[low:high] = _class_scores(
            of_class,
            place[positives],
            place[negatives],
            own_positive=None if pairs.rules.pos_diffby else own,
            own_negative=None if pairs.rules.neg_diffby else own,
        )
    return BlockScores(rows, n_positives, n_negatives, first, last)


def scores_table(
    metadata: Metadata, blocks: Iterable[BlockScores], included_rows: NDArray[np.intp] | None = None
) -> pa.Table:
    """The metadata with the columns `COLUMNS`, in the order of the metadata, from blocks in any order.

    Args:
        metadata: N rows.
        blocks: Blocks that cover every included row once.
        included_rows: Rows of the metadata that the row numbers of the blocks refer to; all where None.

    Raises:
        ValueError: The metadata already have one of the columns, or the blocks do not cover the rows.
    """
    table = as_table(metadata)
    if taken := [name for name in COLUMNS if name in table.column_names]:
        raise ValueError(f"the metadata already have the columns {', '.join(taken)}: drop or rename them.")
    n_rows = table.num_rows
    which = np.arange(n_rows) if included_rows is None else included_rows
    counts = np.zeros((2, n_rows), np.int64)
    values = np.full((2, n_rows), np.nan)
    times = np.zeros(n_rows, np.int64)
    for block in blocks:
        rows = which[block.rows]
        times[rows] += 1
        counts[:, rows] = block.n_positives, block.n_negatives
        values[:, rows] = block.average_precision, block.average_precision_ties_last
    if (times[which] != 1).any():
        row = int(which[np.flatnonzero(times[which] != 1)[0]])
        raise ValueError(f"row {row} is in {times[row]} blocks, expected 1. Score every range of block_ranges once.")
    is_scored = ~np.isnan(values[0])
    normalised = np.full(n_rows, np.nan)
    normalised[is_scored] = normalise(values[0, is_scored], counts[0, is_scored], counts.sum(axis=0)[is_scored])
    columns = (
        pa.array(counts[0]),
        pa.array(counts.sum(axis=0)),
        *(pa.array(each, mask=~is_scored) for each in (*values, normalised)),
        pa.array(_reasons(counts, which), pa.string()),
    )
    for name, column in zip(COLUMNS, columns, strict=True):
        table = table.append_column(name, column)
    return table


def _reasons(counts: NDArray[np.int64], included_rows: NDArray[np.intp]) -> NDArray[np.object_]:
    reasons = np.full(counts.shape[1], None, dtype=object)
    has_positive, has_negative = counts > 0
    reasons[~has_positive & has_negative] = "no positive"
    reasons[has_positive & ~has_negative] = "no negative"
    reasons[~has_positive & ~has_negative] = "no positive and no negative"
    is_included = np.zeros(counts.shape[1], dtype=bool)
    is_included[included_rows] = True
    reasons[~is_included] = "not compared"
    return reasons


def _class_ranges(pairs: Pairs, start: int, stop: int) -> list[tuple[int, int]]:
    """Parts of the block whose rows have the same partners, as offsets from the block's start."""
    inner = pairs.class_starts[np.searchsorted(pairs.class_starts, start, "right") :]
    bounds = [start, *inner[inner < stop].tolist(), stop]
    return [(low - start, high - start) for low, high in pairwise(bounds)]


def _refuse_overlap(pairs: Pairs, row: int, positives: Codes) -> None:
    both = positives[pairs.negative.is_partner(row, positives)]
    if len(both):
        raise ValueError(
            f"rows {row} and {both[0]} (of those compared) are a positive and a negative pair. Add to neg_diffby what "
            f"makes a pair positive: {', '.join(pairs.rules.pos_sameby) or 'a column'}."
        )


def _tie_keys(rows_RD: Floats, columns_UD: Floats) -> Keys:
    """(R, U) 1 - cosine, rounded as copairs does: pairs with the same key are tied."""
    keys = (rows_RD @ columns_UD.T).astype(np.float32)
    return np.asarray(np.subtract(np.float32(1), keys, out=keys))


def _class_scores(
    keys_RU: Keys, positives: Codes, negatives: Codes, *, own_positive: Codes | None, own_negative: Codes | None
) -> tuple[Floats, Floats]:
    """(R,) average precision with positives and with negatives first among ties, of rows with the same partners.

    Args:
        keys_RU: Smaller is more alike.
        positives: (P,) columns.
        negatives: (M,) columns.
        own_positive: (R,) column of each row itself where that is among `positives`; it does not count.
        own_negative: The same of `negatives`.
    """
    positive_RP = keys_RU[:, positives]
    if own_positive is not None:
        positive_RP[positives[None, :] == own_positive[:, None]] = np.inf
    positive_RP.sort(axis=1)
    if own_positive is not None:
        positive_RP = positive_RP[:, :-1]
    # Counting all columns and subtracting the few others avoids a copy of many negatives.
    is_rest = 2 * len(negatives) > keys_RU.shape[1]
    chosen = negatives
    if is_rest:
        is_negative = np.zeros(keys_RU.shape[1], dtype=bool)
        is_negative[negatives] = True
        chosen = np.flatnonzero(~is_negative).astype(np.int32)
    below_RP, up_to_RP = np.empty(positive_RP.shape, np.int64), np.empty(positive_RP.shape, np.int64)
    hits = np.arange(1, positive_RP.shape[1] + 1)
    for i, keys_P in enumerate(positive_RP):
        few = keys_RU[i, chosen]
        if len(keys_P) > COUNT_UP_TO:
            below, up_to = _counts_by_sorting(np.delete(keys_RU[i], chosen) if is_rest else few, keys_P)
        else:
            below, up_to = _counts(few, keys_P)
            if is_rest:
                all_below, all_up_to = _counts(keys_RU[i], keys_P)
                below, up_to = all_below - below, all_up_to - up_to
        if own_negative is not None:
            own = keys_RU[i, own_negative[i]]
            below, up_to = below - (own < keys_P), up_to - (own <= keys_P)
        below_RP[i], up_to_RP[i] = below, up_to
    return (hits / (hits + below_RP)).mean(axis=1), (hits / (hits + up_to_RP)).mean(axis=1)


def _counts(keys: Keys, bounds_P: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(P,) numbers of keys below each bound, and of keys not above it."""
    below = np.array([np.count_nonzero(keys < bound) for bound in bounds_P], np.int64)
    return below, np.array([np.count_nonzero(keys <= bound) for bound in bounds_P], np.int64)


def _counts_by_sorting(keys: Keys, bounds_P: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ascending = np.sort(keys)
    return np.searchsorted(ascending, bounds_P, "left"), np.searchsorted(ascending, bounds_P, "right")
