"""Labels objects, such as the cells of a pooled screen or cells cropped by another tool, without reading a pixel.

An object labels the crops that show its centre. A crop with objects of one kind of labels alone is of these; a crop
with several kinds is of none. See `cytolake.catalog.labelled_units` for how they are read.

Shapes: N objects.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.corrections.editions import edition_application
from cytolake.catalog.corrections.object_crops import by_crop, by_place, once
from cytolake.catalog.corrections.plate_rows import Row, change, name_of, plates_named
from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.ingest.screen_problems import quarantine_rows
from cytolake.catalog.labelled_units import OBJECT_LABELS, UNIT, group_of_crop
from cytolake.catalog.tables import Catalog
from cytolake.screens.label_vocabulary import nfc
from cytolake.screens.object_table import ObjectTable, read_object_table
from cytolake.screens.plate import Problem
from cytolake.screens.well_labels import TEXT_LABELS, WellLabels

_SOME = 5
_MOST_OUTSIDE = 0.5
"""Share of a plate's objects outside all crops above which their coordinates are taken not to be pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectsReport:
    """Which labels of objects changed, or would change."""

    plates: tuple[str, ...]
    """Names, as screen/plate, of the plates whose labels of objects changed."""
    n_objects: int
    """Labelled objects on all plates of the table."""
    n_before: int
    """Objects that were labelled there before."""
    n_outside: int
    """Objects that no crop shows."""
    n_crops: int
    """Crops whose objects all have the same labels."""
    n_mixed: int
    """Crops whose objects have different labels; these crops get none."""
    n_perturbations: int
    columns: Mapping[str, str]
    """Column of the table, by label or position."""
    problems: tuple[Problem, ...]
    is_committed: bool


@dataclass(frozen=True, slots=True)
class _OfPlate:
    row: Row
    objects: pa.Table
    edition: str
    problems: tuple[Problem, ...] = ()


def annotate_objects(
    catalog: Catalog,
    name: str,
    table: str | Path,
    *,
    label_columns: Mapping[str, str] | None = None,
    is_dry_run: bool = False,
) -> ObjectsReport:
    """Give objects of a plate, or of the plates of a screen, labels of their own, in one commit.

    The table is the whole truth about the plates that it names: objects that it lacks have no labels any more. In a
    well with labelled objects these labels count, and the well's do not. Older versions of the catalog keep the older.

    Args:
        catalog: Not pinned.
        name: `screen/plate`, a plate, a plate_id, or a screen: then the table's plate column says which plates.
        table: See `cytolake.screens.object_table`.
        label_columns: Label -> column, before the names of catalog/labels.yaml.
        is_dry_run: Compare only.

    Raises:
        ScreenError: The table cannot be read.
        CatalogError: No such plate, a table that does not name it, objects in no well of it, or another process
            corrected it meanwhile.
    """
    rows = plates_named(catalog, name, may_be_screen=True)
    found = read_object_table(table, rows[0]["screen"], label_columns)
    of_plate = _rows_of_plates(found, rows)
    named = [row for row in rows if row["plate_id"] in of_plate]
    tried = [_plate(catalog, row, found, of_plate[row["plate_id"]]) for row in named]
    plates = [each for each in tried if each is not None]
    if not plates:
        raise CatalogError(
            f"{found.source}: found no crop of {', '.join(map(name_of, rows[:_SOME]))}, expected some. Take crop ids "
            "from the table crops, or from the import that the cells came in by."
        )
    problems = [*found.problems, *_without_crop(found, plates, rows[0]["screen"])]
    changed = [each for each in plates if each.edition != each.row["objects_edition"]]
    if changed and not is_dry_run:
        _commit(catalog, changed, problems)
    n_before = sum(catalog.rows_of_plate("objects", each.row).count_rows() for each in plates)
    objects = pa.concat_tables([each.objects for each in plates])
    in_crops = pc.greater(pc.list_value_length(objects["crop_ids"]), 0)
    n_crops = group_of_crop(objects).num_rows
    return ObjectsReport(
        plates=tuple(name_of(each.row) for each in changed),
        n_objects=objects.num_rows,
        n_before=n_before,
        n_outside=objects.num_rows - (pc.sum(in_crops).as_py() or 0),
        n_crops=n_crops,
        n_mixed=len(pc.unique(objects["crop_ids"].combine_chunks().flatten())) - n_crops,
        n_perturbations=len(set(objects["perturbation"].to_pylist()) - {""}),
        columns=found.columns,
        problems=(*problems, *(problem for each in plates for problem in each.problems)),
        is_committed=bool(changed) and not is_dry_run,
    )


