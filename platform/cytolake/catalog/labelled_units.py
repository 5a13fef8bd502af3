"""Units that labels belong to: wells, or, in wells with labelled objects, the groups of these objects.

A group is all crops of a well that show objects of the same labels alone, such as the cells of one guide in a pooled
screen. It stands where a well stands: it has a profile, a label, and the plate, batch and position of its well. In a
well with groups the labels that its objects have are no longer the well's: its other crops have none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.declared import table_contract

if TYPE_CHECKING:
    from cytolake.catalog.tables import Catalog

OBJECT_LABELS = (
    "perturbation", "gene", "pathway", "guide", "compound", "dose", "replicate", "control", "is_negative_control",
)  # fmt: skip
"""Columns of `objects` that are labels; `wells` has the same."""

UNIT = "unit_id"


@dataclass(frozen=True, slots=True)
class LabelledUnits:
    """Every well and every group that is visible."""

    rows: pa.Table
    """`unit_id` (of a well its id), and the columns of `wells`; `well_id` of a group is that of its well."""
    group_of_crop: pa.Table
    """`crop_id` and `unit_id` of each crop that belongs to a group."""
    wells_with_objects: frozenset[str]
    """Ids of wells with labelled objects. As units they stand for their crops without labels."""
    plates_with_objects: frozenset[str]
    """Ids of plates that have, or once had, labelled objects."""

    @property
    def whole(self) -> pa.Table:
        """Rows of the units that carry labels: of wells with labelled objects their groups, else the wells."""
        if not self.wells_with_objects:
            return self.rows
        rest = pa.array(sorted(self.wells_with_objects), pa.string())
        return self.rows.filter(pc.invert(pc.is_in(self.rows[UNIT], value_set=rest)))

    def outdated(self, unit_ids: Sequence[str], plate_ids: Sequence[str]) -> list[bool]:
        """Which rows of `profiles` belong to groups that a later table of objects replaced.

        Args:
            unit_ids: `well_id` of the rows.
        """
        if not self.plates_with_objects:
            return [False] * len(unit_ids)
        known = set(self.rows[UNIT].to_pylist())
        return [
            unit not in known and plate in self.plates_with_objects
            for unit, plate in zip(unit_ids, plate_ids, strict=True)
        ]

    def of_crops(self, crop_ids: pa.ChunkedArray, well_ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """The unit of each crop, given its well."""
        if not self.group_of_crop.num_rows:
            return well_ids
        place = pc.index_in(crop_ids, value_set=self.group_of_crop["crop_id"].combine_chunks())
        groups = self.group_of_crop[UNIT].combine_chunks().take(_one_chunk(place))
        return pa.chunked_array([pc.coalesce(groups, _one_chunk(well_ids))])


def labelled_units(catalog: Catalog, columns: Sequence[str] | None = None) -> LabelledUnits:
    """Wells and groups with their labels.

    Args:
        catalog: Pinned, where it is read more than once.
        columns: Of `wells`, all by default.
    """
    names = list(table_contract("wells").schema.names if columns is None else columns)
    objects = catalog.table("objects", columns=["plate_id", "well_id", "group_id", "crop_ids", *OBJECT_LABELS])
    plates = catalog.table("plates", columns=["plate_id", "objects_edition"])
    pooled = frozenset(plates.filter(plates["objects_edition"].is_valid())["plate_id"].to_pylist())
    if not objects.num_rows:
        wells = catalog.table("wells", columns=list(dict.fromkeys(["well_id", *names])))
        none = pa.table({"crop_id": pa.array([], pa.string()), UNIT: pa.array([], pa.string())})
        alone = wells.append_column(UNIT, wells["well_id"]).select([UNIT, *names])
        return LabelledUnits(alone, none, frozenset(), pooled)
    wells = catalog.table("wells", columns=list(dict.fromkeys(["well_id", "plate_id", *names, *OBJECT_LABELS])))
    given = _labels_given(objects)
    labels = objects.group_by("group_id", use_threads=False).aggregate(
        [(name, "first") for name in ("well_id", "plate_id", *OBJECT_LABELS)]
    )
    of_well = {row["well_id"]: row for row in wells.to_pylist()}
    with_objects = frozenset(objects["well_id"].to_pylist())
    rows: list[dict[str, Any]] = []
    for well in of_well.values():
        lost = given[well["plate_id"]] if well["well_id"] in with_objects else ()
        rows.append({**well, **{name: _EMPTY.get(name, "") for name in lost}, UNIT: well["well_id"]})
    for group in labels.to_pylist():
        well = of_well.get(group["well_id_first"])
        if well is not None:
            own = {name: group[f"{name}_first"] for name in given[group["plate_id_first"]]}
            rows.append({**well, **own, UNIT: group["group_id"]})
    fields = [pa.field(UNIT, pa.string()), *(table_contract("wells").schema.field(name) for name in names)]
    table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    return LabelledUnits(table, group_of_crop(objects), with_objects, pooled)


_EMPTY: dict[str, Any] = {"dose": None, "is_negative_control": False}


def _labels_given(objects: pa.Table) -> dict[str, frozenset[str]]:
    """For each plate the labels that any of its objects has; those it lacks are the wells'."""
    found: dict[str, set[str]] = {}
    distinct = objects.group_by(["plate_id", *OBJECT_LABELS], use_threads=False).aggregate([])
    for row in distinct.to_pylist():
        found.setdefault(row["plate_id"], set()).update(
            name for name in OBJECT_LABELS if row[name] not in (None, "", False)
        )
    for names in found.values():
        if "control" in names:
            names.add("is_negative_control")
    return {plate: frozenset(names) for plate, names in found.items()}


def group_of_crop(objects: pa.Table) -> pa.Table:
    """`crop_id` and `unit_id` of the crops whose objects are all of one group.

    Args:
        objects: `crop_ids` and `group_id` of each object.
    """
    crops = objects["crop_ids"].combine_chunks()
    pairs = pa.table(
        {
            "crop_id": crops.flatten(),
            UNIT: objects["group_id"].combine_chunks().take(pc.list_parent_indices(crops)),
        }
    )
    counted = pairs.group_by("crop_id", use_threads=False).aggregate([(UNIT, "count_distinct"), (UNIT, "first")])
    pure = counted.filter(pc.equal(counted[f"{UNIT}_count_distinct"], 1))
    return pa.table({"crop_id": pure["crop_id"], UNIT: pure[f"{UNIT}_first"]})


def _one_chunk(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
