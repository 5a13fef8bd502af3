"""Turns the annotations of wells, one JSON text in the catalog, back into the columns of the plate map."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import pyarrow as pa

PREFIX = "Metadata_"
_PREFIXES = ("image_metadata_", "metadata_")


def annotation_columns(texts: Sequence[str | None], taken: Collection[str] = ()) -> dict[str, pa.Array]:
    """One text column for each annotation, by its name in an export, in order of the names.

    Args:
        texts: `wells.annotations` of each row.
        taken: Columns that the export has anyway; an annotation of such a name, case aside, ends in `_annotation`.

    Returns:
        `Metadata_<name>` -> values, empty where a well has none. A slash, which no name in HDF5 may have, is `_`.
    """
    rows: dict[str, dict[str, str]] = {"": {}}
    for text in dict.fromkeys(texts):
        if text:
            rows[text] = {str(name): _as_text(value) for name, value in json.loads(text).items()}
    names: dict[str, str] = {}
    used = {name.casefold() for name in taken}
    for name in sorted({name for row in rows.values() for name in row}):
        plain = next((name[len(each) :] for each in _PREFIXES if name.lower().startswith(each)), name)
        column = PREFIX + plain.replace("/", "_")
        while column.casefold() in used:
            column += "_annotation"
        used.add(column.casefold())
        names[name] = column
    return {
        column: pa.array([rows[text or ""].get(name, "") for text in texts], pa.string())
        for name, column in names.items()
    }


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