def label_crops(catalog: Catalog, crops: pa.Table, labels: Sequence[WellLabels], label_of_row: Sequence[int]) -> int:
    """Label crops that were cut elsewhere, as an import has them; objects that have labels already keep theirs.

    Args:
        catalog: Not pinned.
        crops: (N,) `crop_id`, `well_id` and `plate_id`.
        labels: Combinations of labels.
        label_of_row: (N,) index into them; -1 for a crop without labels.

    Returns:
        Crops that have new labels.

    Raises:
        CatalogError: Another process corrected a plate meanwhile.
    """
    kinds = np.asarray(label_of_row, dtype=np.intp)
    plate_of_row = crops["plate_id"].to_pylist()
    rows = {row["plate_id"]: row for row in catalog.visibility().visible.to_pylist()}
    changed, n_new = [], 0
    for plate_id in sorted(set(plate_of_row)):
        here = np.flatnonzero(np.asarray([each == plate_id for each in plate_of_row]) & (kinds >= 0))
        if not len(here):
            continue
        row = rows[plate_id]
        mine = crops.take(pa.array(here))
        ids = mine["crop_id"].to_pylist()
        wells = mine["well_id"].to_pylist()
        before = catalog.rows_of_plate("objects", row).to_table()
        known = set(before["object_id"].to_pylist())
        plain = {
            "object_id": [content_id("object", plate_id, "crop", crop) for crop in ids],
            "plate_id": [plate_id] * len(ids),
            "well_id": wells,
            "site": [""] * len(ids),
            "object": ids,
            "y": pa.nulls(len(ids), pa.float64()),
            "x": pa.nulls(len(ids), pa.float64()),
            "crop_ids": [[crop] for crop in ids],
            **_label_columns(labels, kinds[here].tolist()),
        }
        new = pa.table(plain)
        new = new.filter(pa.array([each not in known for each in plain["object_id"]]))
        if not new.num_rows:
            continue
        n_new += new.num_rows
        kept = before.select(new.column_names).cast(new.schema)
        objects, edition = _as_edition(row, pa.concat_tables([kept, new]))
        changed.append(_OfPlate(row, objects, edition))
    if changed:
        _commit(catalog, changed)
    return n_new


def _rows_of_plates(table: ObjectTable, rows: Sequence[Row]) -> dict[str, np.ndarray[Any, np.dtype[np.intp]]]:
    """For each plate that the table names the rows of the table."""
    if not table.plate[0]:
        if len(rows) > 1 and not table.crop[0]:
            raise CatalogError(
                f"{table.source}: found no plate column, expected one: {rows[0]['screen']} has {len(rows)} plates. Add "
                "it, or give the plate's name as screen/plate."
            )
        return {row["plate_id"]: np.arange(len(table.plate)) for row in rows}
    names = np.asarray(table.plate, dtype=object)
    found = {row["plate_id"]: np.flatnonzero(names == nfc(row["plate"])) for row in rows}
    found = {plate_id: here for plate_id, here in found.items() if len(here)}
    if not found:
        there = sorted(set(table.plate))
        raise CatalogError(
            f"{table.source}: found the plates {', '.join(there[:8])}, expected {name_of(rows[0])}. Correct the plate "
            "column, or give the plate's name as the catalog has it."
        )
    return found


def _plate(catalog: Catalog, row: Row, table: ObjectTable, here: np.ndarray[Any, np.dtype[np.intp]]) -> _OfPlate | None:
    """The objects of one plate, matched to its crops; None where all crops of a table are of other plates."""
    problems: list[Problem] = []

    def report(problem: str, found: str, expected: str, next_step: str) -> None:
        problems.append(
            Problem(
                screen=row["screen"],
                plate=row["plate"],
                file=Path(table.source).name,
                problem=problem,
                found=found,
                expected=expected,
                next_step=next_step,
            )
        )

    index = here.tolist()
    crops = catalog.rows_of_plate("crops", row).to_table(
        columns=["crop_id", "well_id", "well", "site", "y", "x", "size"]
    )
    has_crop_ids = bool(table.crop[0])
    objects = pa.table(
        {
            "n": pa.array(np.arange(len(index)), pa.int64()),
            "crop": [table.crop[i] for i in index],
            "well": [table.well[i] for i in index],
            "site": [table.site[i] for i in index],
            "object": [table.object[i] for i in index],
            "y": pa.array(table.y[here], from_pandas=True),
            "x": pa.array(table.x[here], from_pandas=True),
            "kind": pa.array(table.label_of_row[here]),
        }
    )
    if has_crop_ids:
        shown, placed = by_crop(catalog, row, objects, crops)
    else:
        shown, placed = by_place(catalog, row, objects, crops, report)
    if not placed.num_rows:
        if has_crop_ids and not table.plate[0]:
            return None
        raise CatalogError(
            f"{table.source}: found no object in a well or crop of plate {name_of(row)}, expected some. Wells there: "
            f"{', '.join(sorted({table.well[i] for i in index})[:_SOME])}. Correct the table, or name its plate."
        )
    placed = once(placed, report)
    crop_ids = pa.array([shown.get(n, []) for n in placed["n"].to_pylist()], pa.list_(pa.string()))
    known_positions = not has_crop_ids and np.isfinite(table.y[here]).all()
    n_outside = sum(not each for each in crop_ids.to_pylist())
    if known_positions and n_outside > _MOST_OUTSIDE * placed.num_rows:
        report(
            "object_outside_image",
            f"{n_outside} of {placed.num_rows} objects whose centre lies in no crop",
            "y and x in pixels of the whole image, from its top left corner",
            "Convert micrometres, or coordinates of a stitched well, to pixels of the site.",
        )
    wells, sites, names = (placed[each].to_pylist() for each in ("well_id", "site", "object"))
    places = zip(wells, sites, names, strict=True)
    plain = pa.table(
        {
            "object_id": [content_id("object", row["plate_id"], *place) for place in places],
            "plate_id": [row["plate_id"]] * placed.num_rows,
            "well_id": wells,
            "site": sites,
            "object": names,
            "y": placed["y"],
            "x": placed["x"],
            "crop_ids": crop_ids,
            **_label_columns(table.labels, placed["kind"].to_pylist()),
        }
    )
    return _OfPlate(row, *_as_edition(row, plain), tuple(problems))


