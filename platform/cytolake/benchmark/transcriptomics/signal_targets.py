"""What perturbation_signal says of each perturbation: value, p, q and rows of its two tests.

Shapes: P perturbations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.statistics.false_discovery import benjamini_hochberg

Floats = NDArray[np.float64]
TESTS = {
    "consistent": "mean cosine of its rows with each other",
    "distinct": "energy distance from the controls",
}
"""The tests, and what their value is."""
SCHEMA = pa.schema(
    [
        pa.field("embedding", pa.string(), nullable=False),
        pa.field("post_processing", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("test", pa.string(), nullable=False),
        pa.field("perturbation", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("q_value", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Targets:
    """One test of every perturbation."""

    test: str
    """Of `TESTS`."""
    perturbations: tuple[str, ...]
    values: Floats
    """(P,) NaN where the perturbation has too few rows."""
    p_values: Floats
    """(P,)"""
    n_rows: NDArray[np.intp]
    """(P,)"""

    @property
    def q_values(self) -> Floats:
        """(P,) of Benjamini and Hochberg, over the perturbations of this test."""
        return benjamini_hochberg(self.p_values)

    def details(self) -> dict[str, Any]:
        """For the `details` of a row of scores."""
        columns = zip(self.values.tolist(), self.p_values.tolist(), self.n_rows.tolist(), strict=True)
        each = [[None if np.isnan(v) else float(f"{v:.6g}") for v in (value, p)] + [n] for value, p, n in columns]
        return {"test": self.test, "targets": dict(zip(self.perturbations, each, strict=True))}


def targets_of(details: Mapping[str, Any]) -> Targets | None:
    """What `Targets.details` made; None where the details are of another score."""
    if "targets" not in details:
        return None
    found = details["targets"]
    values, p_values = (
        np.array([np.nan if each[i] is None else each[i] for each in found.values()], dtype=float) for i in (0, 1)
    )
    n_rows = np.array([each[2] for each in found.values()], dtype=np.intp)
    return Targets(str(details["test"]), tuple(found), values, p_values, n_rows)


def target_rows(embedding: str, post_processing: str, seed: int, targets: Targets) -> list[dict[str, Any]]:
    """Rows of `SCHEMA`."""
    columns = zip(
        targets.perturbations,
        *(_known(each) for each in (targets.values, targets.p_values, targets.q_values)),
        targets.n_rows.tolist(),
        strict=True,
    )
    return [
        {
            "embedding": embedding, "post_processing": post_processing, "seed": seed, "test": targets.test,
            "perturbation": name, "value": value, "p_value": p_value, "q_value": q_value, "n": n,
        }
        for name, value, p_value, q_value, n in columns
    ]  # fmt: skip


def write_targets(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of `SCHEMA` as CSV or Parquet, by the name's ending.

    Raises:
        ValueError: Another ending.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        from pyarrow.csv import write_csv

        write_csv(table, path)
    elif path.suffix == ".parquet":
        from pyarrow.parquet import write_table

        write_table(table, path)
    else:
        raise ValueError(f"{path}: found the ending {path.suffix!r}, expected .csv or .parquet. Correct the name.")


def _known(values: Floats) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]
