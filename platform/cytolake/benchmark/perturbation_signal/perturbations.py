"""Perturbation signal: do a perturbation's replicates agree, and how far are they from the controls?

Consistency is the mean cosine of all pairs of a perturbation's rows. Magnitude is the energy distance between its rows
and a sample of control rows. Each gets a p-value from one of two null distributions, which answer different questions:

- `efaar`: the same statistic of perturbations that should do nothing, such as guides of unexpressed genes. It says
  whether a perturbation beats those that cut the DNA to no effect. They have other numbers of rows, which the
  statistics depend on, and p can be 0.
- `matched`: the statistic of random rows, as many from each batch as the perturbation has there. It says whether the
  perturbation's rows are more alike, or farther from the controls, than rows that happen to share its batches. The
  perturbation's own rows can be drawn, so p is exact: at most uniform where the rows could be any.

Rows are wells, or means of guides: crops of one well agree for reasons of the well, and would pass every test.

Source: Celik et al. 2024, doi:10.1371/journal.pcbi.1012463, and its EFAAR_benchmarking; Bendidi et al. 2024,
arXiv 2410.13956, "perturbation signal".

Shapes: N rows, D features, B draws, n rows of one perturbation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from cytolake.benchmark.perturbation_signal.energy import mean_distance_of_rows, mean_distance_within
from cytolake.benchmark.perturbation_signal.shares import Share, share_of
from cytolake.catalog.curation.consistency import (
    TIE,
    Experiment,
    condition_tests,
    mean_pairwise_cosine,
    random_subsets,
    seeded_generator,
)

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Null = Literal["efaar", "matched"]

MIN_ROWS = {"consistency": 2, "magnitude": 5}  # as EFAAR_benchmarking
POOL_UP_TO = 4096  # rows whose distances are all computed first, 134 MB; of more, each draw's own are
DISTANCES_AT_ONCE = 4_000_000

SCHEMA = pa.schema(
    [
        pa.field("perturbation", pa.string(), nullable=False),
        pa.field("statistic", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("n_rows", pa.int64(), nullable=False),
        pa.field("n_not_finite", pa.int64(), nullable=False),
        pa.field("n_tested", pa.int64(), nullable=False),
        pa.field("is_null", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalConfig:
    """How a perturbation's signal is tested."""

    null: Null = "matched"
    """What a perturbation is compared with; see the module."""
    alpha: float = 0.05
    """A perturbation with p up to this counts as one with signal."""
    n_draws: int = 999
    """Random sets behind a `matched` p-value, which is then never below 1 / (1 + n_draws)."""
    max_controls: int = 1000
    """Magnitude: control rows compared with; a seeded sample where there are more."""
    max_rows: int = 500
    """`matched`: rows of a perturbation that are tested; a seeded sample where it has more. Its value is of all."""
    seed: int = 0
    """Of every sample and draw."""

    def __post_init__(self) -> None:
        if self.null not in get_args(Null):
            raise ValueError(f"signal.null is {self.null!r}, expected one of {', '.join(get_args(Null))}.")
        if not 0 < self.alpha < 1:
            raise ValueError(f"signal.alpha is {self.alpha}, expected between 0 and 1.")
        for name, least in (("n_draws", 1), ("max_controls", 1), ("max_rows", 5), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"signal.{name} is {getattr(self, name)}, expected {least} or more.")


@dataclass(frozen=True, slots=True)
class Signal:
    """One statistic of every perturbation of a screen."""

    statistic: str
    """`consistency` or `magnitude`."""
    table: pa.Table
    """One row for each perturbation, sorted by name; columns as `SCHEMA`. `value` and `p_value` are empty where
    undefined, and `reason` then says why. `n_rows` counts the finite rows, `n_tested` those behind the p-value."""
    significant: Share
    """Perturbations with p up to alpha among those with a defined p; those of the null are not counted."""

    @property
    def n_defined(self) -> int:
        """Perturbations with a defined p, those of the null not counted."""
        return self.significant.total


