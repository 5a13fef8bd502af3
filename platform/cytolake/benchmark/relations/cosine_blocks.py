"""Order statistics of all pairwise cosines, one block of rows at a time, without sorting or storing all of them.

A sample of pairs brackets each order statistic. One pass over all pairs counts the cosines below its bracket and stores
those inside, about half a percent. The result equals that of sorting all cosines: where a bracket misses, the pass is
repeated with wider ones. A pass computes every cosine once, so the cosines of requested pairs are bit-identical to
those that were counted.

Cosines are rounded to multiples of 2**-36 (1.5e-11). Equal vectors, and multiples of one vector, then tie exactly,
which float64 products do not guarantee: a library sums the edge of a matrix in another order than its middle.

Source: bracketing by a sample is the selection of Floyd and Rivest 1975, doi:10.1145/360680.360691.

Letters: N entities, M of them in the null (the first M rows), D features, E order statistics, Q requested pairs.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.threads import limited_threads

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

GRID = 2.0**-36
ROWS, COLUMNS = 512, 2048  # of one product: 8 MB. Narrower ones multiply slower, wider ones leave the cache
ROWS_COUNTED = 64  # at once: 1 MB, which stays in the cache of a core for every bracket
HELD_WHOLE = 2**20  # up to this many pairs all cosines are stored: a bracket would save nothing
SAMPLED = 2**18  # a quantile of 0.05 is then known to 0.04 %
MARGIN_SD = 6.0  # a bracket misses once in 10**8 times
_ROUNDER = 1.5 * 2.0**16  # adding it leaves no bits below 2**-36, and taking it away again is exact


@dataclass(frozen=True, slots=True)
class BlockTask:
    """Input of one block of at most `ROWS` rows."""

    first_row: int
    end_row: int
    low: Floats
    """(E,) lower ends of the brackets."""
    high: Floats
    """(E,) upper ends."""
    query_i: Indices
    """(Q,) smaller row of each requested pair, all in this block; in the order of `_tile_of`."""
    query_j: Indices
    """(Q,) larger row."""


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Counts and cosines of the pairs of one block."""

    below: Indices
    """(E,) pairs below the bracket."""
    at_low: Indices
    """(E,) pairs equal to its lower end."""
    at_high: Indices
    """(E,) pairs equal to its upper end, where the two ends differ."""
    inside: tuple[Floats, ...]
    """Cosines between the ends, for each of the E brackets."""
    query: Floats
    """(Q,) cosines of the requested pairs."""


def pair_cosines(unit_ND: Floats, i: Indices, j: Indices) -> Floats:
    """(Q,) rounded cosines of single pairs of rows, for pairs outside the null."""
    cosines = np.empty(len(i))
    for start in range(0, len(i), 2**14):
        part = slice(start, start + 2**14)
        cosines[part] = np.einsum("qd,qd->q", unit_ND[i[part]], unit_ND[j[part]])
    return round_to_grid(cosines)


def round_to_grid(cosines: Floats) -> Floats:
    """The nearest multiples of 2**-36."""
    return (cosines + _ROUNDER) - _ROUNDER


def order_statistics(
    unit_MD: Floats,
    ranks: Sequence[int],
    query_i: Indices,
    query_j: Indices,
    sampled: int = SAMPLED,
    margin_sd: float = MARGIN_SD,
) -> tuple[Floats, Floats]:
    """Cosines of given ranks among all M (M - 1) / 2, and those of given pairs.

    Args:
        unit_MD: (M, D) from `statistics.unit_vectors.unit_vectors_of_any_size`.
        ranks: E ranks from 0, the lowest cosine, to M (M - 1) / 2 - 1.
        query_i: (Q,) one row of each requested pair.
        query_j: (Q,) the other row, never the same.
        sampled: Pairs drawn to bracket the order statistics; affects the time only.
        margin_sd: Width of a bracket in standard errors of the sample; affects the time only.

    Returns:
        (E,) order statistics as after sorting, ties included, and (Q,) cosines, bit-identical to the ranked ones.
    """
    n_pairs = len(unit_MD) * (len(unit_MD) - 1) // 2
    if any(not 0 <= rank < n_pairs for rank in ranks):
        raise ValueError(f"ranks {list(ranks)} of {n_pairs} pairs, expected 0 to {n_pairs - 1}.")
    wanted = np.asarray(ranks, np.int64)
    i, j = np.minimum(query_i, query_j), np.maximum(query_i, query_j)
    order = np.argsort(_tile_of(i, j, len(unit_MD)), kind="stable")
    sample = _sampled_cosines(unit_MD, sampled) if n_pairs > HELD_WHOLE else np.empty(0)
    low_E, high_E = np.full(len(wanted), -np.inf), np.full(len(wanted), np.inf)
    if len(sample):
        low_E, high_E = _brackets(sample, wanted, n_pairs, margin_sd)
    while True:
        counts = _pass(unit_MD, low_E, high_E, i[order], j[order])
        below_E, at_low_E, at_high_E = (
            np.sum([getattr(block, name) for block in counts], axis=0) for name in ("below", "at_low", "at_high")
        )
        inside = [np.concatenate([block.inside[e] for block in counts]) for e in range(len(wanted))]
        n_held_E = at_low_E + at_high_E + np.array([len(each) for each in inside], np.int64)
        misses_E = (wanted < below_E) | (wanted >= below_E + n_held_E)
        if not misses_E.any():
            break
        margin_sd = max(1.0, margin_sd) * 8
        wider_low_E, wider_high_E = _brackets(sample, wanted, n_pairs, margin_sd)
        low_E, high_E = np.where(misses_E, wider_low_E, low_E), np.where(misses_E, wider_high_E, high_E)
    statistics = np.empty(len(wanted))
    for e, position in enumerate((wanted - below_E).tolist()):
        if position < at_low_E[e]:
            statistics[e] = low_E[e]
        elif position < at_low_E[e] + len(inside[e]):
            statistics[e] = np.partition(inside[e], position - int(at_low_E[e]))[position - int(at_low_E[e])]
        else:
            statistics[e] = high_E[e]
    cosines = np.empty(len(i))
    cosines[order] = np.concatenate([block.query for block in counts])
    return statistics, cosines