def _without_crop(table: ObjectTable, plates: Sequence[_OfPlate], screen: str) -> list[Problem]:
    """A problem for objects of a table of crops whose crop no plate has."""
    if not table.crop[0]:
        return []
    there = {crop for each in plates for crops in each.objects["crop_ids"].to_pylist() for crop in crops}
    lost = [crop for crop in table.crop if crop not in there]
    if not lost:
        return []
    return [
        Problem(
            screen=screen,
            file=Path(table.source).name,
            problem="object_without_crop",
            found=f"{len(lost)} objects of crops that no plate here has, such as {lost[0]}",
            expected="ids of the table crops, or of imported vectors",
            next_step="Correct the ids, or name the screen that has them; until then these objects have no labels.",
        )
    ]


def _label_columns(labels: Sequence[WellLabels], kinds: Sequence[int]) -> dict[str, pa.Array]:
    """The columns of `objects` for labels, of the combination that each row has."""
    columns: dict[str, list[Any]] = {
        "perturbation": [each.perturbation for each in labels],
        **{name: [each.texts[name] for each in labels] for name in TEXT_LABELS},
        "dose": [each.dose for each in labels],
        "control": [each.control for each in labels],
        "is_negative_control": [each.control == "negative" for each in labels],
    }
    schema, place = table_contract("objects").schema, pa.array(kinds, pa.int64())
    return {name: pa.array(values, schema.field(name).type).take(place) for name, values in columns.items()}


def _as_edition(row: Row, objects: pa.Table) -> tuple[pa.Table, str]:
    """Rows of `objects`, in order of their ids, with groups and their edition."""
    contract = table_contract("objects")
    objects = objects.sort_by("object_id")
    kinds = [content_id(*map(str, kind)) for kind in zip(*(objects[n].to_pylist() for n in OBJECT_LABELS), strict=True)]
    wells = objects["well_id"].to_pylist()
    objects = objects.append_column(
        "group_id", pa.array([content_id(*pair) for pair in zip(wells, kinds, strict=True)])
    )
    members: dict[str, list[str]] = {}
    pure = group_of_crop(objects)
    for crop, group in sorted(zip(pure["crop_id"].to_pylist(), pure[UNIT].to_pylist(), strict=True)):
        members.setdefault(group, []).append(crop)
    named = {each: content_id("group", each, *members.get(each, ())) for each in set(objects["group_id"].to_pylist())}
    groups = pa.array([named[each] for each in objects["group_id"].to_pylist()], pa.string())
    objects = objects.set_column(objects.column_names.index("group_id"), "group_id", groups)
    digest = hashlib.blake2b(digest_size=16)
    for name in ("object_id", "group_id", "y", "x", "crop_ids"):
        digest.update(repr(objects[name].to_pylist()).encode())
    edition = content_id("objects", row["plate_id"], digest.hexdigest())
    objects = objects.append_column("edition", pa.repeat(edition, objects.num_rows))
    return contract.conform(objects.select(contract.schema.names)), edition


def _commit(catalog: Catalog, plates: Sequence[_OfPlate], of_table: Sequence[Problem] = ()) -> None:
    """All plates at once; what is wrong with the table as a whole goes into quarantine with the first."""
    now = datetime.datetime.now(datetime.UTC)
    after = []
    for each in plates:
        catalog.append("objects", each.objects, transaction=edition_application(each.edition))
        problems = [*(of_table if each is plates[0] else ()), *each.problems]
        if problems:
            quarantine = quarantine_rows(each.row["plate_id"], problems, now)
            catalog.append("quarantine", quarantine, transaction=edition_application(each.edition))
        # Named even where it has no rows: profiles of the groups that were are known to be outdated by it.
        after.append(each.row | {"objects_edition": each.edition, "labelled_at": now, "changed_at": now})
    change(catalog, [each.row for each in plates], after)
