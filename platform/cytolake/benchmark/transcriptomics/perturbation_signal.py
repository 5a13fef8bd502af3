"""T5, perturbation signal: consistency and magnitude of every perturbation, and their table.

Both are permutation tests within batches (`statistics.consistency`, `statistics.magnitude`), so neither the number of
rows of a perturbation nor its batches create a signal. The published test compares with perturbations of genes that are
not expressed; `statistics.p_values.p_values_against` does so where these are named.

Shapes: N rows, D dimensions, P perturbations, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.transcriptomics.screen import Screen
from cytolake.statistics.consistency import consistency_tests
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.magnitude import magnitude_tests

Floats = NDArray[np.float64]
MAX_ROWS = 500
"""Most rows of a perturbation that are tested; a seeded sample of more."""
TESTS = {
    "consistent": "mean cosine of its rows with each other",
    "distinct": "energy distance from the controls",
}
"""The tests and their statistics."""
TARGETS_SCHEMA = pa.schema(
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


def consistency(screen: Screen, vectors: NDArray[np.floating], n_draws: int, seed: int) -> tuple[Floats, Floats]:
    """Mean cosine of all pairs of rows of each perturbation, compared with equally many perturbed rows of each batch.

    Returns:
        (P,) values, and (P,) p = (1 + draws as high or higher) / (1 + draws); both NaN below 2 rows.
    """
    perturbed = np.flatnonzero(screen.perturbation_of_row >= 0)
    values, p_values = (np.full(len(screen.perturbations), np.nan) for _ in range(2))
    for test in consistency_tests(
        vectors[perturbed],
        screen.perturbation_of_row[perturbed].astype(np.int64),
        screen.batch_of_row[perturbed].astype(np.int64),
        n_draws,
        seed,
        max_rows=MAX_ROWS,
    ):
        values[test.group], p_values[test.group] = test.cosine, test.p_value
    return values, p_values


def magnitude(
    screen: Screen,
    vectors: NDArray[np.floating],
    n_draws: int,
    seed: int,
    *,
    is_compared: NDArray[np.bool_] | None = None,
) -> tuple[Floats, Floats]:
    """Energy distance between the rows of each perturbation and the controls, compared with exchanged labels.

    Labels are exchanged within batches. Rows and controls of batches without the other kind are left out.

    Args:
        vectors: (N, D)
        n_draws: R.
        seed: Seed of draws and samples.
        is_compared: (N,) control rows to compare with, on which the vectors are not aligned; all where None.

    Returns:
        (P,) values, and (P,) p = (1 + draws as high or higher) / (1 + draws); both NaN below 5 rows, or with fewer
        than 20 different exchanges.
    """
    values, p_values = (np.full(len(screen.perturbations), np.nan) for _ in range(2))
    for test in magnitude_tests(
        vectors,
        screen.perturbation_of_row.astype(np.int64),
        screen.is_control if is_compared is None else is_compared,
        screen.batch_of_row.astype(np.int64),
        n_draws,
        seed,
        MAX_ROWS,
    ):
        values[test.group], p_values[test.group] = test.energy_distance, test.p_value
    return values, p_values


def are_null(screen: Screen, names: Sequence[str]) -> NDArray[np.bool_]:
    """(P,) whether each perturbation is among the names.

    Raises:
        ValueError: A name is no perturbation.
    """
    missing = sorted(set(names) - set(screen.perturbations))
    if missing:
        raise ValueError(
            f"null perturbations {', '.join(missing[:5])} are not among the {len(screen.perturbations)} perturbations. "
            "Correct config.null_perturbations."
        )
    return np.isin(screen.perturbations, list(names))


@dataclass(frozen=True, slots=True)
class Targets:
    """Results of one test for every perturbation."""

    test: str
    """Name in `TESTS`."""
    perturbations: tuple[str, ...]
    values: Floats
    """(P,); NaN for a perturbation with too few rows."""
    p_values: Floats
    """(P,)"""
    n_rows: NDArray[np.intp]
    """(P,)"""

    @property
    def q_values(self) -> Floats:
        """(P,) Benjamini-Hochberg, over the perturbations of this test."""
        return benjamini_hochberg(self.p_values)

    def details(self) -> dict[str, Any]:
        """JSON object for the `details` of a row of scores."""
        columns = zip(self.values.tolist(), self.p_values.tolist(), self.n_rows.tolist(), strict=True)
        each = [[None if np.isnan(v) else float(f"{v:.6g}") for v in (value, p)] + [n] for value, p, n in columns]
        return {"test": self.test, "targets": dict(zip(self.perturbations, each, strict=True))}


def targets_of(details: Mapping[str, Any]) -> Targets | None:
    """The inverse of `Targets.details`; None for the details of another score."""
    if "targets" not in details:
        return None
    found = details["targets"]
    values, p_values = (
        np.array([np.nan if each[i] is None else each[i] for each in found.values()], dtype=float) for i in (0, 1)
    )
    n_rows = np.array([each[2] for each in found.values()], dtype=np.intp)
    return Targets(str(details["test"]), tuple(found), values, p_values, n_rows)


def target_rows(embedding: str, post_processing: str, seed: int, targets: Targets) -> list[dict[str, Any]]:
    """Rows of `TARGETS_SCHEMA`."""
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
    """Write rows of `TARGETS_SCHEMA` as CSV or Parquet, by the suffix.

    Raises:
        ValueError: Another ending.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=TARGETS_SCHEMA)
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
