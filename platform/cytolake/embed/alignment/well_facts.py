"""Plate or batch of each stored row, and whether it is a negative control, for an alignment.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.labelled_units import UNIT, LabelledUnits, labelled_units

AlignBy = Literal["plate", "batch"]


@dataclass(frozen=True, slots=True)
class WellFacts:
    """Facts of every well and every group of labelled objects."""

    of_unit: Mapping[str, tuple[str, bool]]
    """Id of a well or group -> its plate or batch, and whether it holds the negative control."""
    of_plate: Mapping[str, str]
    """plate_id -> the same plate or batch, of plates with labelled objects: for profiles of groups that are no more."""
    units: LabelledUnits

    def of_rows(self, rows: pa.Table, representation_id: str) -> tuple[NDArray[np.object_], NDArray[np.bool_]]:
        """(N,) plate or batch of rows of `embeddings` or `profiles`, and (N,) whether they are negative controls.

        Raises:
            ValueError: A row of a well that is not in `wells`.
        """
        wells = rows["well_id"]
        if "crop_id" in rows.column_names:
            wells = self.units.of_crops(rows["crop_id"], wells)
        ids, plates = wells.to_pylist(), rows["plate_id"].to_pylist()
        self.check_known(ids, plates, representation_id)
        found = [
            self.of_unit.get(unit) or (self.of_plate[plate], False) for unit, plate in zip(ids, plates, strict=True)
        ]
        return np.asarray([group for group, _ in found], dtype=object), np.asarray([c for _, c in found], dtype=bool)

    def of_wells(self, wells: Sequence[str]) -> dict[str, tuple[str, bool]]:
        """Facts of these wells or groups, and of the groups of these wells."""
        wanted = set(wells)
        pairs = zip(self.units.rows[UNIT].to_pylist(), self.units.rows["well_id"].to_pylist(), strict=True)
        return {unit: self.of_unit[unit] for unit, well in pairs if unit in wanted or well in wanted}

    def check_known(self, ids: Sequence[str], plates: Sequence[str], representation_id: str) -> None:
        """Raise ValueError where a row is of a well that is not in `wells`."""
        pairs = zip(ids, plates, strict=True)
        unknown = {unit for unit, plate in pairs if unit not in self.of_unit and plate not in self.of_plate}
        if unknown:
            raise ValueError(
                f"representation {representation_id}: {len(unknown)} of {len(set(ids))} wells are not in the table "
                f"wells, such as {', '.join(sorted(map(str, unknown))[:3])}. Ingest their plates again."
            )


def read_well_facts(catalog: Catalog, align_by: AlignBy) -> WellFacts:
    """Of all visible wells. A well without a batch counts as of a batch named as its plate."""
    units = labelled_units(catalog, ["well_id", "plate_id", "screen", "plate", "batch", "is_negative_control"])
    of_unit: dict[str, tuple[str, bool]] = {}
    of_plate: dict[str, str] = {}
    for row in units.rows.to_pylist():
        name = row["plate"] if align_by == "plate" else row["batch"] or row["plate"]
        of_unit[row[UNIT]] = (f"{row['screen']}/{name}", bool(row["is_negative_control"]))
        if row["plate_id"] in units.plates_with_objects:
            of_plate[row["plate_id"]] = of_unit[row[UNIT]][0]
    return WellFacts(of_unit, of_plate, units)
