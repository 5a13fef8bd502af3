"""A selection of crops as a file to take away: CSV, or a curation for catalog/curation/."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import yaml
from numpy.typing import NDArray

from cytolake.catalog import table_contract
from cytolake.serving.filters import compile_filter
from cytolake.serving.problems import ServingError
from cytolake.serving.snapshot import Snapshot

CSV_COLUMNS = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "dose",
    "control",
)  # fmt: skip

MAX_LISTED = 200_000
"""Crop ids in a curation, at most: 7 MB of YAML. A larger choice is a condition, or a table of its own."""


def as_csv(snapshot: Snapshot, rows: NDArray[np.integer[Any]]) -> bytes:
    """One line for each crop, `CSV_COLUMNS`, in the order of the rows."""
    stream = io.BytesIO()
    pa.csv.write_csv(snapshot.taken(rows).select(list(CSV_COLUMNS)), stream)
    return stream.getvalue()


def as_curation(snapshot: Snapshot, rows: NDArray[np.integer[Any]], condition: str = "") -> bytes:
    """A spec that keeps exactly these crops: jobs/curate.py takes it from catalog/curation/.

    Args:
        snapshot: Whose rows.
        rows: The crops.
        condition: The SQL condition they were selected by, where they were. It is written instead of the ids, so that
            the curation also takes up plates that come later; but only where it chooses these very crops, and names
            no column that curations do not have.

    Raises:
        ServingError: 422, no crops, or more than can be listed.
    """
    if not len(rows):
        raise ServingError(status=422, detail="no crops are selected: a curation must keep at least one.")
    where = condition.strip() if condition.strip() and _is_curations(snapshot, rows, condition) else ""
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


def _is_curations(snapshot: Snapshot, rows: NDArray[np.integer[Any]], condition: str) -> bool:
    columns = set(table_contract("crops").schema.names) | set(table_contract("wells").schema.names)
    schema = pa.schema([field for field in snapshot.crops.schema if field.name in columns])
    try:
        compile_filter(condition, schema)
    except ServingError:
        return False
    return np.array_equal(np.sort(rows.astype(np.int64)), snapshot.rows_where(condition))


def _checked_ids(snapshot: Snapshot, rows: NDArray[np.integer[Any]]) -> list[str]:
    crop_ids: list[str] = snapshot.taken(np.sort(rows))["crop_id"].to_pylist()
    odd = [crop_id for crop_id in crop_ids if not crop_id.replace("-", "").replace("_", "").isalnum()]
    if odd:  # ids are hashes; one with a quote in it would be SQL
        raise ServingError(
            status=422, detail=f"crop id {odd[0][:80]!r}: expected letters, digits, - and _. Take the crops as CSV."
        )
    return crop_ids
