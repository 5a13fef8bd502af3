"""A selection of crops as a file: CSV, or a curation for catalog/curation/."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import yaml
from numpy.typing import NDArray

from cytolake.catalog import table_contract
from cytolake.serving.problems import ServingError
from cytolake.serving.snapshot import Snapshot
from cytolake.serving.where import compile_where

CSV_COLUMNS = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "dose",
    "control",
)  # fmt: skip

MAX_LISTED = 200_000
"""Most crop ids in a curation: 7 MB of YAML. A larger selection needs a condition, or a table of its own."""


def as_csv(snapshot: Snapshot, rows: NDArray[np.integer[Any]]) -> bytes:
    """One line for each crop, `CSV_COLUMNS`, in the order of the rows."""
    stream = io.BytesIO()
    pa.csv.write_csv(snapshot.crops_at(rows).select(list(CSV_COLUMNS)), stream)
    return stream.getvalue()


def as_curation(snapshot: Snapshot, rows: NDArray[np.integer[Any]], where: str = "") -> bytes:
    """A curation that keeps exactly these crops, for catalog/curation/.

    Args:
        snapshot: Snapshot that the rows are from.
        rows: Rows of the crops.
        where: The SQL condition that selected them, or "". It is written instead of the ids, so that the curation also
            applies to later plates; but only where it selects exactly these crops, by columns that curations have.

    Raises:
        ServingError: 422, no crops, or more than can be listed.
    """
    if not len(rows):
        raise ServingError(status=422, detail="no crops are selected: a curation must keep at least one.")
    where = where.strip()
    if where and not _selects(where, snapshot, rows):
        where = ""
    if not where and len(rows) > MAX_LISTED:
        raise ServingError(
            status=422,
            detail=f"{len(rows):,} crops, at most {MAX_LISTED:,} can be listed in a curation. Select them by a SQL "
            "condition over the columns of crops and wells, or take them as CSV.",
        )
    if not where:
        where = "crop_id IN (" + ", ".join(f"'{crop_id}'" for crop_id in _checked_ids(snapshot, rows)) + ")"
    about = f"{len(rows):,} crops selected in the explorer."
    spec = {"about": about, "seed": 0, "steps": [{"rule": "where", "where": where}]}
    return yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=120).encode()


def _selects(where: str, snapshot: Snapshot, rows: NDArray[np.integer[Any]]) -> bool:
    """Whether a condition over columns of curations selects exactly these rows."""
    columns = set(table_contract("crops").schema.names) | set(table_contract("wells").schema.names)
    schema = pa.schema([field for field in snapshot.crops.schema if field.name in columns])
    try:
        compile_where(where, schema)
    except ServingError:
        return False
    return np.array_equal(np.sort(rows.astype(np.int64)), snapshot.rows_where(where))


def _checked_ids(snapshot: Snapshot, rows: NDArray[np.integer[Any]]) -> list[str]:
    crop_ids: list[str] = snapshot.crops_at(np.sort(rows))["crop_id"].to_pylist()
    odd = [crop_id for crop_id in crop_ids if not crop_id.replace("-", "").replace("_", "").isalnum()]
    if odd:  # ids are hashes; one with a quote in it would be SQL
        raise ServingError(
            status=422, detail=f"crop id {odd[0][:80]!r}: expected letters, digits, - and _. Take the crops as CSV."
        )
    return crop_ids