def consistency(
    vectors: NDArray[np.generic],
    perturbations: Sequence[str],
    batches: Sequence[str],
    is_control: NDArray[np.bool_],
    config: SignalConfig,
    *,
    null_perturbations: Collection[str] = (),
) -> Signal:
    """Mean pairwise cosine of each perturbation's rows, and its p-value.

    A row of zeros has cosine 0 with all. Rows that are not finite are left out and counted.

    Args:
        vectors: (N, D) of any numeric type, aligned so that a row of 0 is a typical control.
        perturbations: (N,)
        batches: (N,) the batch each row was measured in.
        is_control: (N,) control rows; never a perturbation, but part of what a `matched` null draws from.
        config: What to compare with.
        null_perturbations: Perturbations that should do nothing; `efaar` needs them.

    Returns:
        The value is empty below 2 rows.

    Raises:
        ValueError: Arguments of different lengths, vectors of less or more than 2 dimensions, or under `efaar` no null
            perturbation with 2 rows.
    """
    rows = _Rows.of(vectors, perturbations, batches, is_control)
    norms = np.linalg.norm(rows.vectors, axis=1, keepdims=True)
    unit_ND = rows.vectors / np.where(norms > 0, norms, 1.0)
    # clip: the mean of cosines that are all 1 is 1 but for rounding
    values = {
        i: float(np.clip(mean_pairwise_cosine(unit_ND[own]), -1, 1))
        for i, own in rows.members()
        if len(own) >= MIN_ROWS["consistency"]
    }
    if config.null == "efaar":
        p_values, tested, no_spread = _efaar("consistency", values, rows, null_perturbations)
        return _signal("consistency", values, p_values, tested, rows, config, null_perturbations, no_spread)
    sample = rows.sample(config, MIN_ROWS["consistency"])
    # Rows of no tested perturbation can be drawn too: each is a condition of its own, which is not tested.
    conditions = len(rows.names) + np.arange(len(unit_ND), dtype=np.int64)
    for i, own in sample.items():
        conditions[own] = i
    experiment = Experiment(
        name="perturbation_signal",
        profiles=unit_ND,
        conditions=conditions,
        strata=rows.batches,
        n_draws=config.n_draws,
        seed=config.seed,
    )
    p_values = {test.condition: test.p_value for test in condition_tests(experiment)}
    tested = {i: len(own) for i, own in sample.items()}
    return _signal("consistency", values, p_values, tested, rows, config, null_perturbations)


