"""Consistency and magnitude of perturbations: agreement of replicates, and their distance from the controls.

Consistency is the mean cosine of all pairs of a perturbation's rows, tested against random treated rows of the same
batches (`statistics.consistency`). Magnitude is the energy distance between its rows and the control rows, tested by
exchanging the labels of the two in each batch (`statistics.magnitude`).

Where null perturbations are named, such as guides of genes that are not expressed, their values are the null
distribution of both, as in the published test: p then compares with perturbations that cut the DNA without an effect.

Rows are wells, or means of guides. Crops of one well are similar because of the well and would pass every test.

Source: Celik et al. 2024, doi:10.1371/journal.pcbi.1012463, and its EFAAR_benchmarking; Bendidi et al. 2024,
arXiv 2410.13956, "perturbation signal".

Shapes: N rows, D features, P perturbations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.statistics.consistency import MIN_ROWS as MIN_ROWS_CONSISTENCY
from cytolake.statistics.consistency import NOT_TESTED, consistency_tests
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import Share, share_of
from cytolake.statistics.magnitude import MIN_ROWS as MIN_ROWS_MAGNITUDE
from cytolake.statistics.magnitude import magnitude_tests
from cytolake.statistics.p_values import p_values_against
from cytolake.statistics.random_subsets import MIN_PLACEMENTS

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

SCHEMA = pa.schema(
    [
        pa.field("perturbation", pa.string(), nullable=False),
        pa.field("statistic", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("q_value", pa.float64()),
        pa.field("n_rows", pa.int64(), nullable=False),
        pa.field("n_not_finite", pa.int64(), nullable=False),
        pa.field("n_tested", pa.int64(), nullable=False),
        pa.field("is_null", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalConfig:
    """Settings of the tests of consistency and magnitude."""

    alpha: float = 0.05
    """A perturbation with p up to this is significant, with q up to this a discovery."""
    n_draws: int = 999
    """Random sets, or exchanges of labels, behind a p-value, which is never below 1 / (1 + n_draws)."""
    max_controls: int = 1000
    """Magnitude: most control rows that a perturbation is compared with; a seeded sample of more."""
    max_rows: int = 500
    """Most rows of a perturbation that are tested; a seeded sample of more."""
    seed: int = 0
    """Seed of every sample and draw."""

    def __post_init__(self) -> None:
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
    """One row for each perturbation, sorted by name; columns as `SCHEMA`. `value`, `p_value` and `q_value` are empty
    where undefined, and `reason` then says why. `n_rows` counts the finite rows, `n_tested` those behind value and
    p-value. q-values are over the perturbations with a p-value, without null perturbations."""
    significant: Share
    """Perturbations with p up to alpha among those with a defined p; null perturbations do not count."""
    discovered: Share
    """The same with q up to alpha."""

    @property
    def n_defined(self) -> int:
        """Perturbations with a defined p, without null perturbations."""
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
        perturbations: (N,); rows of "" can be drawn but are no perturbation.
        batches: (N,) the batch each row was measured in.
        is_control: (N,) control rows, which are ignored.
        null_perturbations: Perturbations without an effect. Where given, their values are the null distribution.

    Returns:
        The value is empty below 2 rows.

    Raises:
        ValueError: Arguments of different lengths, vectors that are not two-dimensional, or null perturbations none of
            which has 2 rows, or too few of them for a p-value of alpha.
    """
    rows = _Rows.of(vectors, perturbations, batches, is_control)
    treated = np.flatnonzero(~rows.is_control)
    # Without draws where the null perturbations give the p-values.
    found = consistency_tests(
        rows.vectors[treated],
        rows.codes[treated],
        rows.batches[treated],
        0 if null_perturbations else config.n_draws,
        config.seed,
        "perturbation_signal",
        config.max_rows,
    )
    table = _Table.empty(rows, config, null_perturbations)
    for test in found:
        table.value[test.group], table.p_value[test.group] = test.cosine, test.p_value
        table.n_tested[test.group] = test.n_rows
    few = f"expected at least {MIN_ROWS_CONSISTENCY}"
    reasons = [f"{n} finite rows, {few}" for n in rows.n_rows.tolist()]
    placed = f"fewer than {MIN_PLACEMENTS} ways to draw as many treated rows from its batches"
    return table.signal("consistency", reasons, placed)


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

    A perturbation is compared with the controls of its own batches; where null perturbations are named, with those of
    all batches, as published.

    Args:
        vectors: (N, D) of any numeric type, not aligned on these control rows: else most perturbations without an
            effect are significant, see `statistics.magnitude`. With null perturbations such vectors are fine.
        perturbations: (N,); rows of "" are ignored.
        batches: (N,) the batch each row was measured in.
        is_control: (N,) control rows.
        null_perturbations: As in `consistency`.

    Returns:
        The value is empty below 5 rows in batches with controls.

    Raises:
        ValueError: As in `consistency`, with 5 rows; or no finite control row.
    """
    rows = _Rows.of(vectors, perturbations, batches, is_control)
    if not rows.is_control.any():
        raise ValueError(
            "no finite control row, expected at least 1 to measure distances from. Mark the negative controls in the "
            "plate map, or leave magnitude out."
        )
    strata = np.zeros_like(rows.batches) if null_perturbations else rows.batches
    found = magnitude_tests(
        rows.vectors,
        rows.codes,
        rows.is_control,
        strata,
        0 if null_perturbations else config.n_draws,
        config.seed,
        config.max_rows,
        config.max_controls,
    )
    table = _Table.empty(rows, config, null_perturbations)
    for test in found:
        table.value[test.group], table.p_value[test.group] = test.energy_distance, test.p_value
        table.n_tested[test.group] = test.n_rows
    in_shared = ~rows.is_control & np.isin(strata, strata[rows.is_control]) & (rows.codes >= 0)
    n_shared = np.bincount(rows.codes[in_shared], minlength=len(rows.names)).tolist()
    reasons = [
        f"{n} finite rows in batches with control rows, expected at least {MIN_ROWS_MAGNITUDE}"
        if n < MIN_ROWS_MAGNITUDE
        else f"fewer than {MIN_PLACEMENTS} ways to exchange its rows and the control rows of its batches"
        for n in n_shared
    ]
    return table.signal("magnitude", reasons, "")


@dataclass(frozen=True, slots=True)
class _Rows:
    """The finite rows, with names as numbers."""

    vectors: Floats
    names: tuple[str, ...]
    """Names of the perturbations of treated rows, sorted."""
    codes: Codes
    """(N,) index into `names`; `NOT_TESTED` for a control row and for a row without a perturbation."""
    batches: Codes
    is_control: NDArray[np.bool_]
    n_rows: Codes
    """(P,) finite rows."""
    not_finite: Codes
    """(P,) rows that were left out."""

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
        labels = ["" if one else str(name) for name, one in zip(perturbations, control.tolist(), strict=True)]
        names = tuple(sorted({name for name in labels if name}))
        number = {name: i for i, name in enumerate(names)}
        codes = np.asarray([number.get(name, NOT_TESTED) for name in labels], np.int64)
        _, batch_codes = np.unique(np.asarray([str(b) for b in batches]), return_inverse=True)

        def count(rows: NDArray[np.bool_]) -> Codes:
            return np.bincount(codes[rows & (codes >= 0)], minlength=len(names)).astype(np.int64)

        return cls(
            matrix[finite],
            names,
            codes[finite],
            batch_codes.astype(np.int64)[finite],
            control[finite],
            count(finite),
            count(~finite),
        )


@dataclass(frozen=True, slots=True)
class _Table:
    """Results of the tests, (P,) each."""

    rows: _Rows
    config: SignalConfig
    is_null: NDArray[np.bool_]
    value: Floats = field(repr=False)
    p_value: Floats = field(repr=False)
    n_tested: Codes = field(repr=False)

    @classmethod
    def empty(cls, rows: _Rows, config: SignalConfig, null_perturbations: Collection[str]) -> _Table:
        known = set(null_perturbations)
        n = len(rows.names)
        is_null = np.asarray([name in known for name in rows.names], bool)
        if null_perturbations and not is_null.any():
            raise ValueError(
                f"none of {len(known)} null perturbations ({', '.join(sorted(known)[:3])}) is in the screen. Name "
                "perturbations that should do nothing, such as unexpressed genes, as the plate map has them."
            )
        return cls(rows, config, is_null, np.full(n, np.nan), np.full(n, np.nan), np.zeros(n, np.int64))

    def signal(self, statistic: str, without_value: Sequence[str], without_p: str) -> Signal:
        """The result, with p-values from null perturbations where there are any, and reasons for undefined values."""
        p_value = self.p_value
        if self.is_null.any():
            p_value, without_p = self._against_null(), "all null perturbations have the same value"
        q_value = benjamini_hochberg(np.where(self.is_null, np.nan, p_value))
        has = ~np.isnan(p_value)
        reasons = np.where(has, "", np.where(np.isnan(self.value), np.asarray(without_value, object), without_p))
        table = pa.table(
            {
                "perturbation": list(self.rows.names),
                "statistic": [statistic] * len(has),
                "value": pa.array(self.value, mask=np.isnan(self.value)),
                "p_value": pa.array(p_value, mask=~has),
                "q_value": pa.array(q_value, mask=np.isnan(q_value)),
                "n_rows": self.rows.n_rows,
                "n_not_finite": self.rows.not_finite,
                "n_tested": np.where(has, self.n_tested, 0),
                "is_null": self.is_null,
                "reason": reasons.tolist(),
            },
            schema=SCHEMA,
        )
        counted = has & ~self.is_null
        significant, discovered = (
            share_of(int((values[counted] <= self.config.alpha + 1e-12).sum()), int(counted.sum()))
            for values in (p_value, q_value)
        )
        return Signal(statistic, table, significant, discovered)

    def _against_null(self) -> Floats:
        p_value = p_values_against(self.value, self.is_null)
        null = self.value[self.is_null & ~np.isnan(self.value)]
        # A collapsed representation has one value for all perturbations; rounding alone would then decide.
        if np.ptp(null) <= 1e-9 * max(1.0, float(np.abs(null).max())) and len(null) > 1:
            return np.full(len(p_value), np.nan)
        if (1 + len(null)) * self.config.alpha < 1:
            raise ValueError(
                f"{len(null)} null perturbations have enough finite rows: no p-value can be {self.config.alpha}. Name "
                f"{math.ceil(1 / self.config.alpha) - 1} or more, or none to compare with random rows and controls."
            )
        return p_value
