"""Do labels and batches go together, so that a score of the label may be a score of the batch?

Shapes: N wells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

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
    """How far labels and batches go together."""

    table: pa.Table
    """`CONFOUNDING_SCHEMA`, sorted by label; `only_batch` names the batch of a label that is in no other."""
    cramers_v: float
    """0 where labels are spread alike over batches, 1 where one predicts the other; NaN for one label or one batch."""
    cramers_v_corrected: float
    """The same less what chance gives with few wells; Bergsma 2013, doi:10.1016/j.jkss.2012.10.002."""
    warning: str
    """Empty where every label of two wells or more is in two batches or more."""


def label_confounding(
    labels: Sequence[str], batches: Sequence[str], *, label: str = "label", unit: Unit = "batch"
) -> Confounding:
    """In how many batches each label occurs, and how strongly labels and batches go together.

    Args:
        labels: (N,) what a benchmark predicts or groups by, of each well.
        batches: (N,)
        label: Name of the label, for the warning.
        unit: What the batches are, for the warning.

    Raises:
        ValueError: Arguments of different lengths, or no well.
    """
    if len(labels) != len(batches) or not len(labels):
        raise ValueError(f"{len(labels)} labels and {len(batches)} batches, expected as many of each, 1 or more.")
    names, of_label = np.unique(np.asarray([str(x) for x in labels]), return_inverse=True)
    batch_names, of_batch = np.unique(np.asarray([str(x) for x in batches]), return_inverse=True)
    # Only the cells that hold a well: a table of all labels by all batches could be large and nearly empty.
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
    """What is to be said of wells of one batch or plate."""
    return f"one {unit} only: no statement about {_plural(unit)} is possible."


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