def magnitude(
    vectors: NDArray[np.generic],
    perturbations: Sequence[str],
    batches: Sequence[str],
    is_control: NDArray[np.bool_],
    config: SignalConfig,
    *,
    null_perturbations: Collection[str] = (),
) -> Signal:
    """Energy distance between each perturbation's rows and the controls, and its p-value.

    The control rows compared with are never drawn by a `matched` null, for a row is at distance 0 from itself.

    Args:
        vectors: (N, D) of any numeric type.
        perturbations: (N,)
        batches: (N,) the batch each row was measured in.
        is_control: (N,) control rows.
        config: What to compare with.
        null_perturbations: Perturbations that should do nothing; `efaar` needs them.

    Returns:
        The value is empty below 5 rows.

    Raises:
        ValueError: As `consistency`, with 5 rows; or no finite control row.
    """
    rows = _Rows.of(vectors, perturbations, batches, is_control)
    controls = rows.controls(config)
    reference = rows.vectors[controls]
    within = mean_distance_within(reference)
    to_reference = mean_distance_of_rows(rows.vectors, reference)  # (N,) each row's mean distance to the controls
    values = {
        i: 2 * float(to_reference[own].mean()) - mean_distance_within(rows.vectors[own]) - within
        for i, own in rows.members()
        if len(own) >= MIN_ROWS["magnitude"]
    }
    if config.null == "efaar":
        p_values, tested, no_spread = _efaar("magnitude", values, rows, null_perturbations)
        return _signal("magnitude", values, p_values, tested, rows, config, null_perturbations, no_spread)
    sample = rows.sample(config, MIN_ROWS["magnitude"])
    can_be_drawn = np.ones(len(rows.vectors), bool)
    can_be_drawn[controls] = False
    p_values = _matched_magnitude(rows, sample, to_reference, can_be_drawn, within, config)
    tested = {i: len(own) for i, own in sample.items()}
    return _signal("magnitude", values, p_values, tested, rows, config, null_perturbations)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The finite rows, with names as numbers."""

    vectors: Floats
    names: tuple[str, ...]
    """Of the perturbations, sorted; those of control rows alone are none."""
    codes: Codes
    """(N,) index into `names`; -1 for a control row."""
    batches: Codes
    batch_names: tuple[str, ...]
    not_finite: Codes
    """Rows of each name that were left out."""

    @classmethod
    def of(
        cls,
        vectors: NDArray[np.generic],
        perturbations: Sequence[str],
        batches: Sequence[str],
        is_control: NDArray[np.bool_],
    ) -> _Rows:
        matrix = np.asarray(vectors)
        if matrix.ndim != 2:
            raise ValueError(f"vectors of shape {matrix.shape}, expected (N, D): one row for each well.")
        lengths = {len(matrix), len(perturbations), len(batches), len(is_control)}
        if len(lengths) != 1:
            raise ValueError(
                f"{len(matrix)} vectors, {len(perturbations)} perturbations, {len(batches)} batches and "
                f"{len(is_control)} control marks, expected as many of each. Take all four from the same rows."
            )
        matrix = matrix.astype(np.float64)
        control = np.asarray(is_control, bool)
        finite = np.isfinite(matrix).all(axis=1)
        labels = np.asarray(perturbations, dtype=object)
        names = tuple(sorted({str(name) for name in labels[~control]}))
        number = {name: i for i, name in enumerate(names)}
        codes = np.asarray(
            [-1 if is_one else number[str(name)] for name, is_one in zip(labels, control, strict=True)], np.int64
        )
        lost = np.bincount(codes[~finite & ~control], minlength=len(names)).astype(np.int64)
        batch_names, batch_codes = np.unique(np.asarray([str(b) for b in batches]), return_inverse=True)
        return cls(
            matrix[finite],
            names,
            codes[finite],
            batch_codes.astype(np.int64)[finite],
            tuple(batch_names.tolist()),
            lost,
        )

    def members(self) -> Iterator[tuple[int, Codes]]:
        """Number of each perturbation that has a finite row, and its rows."""
        order = np.argsort(self.codes, kind="stable")
        numbers, starts = np.unique(self.codes[order], return_index=True)
        for number, own in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            if number >= 0:
                yield number, own

    def sample(self, config: SignalConfig, least: int) -> dict[int, Codes]:
        """The rows of each perturbation that are tested, where it has enough."""
        chosen = {}
        for number, own in self.members():
            if len(own) > config.max_rows:
                rng = seeded_generator(config.seed, "rows", self.names[number])
                own = np.sort(rng.choice(own, config.max_rows, replace=False))
            if len(own) >= least:
                chosen[number] = own
        return chosen

    def controls(self, config: SignalConfig) -> Codes:
        """The control rows that all are compared with."""
        controls = np.flatnonzero(self.codes < 0)
        if not len(controls):
            raise ValueError(
                "no finite control row, expected at least 1 to measure distances from. Mark the negative controls in "
                "the plate map, or leave magnitude out."
            )
        if len(controls) > config.max_controls:
            rng = seeded_generator(config.seed, "controls")
            controls = np.sort(rng.choice(controls, config.max_controls, replace=False))
        return controls


def _efaar(
    statistic: str, values: dict[int, float], rows: _Rows, null_perturbations: Collection[str]
) -> tuple[dict[int, float], dict[int, int], bool]:
    """p-values on the values of the null perturbations, the rows behind each, and whether the null has no spread."""
    null = np.sort([value for i, value in values.items() if rows.names[i] in set(null_perturbations)])
    if not len(null):
        raise ValueError(
            f"{statistic}: none of {len(null_perturbations)} null perturbations has {MIN_ROWS[statistic]} finite rows "
            "in the screen. Name perturbations that should do nothing, such as unexpressed genes, spelled as in the "
            "plate map, or set signal.null=matched."
        )
    # Representations that collapsed have the same value for all; then rounding alone would decide.
    if null[-1] - null[0] <= TIE * max(1.0, float(np.abs(null).max())):
        return {}, {}, True
    # Ties count against consistency and for magnitude, as EFAAR_benchmarking has it.
    side: Literal["left", "right"] = "left" if statistic == "consistency" else "right"
    below = np.searchsorted(null, list(values.values()), side=side)
    p_values = dict(zip(values, (1 - below / len(null)).tolist(), strict=True))
    n_rows = np.bincount(rows.codes[rows.codes >= 0], minlength=len(rows.names))
    return p_values, {i: int(n_rows[i]) for i in values}, False


def _matched_magnitude(
    rows: _Rows,
    sample: dict[int, Codes],
    to_reference: Floats,
    can_be_drawn: NDArray[np.bool_],
    within: float,
    config: SignalConfig,
) -> dict[int, float]:
    """p-values of the magnitudes, one null distribution for each number of rows in each batch."""
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for number, own in sample.items():
        batches, counts = np.unique(rows.batches[own], return_counts=True)
        alike.setdefault(tuple(zip(batches.tolist(), counts.tolist(), strict=True)), []).append(number)
    members = [np.flatnonzero(can_be_drawn & (rows.batches == b)) for b in range(len(rows.batch_names))]
    p_values: dict[int, float] = {}
    pool_batches: tuple[int, ...] = ()
    distances: Floats | None = None
    pool = np.empty(0, np.int64)
    for counts_of_batch in sorted(alike, key=lambda key: ([batch for batch, _ in key], key)):
        batches_here = tuple(batch for batch, _ in counts_of_batch)
        if batches_here != pool_batches:
            pool_batches = batches_here
            pool = np.concatenate([members[batch] for batch in batches_here])
            distances = cdist(rows.vectors[pool], rows.vectors[pool]) if len(pool) <= POOL_UP_TO else None
        rng = seeded_generator(
            config.seed,
            "magnitude",
            *(part for batch, count in counts_of_batch for part in (rows.batch_names[batch], count)),
        )
        parts, start = [], 0
        for batch, count in counts_of_batch:  # places in the pool
            parts.append(start + random_subsets(rng, len(members[batch]), count, config.n_draws))
            start += len(members[batch])
        drawn = np.concatenate(parts, axis=1)
        spread_B = _mean_distances_within(drawn, pool, distances, rows.vectors)
        null = np.sort(2 * to_reference[pool][drawn].mean(axis=1) - spread_B - within)
        for number in alike[counts_of_batch]:
            own = sample[number]
            reach = 2 * float(to_reference[own].mean())
            value = reach - mean_distance_within(rows.vectors[own]) - within
            n_above = config.n_draws - int(np.searchsorted(null, value - TIE * reach))
            p_values[number] = (1 + n_above) / (1 + config.n_draws)
    return p_values


def _mean_distances_within(drawn: Codes, pool: Codes, distances: Floats | None, vectors: Floats) -> Floats:
    """(B,) mean distance over all pairs of the rows of each draw, a row with itself too."""
    if distances is None:
        return np.asarray([cdist(vectors[pool[each]], vectors[pool[each]]).mean() for each in drawn])
    at_once = max(1, DISTANCES_AT_ONCE // drawn.shape[1] ** 2)
    blocks = [drawn[start : start + at_once] for start in range(0, len(drawn), at_once)]
    return np.concatenate([distances[each[:, :, None], each[:, None, :]].mean(axis=(1, 2)) for each in blocks])


def _signal(
    statistic: str,
    values: dict[int, float],
    p_values: dict[int, float],
    tested: dict[int, int],
    rows: _Rows,
    config: SignalConfig,
    null_perturbations: Collection[str],
    no_spread: bool = False,
) -> Signal:
    n_rows = np.bincount(rows.codes[rows.codes >= 0], minlength=len(rows.names))
    of_null = set(null_perturbations)
    table_rows = []
    for i, name in enumerate(rows.names):
        reason = ""
        if i not in values:
            reason = f"{n_rows[i]} finite rows, expected at least {MIN_ROWS[statistic]}"
        elif no_spread:
            reason = "all null perturbations have the same value"
        table_rows.append(
            {
                "perturbation": name,
                "statistic": statistic,
                "value": values.get(i),
                "p_value": p_values.get(i),
                "n_rows": int(n_rows[i]),
                "n_not_finite": int(rows.not_finite[i]),
                "n_tested": tested.get(i, 0) if i in p_values else 0,
                "is_null": name in of_null,
                "reason": reason,
            }
        )
    counted = [p for i, p in p_values.items() if rows.names[i] not in of_null]
    hits = sum(p <= config.alpha or math.isclose(p, config.alpha) for p in counted)
    return Signal(statistic, pa.Table.from_pylist(table_rows, schema=SCHEMA), share_of(hits, len(counted)))
