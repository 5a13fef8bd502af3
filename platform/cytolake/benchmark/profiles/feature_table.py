"""Reader of a table with measured features of wells, such as CellProfiler's, matched to the scored wells.

Shapes: W wells, F features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytolake.benchmark.profiles.wells import Wells
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.screens.positions import well_name

Floats = NDArray[np.float64]

LABELS = ("screen", "plate", "well")
"""Columns that identify a row, such as Metadata_Plate: in any case, with or without Metadata_."""
BOOKKEEPING = ("imagenumber", "objectnumber", "tablenumber")
"""Columns of CellProfiler that number rows and are no features."""
_SOME = 3


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTable:
    """Features of the scored wells."""

    source: str
    names: tuple[str, ...]
    """(F,)"""
    values: Floats
    """(W, F); NaN where the table has no row of the well, or no number."""
    has_row: NDArray[np.bool_]
    """(W,)"""
    n_unmatched: int
    """Rows of the table that belong to none of the wells."""

    @property
    def identity(self) -> str:
        """Hash of all names and values."""
        return content_id("feature table", *self.names, hashlib.sha256(self.values.tobytes()).hexdigest())


def read_feature_table(catalog: Catalog, path: Path, wells: Wells) -> FeatureTable:
    """Read a Parquet table with one row for each well.

    Args:
        catalog: Catalog with the positions of the wells.
        path: Table with Metadata_Plate, Metadata_Well, Metadata_Screen where plates of several screens share a name,
            and columns of numbers; those with `Metadata` in their name and those of `BOOKKEEPING` are no features.

    Raises:
        ValueError: Not such a table, two rows of one well, plates of several screens, or no row of any of the wells.
    """
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file ({error}). Save the features as Parquet.") from None
    labels = {label: name for name in table.column_names if (label := name.lower().removeprefix("metadata_")) in LABELS}
    names = tuple(name for name in table.column_names if _is_feature(name, table[name].type))
    if not {"plate", "well"} <= set(labels) or not names:
        raise ValueError(
            f"{path}: found the columns {', '.join(table.column_names[:_SOME])} ({table.num_columns} in all), expected "
            "Metadata_Plate, Metadata_Well and columns of numbers. Aggregate the features to wells first."
        )
    texts = {label: ["" if v is None else str(v) for v in table[name].to_pylist()] for label, name in labels.items()}
    screens = texts.get("screen", [""] * table.num_rows)
    place_of = _places(catalog, wells)
    row_of_well: dict[int, int] = {}
    n_unmatched = 0
    for row, (screen, plate, text) in enumerate(zip(screens, texts["plate"], texts["well"], strict=True)):
        places = place_of.get((screen, plate, well_name(text) or text), [])
        if len(places) > 1:
            raise ValueError(
                f"{path}: row {row} (plate {plate}, well {text}) is of one of {len(places)} screens that have a plate "
                "of this name. Add the column Metadata_Screen."
            )
        if not places:
            n_unmatched += 1
        elif places[0] in row_of_well:
            raise ValueError(
                f"{path}: rows {row_of_well[places[0]]} and {row} are both of plate {plate}, well {text}. Expected one "
                "for each well: aggregate sites or cells to wells first."
            )
        else:
            row_of_well[places[0]] = row
    if not row_of_well:
        known = sorted({(plate, well) for _, plate, well in place_of})
        raise ValueError(
            f"{path}: none of {table.num_rows} rows is of one of the {len(wells.well_id)} wells that are scored. The "
            f"table has such as plate {texts['plate'][:1]}, well {texts['well'][:1]}, the catalog such as plate "
            f"{known[0][0]!r}, well {known[0][1]!r}. Name plates and wells as the plate map does."
        )
    found_WF = np.full((len(wells.well_id), len(names)), np.nan)
    places, rows = list(row_of_well), list(row_of_well.values())
    for column, name in enumerate(names):
        found_WF[places, column] = table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()[rows]
    has_row = np.zeros(len(wells.well_id), dtype=bool)
    has_row[places] = True
    return FeatureTable(str(path), names, found_WF, has_row, n_unmatched)


def _is_feature(name: str, kind: pa.DataType) -> bool:
    lower = name.lower()
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return is_number and "metadata" not in lower and lower not in (*LABELS, *BOOKKEEPING, "site")


def _places(catalog: Catalog, wells: Wells) -> dict[tuple[str, str, str], list[int]]:
    """Index into `wells` of each screen, plate and position; under the empty screen, those of all screens."""
    number = {well_id: i for i, well_id in enumerate(wells.well_id)}
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in catalog.table("wells", columns=["well_id", "screen", "plate", "well"]).to_pylist():
        if row["well_id"] in number:
            for screen in {"", row["screen"] or ""}:
                found.setdefault((screen, row["plate"], row["well"]), []).append(number[row["well_id"]])
    return found
