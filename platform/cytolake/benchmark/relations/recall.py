"""Relationship recall: the share of known gene pairs in the tails of the cosines of all pairs.

A known pair is recalled when the cosine of its two vectors lies in the lowest or highest tail of the cosines of all
pairs of the map. A map of random vectors has the recall of the tails: 0.10 at (0.05, 0.95).

Source: the definition of Celik et al. 2024, doi:10.1371/journal.pcbi.1012463 (the known-relationship benchmark of
EFAAR). Order statistics instead of a sort, intervals, and the matched baseline here are ours.

Letters: N entities, M of them in the null, D features, P known pairs, Q cosines, T pairs of thresholds, R draws.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.relations.cosine_blocks import Floats, Indices, order_statistics, pair_cosines
from cytolake.benchmark.relations.relation_files import Relations
from cytolake.catalog.ids import content_id
from cytolake.statistics.intervals import Interval, percentile_interval
from cytolake.statistics.p_values import permutation_p_value
from cytolake.statistics.unit_vectors import unit_vectors_of_any_size

Thresholds = tuple[float, float]
ALL, IN_NULL = "all", "in_null"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """Thresholds of recall, its interval and its random baseline."""

    thresholds: tuple[Thresholds, ...] = ((0.05, 0.95), (0.1, 0.9))
    """Shares of the null: a pair is recalled up to the lower one or from the upper one on."""
    min_entities: int = 20
    """Fewest entities in the map: fewer have too few pairs for a tail."""
    bootstrap_draws: int = 1000
    """Resamples of genes behind the 95 % interval; 0 for none."""
    random_draws: int = 20
    """Random maps of the same genes and pairs, see `RelationRecall.random`; 0 for none."""
    seed: int = 0
    """Seed of both kinds of draws."""

    def __post_init__(self) -> None:
        for low, high in self.thresholds:
            if not 0 <= low < high <= 1:
                raise ValueError(f"recall.thresholds has ({low}, {high}), expected 0 <= lower < upper <= 1.")
        if not self.thresholds:
            raise ValueError("recall.thresholds is empty, expected pairs such as (0.05, 0.95).")
        for name, least in (("min_entities", 2), ("bootstrap_draws", 0), ("random_draws", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"recall.{name} is {getattr(self, name)}, expected {least} or more.")


@dataclass(frozen=True, slots=True)
class RelationRecall:
    """Recall of one source at one pair of thresholds."""

    source: str
    null: str
    """`all`: every entity of the map is in the null; `in_null`: those of the argument."""
    thresholds: Thresholds
    edges: tuple[float, float]
    """A pair is recalled when its cosine is below the first value or above the second."""
    n_pairs: int
    """Known pairs with both genes in the map."""
    n_genes: int
    """Genes in those pairs."""
    n_null_pairs: int
    """Pairs in the null."""
    n_low: int
    """Recalled pairs in the lower tail, with opposite vectors."""
    n_high: int
    """Recalled pairs in the upper tail, with similar vectors."""
    recall: Interval
    """(n_low + n_high) / n_pairs with its 95 % interval; NaN where the map has no pair of this source."""
    random: float
    """Mean recall after the vectors of the source's genes are shuffled among them; NaN without draws.

    Genes, their vectors and their numbers of partners stay, so its excess over the tails is not due to the pairs.
    """
    random_p_value: float
    """(1 + draws with as high a recall or a higher one) / (1 + draws)."""


def relationship_recall(
    vectors_ND: NDArray[Any],
    entities: Sequence[str],
    relations: Sequence[Relations],
    config: RecallConfig | None = None,
    *,
    in_null: NDArray[np.bool_] | None = None,
    with_all: bool = False,
) -> list[RelationRecall]:
    """Recall of every source at every pair of thresholds, in this order.

    All cosines are counted once for each null, in blocks of rows, and not stored: see `cosine_blocks`.

    Args:
        vectors_ND: (N, D) one vector for each entity, without negative controls. A zero vector has cosine 0 to all.
        entities: (N,) names, each once.
        relations: Sources of known pairs, each with another name.
        config: Thresholds and draws; the defaults where None.
        in_null: (N,) entities whose pairs are the null; all where None. Leave out controls and other kinds of
            perturbations, because compounds among genes move the tails. All known pairs are scored, inside the null or
            not.
        with_all: With `in_null`, report the null of all entities too, first, as published figures often do.

    Raises:
        ValueError: A duplicate name, a vector that is not finite, too few entities, or shapes that do not fit.
    """
    config = config or RecallConfig()
    _check(vectors_ND, entities, relations, config, in_null)
    unit_ND = unit_vectors_of_any_size(vectors_ND)
    nulls = [(ALL, np.ones(len(entities), bool))] if in_null is None or with_all else []
    if in_null is not None:
        nulls.append((IN_NULL, np.asarray(in_null, bool)))
    row_of = {entity: row for row, entity in enumerate(entities)}
    known = [_KnownPairs.of(each, row_of, config) for each in relations]
    per_null = [_recall_in(unit_ND, name, mask, known, config) for name, mask in nulls]
    return [row for rows in per_null for row in rows]


def in_tails(null: Floats, queries: Floats, thresholds: Thresholds) -> NDArray[np.bool_]:
    """Whether each query is recalled, for maps whose cosines fit in memory.

    With `right` the share of the null up to a query and `left` the share below it, the query is recalled when
    right <= lower or left >= upper. Ties count against it: a constant null recalls nothing.

    Args:
        null: Any shape, at least one value.
        queries: Any shape.
        thresholds: Lower and upper share of the null.
    """
    ranks = tail_ranks(np.size(null), thresholds)
    needed = sorted({rank for rank in ranks if rank is not None})
    statistics = np.partition(null, needed, axis=None)[needed].tolist() if needed else []
    return _outside(queries, _edges(ranks, dict(zip(needed, statistics, strict=True))))


def tail_ranks(n_null: int, thresholds: Thresholds) -> tuple[int | None, int | None]:
    """Ranks from 0 of the null values that a recalled query is below, or above; None where every query is recalled.

    Below s[k] with the largest k such that k / n <= lower, above s[l - 1] with the smallest l such that l / n >= upper.
    Quotients are compared, because lower * n can round to the wrong side of a whole number, as 0.29 * 100 does.
    """
    lower, upper = thresholds
    k = min(n_null, math.floor(lower * n_null) + 1)
    while k / n_null > lower:
        k -= 1
    at_least = max(0, math.ceil(upper * n_null) - 1)
    while at_least / n_null < upper:
        at_least += 1
    return (k if k < n_null else None), (at_least - 1 if at_least > 0 else None)


@dataclass(frozen=True, slots=True)
class _KnownPairs:
    """The pairs of a source that are in the map, and the same pairs after shuffling of genes."""

    source: str
    i: Indices
    """((1 + random draws) * P,) rows of the map; the first P are the known pairs."""
    j: Indices
    n_pairs: int

    @staticmethod
    def of(relations: Relations, row_of: dict[str, int], config: RecallConfig) -> _KnownPairs:
        all_P2 = np.array([row_of.get(gene, -1) for pair in relations.pairs for gene in pair], np.int64).reshape(-1, 2)
        pairs_P2 = all_P2[(all_P2 >= 0).all(axis=1)]
        genes, member_P2 = np.unique(pairs_P2, return_inverse=True)
        random = _generator(config.seed, "random maps", relations.source)
        drawn = [random.permutation(genes)[member_P2.reshape(-1, 2)] for _ in range(config.random_draws)]
        all_Q2 = np.concatenate([pairs_P2, *drawn])
        return _KnownPairs(relations.source, all_Q2[:, 0], all_Q2[:, 1], len(pairs_P2))


def _recall_in(
    unit_ND: Floats,
    null: str,
    in_null: NDArray[np.bool_],
    known: Sequence[_KnownPairs],
    config: RecallConfig,
) -> list[RelationRecall]:
    """Rows of all sources for one null."""
    members = np.flatnonzero(in_null)
    n_null_pairs = len(members) * (len(members) - 1) // 2
    ranks = [tail_ranks(n_null_pairs, each) for each in config.thresholds]
    needed = sorted({rank for pair in ranks for rank in pair if rank is not None})
    i, j = (np.concatenate([np.empty(0, np.int64), *(getattr(each, side) for each in known)]) for side in ("i", "j"))
    place_N = np.cumsum(in_null) - 1
    is_ranked_Q = in_null[i] & in_null[j]
    cosines_Q = np.empty(len(i))
    statistics, cosines_Q[is_ranked_Q] = order_statistics(
        unit_ND if in_null.all() else unit_ND[members],
        needed,
        place_N[i[is_ranked_Q]],
        place_N[j[is_ranked_Q]],
    )
    cosines_Q[~is_ranked_Q] = pair_cosines(unit_ND, i[~is_ranked_Q], j[~is_ranked_Q])
    statistic_of = dict(zip(needed, statistics.tolist(), strict=True))
    edges = [_edges(pair, statistic_of) for pair in ranks]
    rows = []
    ends = np.cumsum([len(each.i) for each in known])
    for pairs, cosines in zip(known, np.split(cosines_Q, ends[:-1]), strict=True):
        rows += _rows(pairs, cosines.reshape(1 + config.random_draws, pairs.n_pairs), null, n_null_pairs, edges, config)
    return rows


def _rows(
    pairs: _KnownPairs,
    cosines_RP: Floats,
    null: str,
    n_null_pairs: int,
    edges: Sequence[tuple[float, float]],
    config: RecallConfig,
) -> list[RelationRecall]:
    """Results of one source; the first row of cosines is of the known pairs, the others of shuffled genes."""
    i, j = pairs.i[: pairs.n_pairs], pairs.j[: pairs.n_pairs]
    genes = np.unique(np.concatenate([i, j]))
    known_P = cosines_RP[0]
    is_recalled_TP = np.array([_outside(known_P, each) for each in edges])
    intervals = _bootstrap_over_genes(
        np.searchsorted(genes, i), np.searchsorted(genes, j), is_recalled_TP, config, pairs.source
    )
    rows = []
    for thresholds, (low, high), interval in zip(config.thresholds, edges, intervals, strict=True):
        random_R = _outside(cosines_RP[1:], (low, high)).mean(axis=1) if pairs.n_pairs else np.empty(0)
        rows.append(
            RelationRecall(
                source=pairs.source,
                null=null,
                thresholds=thresholds,
                edges=(low, high),
                n_pairs=pairs.n_pairs,
                n_genes=len(genes),
                n_null_pairs=n_null_pairs,
                n_low=int(np.sum(known_P < low)),
                n_high=int(np.sum((known_P > high) & ~(known_P < low))),
                recall=interval,
                random=float(random_R.mean()) if len(random_R) else math.nan,
                random_p_value=permutation_p_value(interval.value, random_R) if len(random_R) else math.nan,
            )
        )
    return rows


def _bootstrap_over_genes(
    i: Indices, j: Indices, is_recalled_TP: NDArray[np.bool_], config: RecallConfig, source: str
) -> list[Interval]:
    """(T,) recall with a 95 % percentile interval from resampled genes.

    Genes, not pairs, are resampled, because the pairs of one gene are not independent. A gene drawn w times counts w
    times in each of its pairs. The edges of the null are fixed: they depend on all pairs of the map and vary far less
    than the share of known pairs beyond them. Where few pairs share a gene, the interval is too wide (up to three times
    the variance), never too narrow: Owen 2007, doi:10.1214/07-AOAS122, shows it for two-way data.
    """
    n_pairs = is_recalled_TP.shape[1]
    if not n_pairs:
        return [Interval(math.nan, math.nan, math.nan, np.empty(0)) for _ in is_recalled_TP]
    values = is_recalled_TP.sum(axis=1) / n_pairs
    if not config.bootstrap_draws:
        return [Interval(float(value), math.nan, math.nan, np.empty(0)) for value in values]
    random = _generator(config.seed, "bootstrap", source)
    n_genes = int(max(i.max(), j.max())) + 1
    counted_PT = np.concatenate([is_recalled_TP, np.ones((1, n_pairs), bool)]).T.astype(np.float64)
    sums_RT = np.empty((config.bootstrap_draws, len(is_recalled_TP) + 1))
    for draw in range(config.bootstrap_draws):
        weight = np.bincount(random.integers(0, n_genes, n_genes), minlength=n_genes).astype(np.float64)
        sums_RT[draw] = (weight[i] * weight[j]) @ counted_PT
    sums_RT = sums_RT[sums_RT[:, -1] > 0]  # a draw without any pair has no recall
    draws_RT = sums_RT[:, :-1] / sums_RT[:, -1:]
    return [
        Interval(value, *percentile_interval(draws), draws)
        for value, draws in zip(values.tolist(), draws_RT.T, strict=True)
    ]


def _edges(ranks: tuple[int | None, int | None], statistics: dict[int, float]) -> tuple[float, float]:
    below, above = ranks
    return (math.inf if below is None else statistics[below]), (-math.inf if above is None else statistics[above])


def _outside(values: Floats, edges: tuple[float, float]) -> NDArray[np.bool_]:
    return np.asarray((values < edges[0]) | (values > edges[1]))


def _check(
    vectors_ND: NDArray[Any],
    entities: Sequence[str],
    relations: Sequence[Relations],
    config: RecallConfig,
    in_null: NDArray[np.bool_] | None,
) -> None:
    check_map(vectors_ND, entities, config.min_entities)
    if in_null is not None and in_null.shape != (len(entities),):
        raise ValueError(f"in_null has shape {in_null.shape}, expected one truth value for each of {len(entities)}.")
    if in_null is not None and in_null.sum() < config.min_entities:
        raise ValueError(
            f"in_null names {int(in_null.sum())} of {len(entities)} entities, expected {config.min_entities} or more. "
            "Name more, or lower recall.min_entities."
        )
    twice = [source for source, n in Counter(each.source for each in relations).items() if n > 1]
    if not relations or twice:
        raise ValueError(
            f"relations: {len(relations)} sources, {', '.join(twice) or 'none'} more than once. Expected at least one, "
            "each with a name of its own: read_relations(path, source=...)."
        )


def check_map(vectors_ND: NDArray[Any], entities: Sequence[str], min_entities: int) -> None:
    """Check that a map has one finite vector for each entity.

    Raises:
        ValueError: Shapes that do not fit, a duplicate name, a vector that is not finite, too few entities.
    """
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(entities) or not vectors_ND.shape[1]:
        raise ValueError(f"vectors have shape {vectors_ND.shape}, expected ({len(entities)}, D): one for each entity.")
    twice = [f"{entity} ({n} times)" for entity, n in Counter(entities).items() if n > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} entities come more than once: {', '.join(twice[:3])}. Expected one vector for each; "
            "aggregate guides, doses and wells to one vector first, or give each dose a name."
        )
    if len(entities) < min_entities:
        raise ValueError(
            f"{len(entities)} entities, expected {min_entities} or more: fewer have too few pairs for a tail."
        )
    is_bad = ~np.isfinite(vectors_ND).all(axis=1)
    if is_bad.any():
        names = [entities[row] for row in np.flatnonzero(is_bad)[:3]]
        raise ValueError(
            f"{int(is_bad.sum())} of {len(entities)} vectors are not finite: {', '.join(names)}. Expected finite "
            "numbers; leave these entities out, or embed and aggregate them again."
        )


def _generator(seed: int, *stream: str) -> np.random.Generator:
    return np.random.default_rng(int(content_id(seed, *stream), 16))
