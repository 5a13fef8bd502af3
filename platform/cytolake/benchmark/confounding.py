"""Confounding of labels with batches, and warnings about the layout for readers of scores.

If a label can be predicted without any image, a score of the label may be a score of its batch or position.
`confounding_warnings` combines three tests: `label_confounding` (labels in one batch only), and `position_confounding`
and `same_positions` of `position_confounding`.

Shapes: N wells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from cytolake.benchmark.position_confounding import (
    Factor,
    PositionConfounding,
    SamePositions,
    WellPlace,
    position_confounding,
    same_positions,
)

Unit = Literal["batch", "plate"]

CONFOUNDING_SCHEMA = pa.schema(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("n_wells", pa.int64(), nullable=False),
        pa.field("n_batches", pa.int64(), nullable=False),
        pa.field("only_batch", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Confounding:
    """Association between labels and batches."""

    table: pa.Table
    """`CONFOUNDING_SCHEMA`, sorted by label; `only_batch` is the batch of a label that occurs in one batch only."""
    cramers_v: float
    """0 where all labels have the same distribution over batches, 1 where one predicts the other; NaN for one label or
    one batch."""
    cramers_v_corrected: float
    """The same, corrected for chance with few wells; Bergsma 2013, doi:10.1016/j.jkss.2012.10.002."""
    warning: str
    """Empty where every label with two wells or more occurs in two batches or more."""


def label_confounding(
    labels: Sequence[str], batches: Sequence[str], *, label: str = "label", unit: Unit = "batch"
) -> Confounding:
    """Number of batches of each label, and the association between labels and batches.

    Args:
        labels: (N,) label of each well that a benchmark predicts or groups by.
        batches: (N,)
        label: Name of the label, for the warning.
        unit: Kind of the batches, for the warning.

    Raises:
        ValueError: Arguments of different lengths, or no well.
    """
    if len(labels) != len(batches) or not len(labels):
        raise ValueError(f"{len(labels)} labels and {len(batches)} batches, expected as many of each, 1 or more.")
    names, of_label = np.unique(np.asarray([str(x) for x in labels]), return_inverse=True)
    batch_names, of_batch = np.unique(np.asarray([str(x) for x in batches]), return_inverse=True)
    # Only the cells with a well: a table of all labels by all batches could be large and nearly empty.
    cells, observed = np.unique(of_label * len(batch_names) + of_batch, return_counts=True)
    row, column = cells // len(batch_names), cells % len(batch_names)
    n, n_of_label, n_of_batch = len(labels), np.bincount(of_label), np.bincount(of_batch)
    n_batches = np.bincount(row, minlength=len(names))
    only = {int(r): str(batch_names[c]) for r, c in zip(row, column, strict=True) if n_batches[r] == 1}
    # chi^2 / n = sum of observed^2 / (row total x column total) - 1
    phi_square = max(float((observed**2 / (n_of_label[row] * n_of_batch[column])).sum()) - 1, 0.0)
    table = pa.Table.from_pylist(
        [
            {
                "label": str(name),
                "n_wells": int(n_of_label[i]),
                "n_batches": int(n_batches[i]),
                "only_batch": only.get(i),
            }
            for i, name in enumerate(names)
        ],
        schema=CONFOUNDING_SCHEMA,
    )
    v, corrected = _cramers_v(phi_square, n, len(names), len(batch_names))
    if len(batch_names) == 1:
        return Confounding(table, v, corrected, only_one(unit))
    repeated = np.flatnonzero(n_of_label > 1).tolist()  # one well is in one batch whatever the layout
    tied = {f"{names[i]}": only[i] for i in repeated if i in only}
    return Confounding(table, v, corrected, _tied_warning(tied, len(repeated), v, label, unit))


def only_one(unit: Unit) -> str:
    """Warning for wells of a single batch or plate."""
    return f"one {unit} only: no statement about {_plural(unit)} is possible."


def confounding_warnings(
    wells: Sequence[WellPlace], treatments: Sequence[str], labels: Mapping[str, Sequence[str]], *, seed: int = 0
) -> list[str]:
    """Warnings about the layout for readers of scores: at most two sentences for each label, and two for all labels.

    Args:
        wells: N places.
        treatments: N treatments, controls included; "" where unknown. A table in which no treatment has two wells (such
            as one row for each gene, at invented positions) has no layout, and no warnings.
        labels: N values of each label by its name, "" where a well has none.
    """
    sentences: list[str] = []
    by_design: list[SamePositions] = []
    known = [name for name in treatments if name]
    if len(set(known)) == len(known):
        return []
    if len({well.batch for well in wells}) == 1:
        sentences.append(only_one("batch"))
    for label, values in labels.items():
        rows = [i for i, name in enumerate(values) if name]
        places, names = [wells[i] for i in rows], [values[i] for i in rows]
        if len(set(names)) < 2:
            continue
        found = [each for each in position_confounding(places, names, label=label, seed=seed) if each.is_confounded]
        of_place = {each.factor: each for each in found if each.factor not in ("plate", "batch")}
        same = same_positions(places, names, label=label)
        if of_place:
            clearest = _clearest(of_place)
            if clearest.factor != "well" or not same.is_by_design:
                sentences.append(clearest.sentence)
        if same.is_by_design:
            by_design.append(same)
        unit: Unit = "batch" if len({well.batch for well in places}) > 1 else "plate"
        groups = [getattr(well, unit) for well in places]
        tied = label_confounding(names, groups, label=label, unit=unit).warning if len(set(groups)) > 1 else ""
        weaker = [each.sentence for each in found if each.factor in ("plate", "batch")]
        sentences += [tied] if tied else weaker[-1:]
    if by_design:
        counts = ", ".join(f"{each.n_same} of {each.n_repeated} values of {each.label}" for each in by_design)
        sentences.append(
            f"the same layout on every plate: {counts} are in the same wells on all of their plates. Position and "
            "label are confounded by design, and no split of these wells separates them. Randomise positions between "
            "plates."
        )
    return sentences


def _tied_warning(tied: Mapping[str, str], n_repeated: int, v: float, label: str, unit: str) -> str:
    if not tied:
        return ""
    shown = ", ".join(f"{name} ({batch})" for name, batch in list(tied.items())[:5])
    more = f" and {len(tied) - 5} more" if len(tied) > 5 else ""
    return (
        f"{label} is confounded with {unit}: {len(tied)} of {n_repeated} values that two or more wells have occur in "
        f"one {unit} only: {shown}{more}; Cramer's V is {v:.2f}. A score on these may be a score on the {unit}. "
        f"Replicate them over {_plural(unit)}, or report the score without them."
    )


def _plural(unit: str) -> str:
    return "batches" if unit == "batch" else f"{unit}s"


def _cramers_v(phi_square: float, n: int, n_rows: int, n_columns: int) -> tuple[float, float]:
    least = min(n_rows, n_columns) - 1
    if least < 1:
        return math.nan, math.nan
    v = math.sqrt(min(phi_square / least, 1.0))
    if n < 2:
        return v, math.nan
    corrected = max(phi_square - (n_rows - 1) * (n_columns - 1) / (n - 1), 0.0)
    least_corrected = min(k - (k - 1) ** 2 / (n - 1) for k in (n_rows, n_columns)) - 1
    return v, math.sqrt(min(corrected / least_corrected, 1.0)) if least_corrected > 0 else math.nan


def _clearest(of_place: Mapping[Factor, PositionConfounding]) -> PositionConfounding:
    """The simplest factor that predicts nine tenths of what the best does."""
    best = max(each.balanced_accuracy for each in of_place.values())
    return next(each for each in of_place.values() if each.balanced_accuracy >= 0.9 * best)