def measure_block(unit_MD: Floats, task: BlockTask) -> BlockCounts:
    """Count the cosines of a block's rows with all later rows."""
    brackets = list(zip(task.low.tolist(), task.high.tolist(), strict=True))
    below_E, at_low_E, at_high_E = (np.zeros(len(brackets), np.int64) for _ in range(3))
    inside: list[list[Floats]] = [[np.empty(0)] for _ in brackets]
    products = np.empty(ROWS * COLUMNS)
    tiles_Q = _tile_of(task.query_i, task.query_j, len(unit_MD))
    query_Q = np.empty(len(tiles_Q))
    row, rows = task.first_row, unit_MD[task.first_row : task.end_row]
    for tile_column in range(row // COLUMNS * COLUMNS, len(unit_MD), COLUMNS):
        column = max(row, tile_column)
        columns = unit_MD[column : tile_column + COLUMNS]
        product = products[: len(rows) * len(columns)].reshape(len(rows), len(columns))
        np.matmul(rows, columns.T, out=product)
        tile = int(_tile_of(np.array([row]), np.array([column]), len(unit_MD))[0])
        here = slice(*np.searchsorted(tiles_Q, [tile, tile + 1]).tolist())
        query_Q[here] = product[task.query_i[here] - row, task.query_j[here] - column]
        if column == row:  # on the diagonal: each pair once, and no row with itself
            product[np.tri(*product.shape, dtype=bool)] = np.nan  # neither below nor above any bound
        for first, (e, (low, high)) in itertools.product(range(0, len(rows), ROWS_COUNTED), enumerate(brackets)):
            cosines = product[first : first + ROWS_COUNTED]
            # Few cosines lie inside, and only they are rounded: one step further out, rounding has no effect.
            is_below = cosines <= low - GRID
            held = round_to_grid(cosines[(cosines < high + GRID) ^ is_below])
            below_E[e] += np.count_nonzero(is_below) + np.count_nonzero(held < low)
            at_low_E[e] += np.count_nonzero(held == low)
            at_high_E[e] += np.count_nonzero(held == high) if high > low else 0
            inside[e].append(held[(held > low) & (held < high)])
    return BlockCounts(
        below_E, at_low_E, at_high_E, tuple(np.concatenate(parts) for parts in inside), round_to_grid(query_Q)
    )


def measure_blocks(unit_MD: Floats, tasks: Sequence[BlockTask]) -> list[BlockCounts]:
    """`measure_block` of every task, on all cores of this process; one core for each product."""
    n_threads = min(
        len(tasks), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with limited_threads(), ThreadPoolExecutor(n_threads) as pool:
        return list(pool.map(lambda task: measure_block(unit_MD, task), tasks))


def _pass(unit_MD: Floats, low_E: Floats, high_E: Floats, i: Indices, j: Indices) -> list[BlockCounts]:
    tasks = []
    for first_row in range(0, len(unit_MD), ROWS):
        end_row = min(first_row + ROWS, len(unit_MD))
        here = slice(*np.searchsorted(i // ROWS, [first_row // ROWS, first_row // ROWS + 1]).tolist())
        tasks.append(BlockTask(first_row, end_row, low_E, high_E, i[here], j[here]))
    return measure_blocks(unit_MD, tasks)


def _tile_of(i: Indices, j: Indices, n_rows: int) -> Indices:
    """(Q,) number of the product that holds each pair, ordered by block of rows, then by columns."""
    n_columns = -(-n_rows // COLUMNS)
    tiles: Indices = i // ROWS * n_columns + j // COLUMNS
    return tiles


def _sampled_cosines(unit_MD: Floats, sampled: int) -> Floats:
    """(sampled,) sorted cosines of random pairs; the same pairs in every call."""
    random = np.random.default_rng(0)
    i = random.integers(0, len(unit_MD), sampled)
    j = (i + random.integers(1, len(unit_MD), sampled)) % len(unit_MD)
    return np.sort(pair_cosines(unit_MD, i, j))


def _brackets(sample: Floats, ranks: Indices, n_pairs: int, margin_sd: float) -> tuple[Floats, Floats]:
    """(E,) lower and (E,) upper ends that contain the order statistics with high probability."""
    share_E = (ranks + 0.5) / n_pairs
    margin_E = margin_sd * np.sqrt(share_E * (1 - share_E) / len(sample)) * len(sample)
    first_E = np.floor(share_E * len(sample) - margin_E).astype(np.int64) - 1
    last_E = np.ceil(share_E * len(sample) + margin_E).astype(np.int64)
    low_E = np.where(first_E >= 0, sample[np.clip(first_E, 0, len(sample) - 1)], -np.inf)
    high_E = np.where(last_E < len(sample), sample[np.clip(last_E, 0, len(sample) - 1)], np.inf)
    return low_E, high_E
