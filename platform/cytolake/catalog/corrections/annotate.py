"""Replaces the labels of wells in the catalog by those of a plate map, without reading a pixel."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from cytolake.catalog.corrections.editions import edition_application, write_names, write_wells
from cytolake.catalog.corrections.plate_rows import Row, change, name_of, plates_named
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ingest.commit import ids_of
from cytolake.catalog.ingest.labels import LabelChange, label_changes, labels_hash
from cytolake.catalog.ingest.screen_problems import quarantine_rows
from cytolake.catalog.ingest.wells import well_rows
from cytolake.catalog.tables import Catalog
from cytolake.screens.label_vocabulary import check_label_columns
from cytolake.screens.plate import Plate, Problem, SiteImage
from cytolake.screens.plate_annotation import label_plate
from cytolake.screens.plate_map import PlateMap, plates_without_images, read_plate_map
from cytolake.screens.positions import is_position, well_order
from cytolake.screens.well_labels import declare_labels
from cytolake.storage.source_folder import SourceFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotateReport:
    """What an annotation changed, or would change."""

    changes: tuple[LabelChange, ...]
    problems: tuple[Problem, ...]
    """Errors in the map, and wells in which it disagrees with the images."""
    plates: tuple[str, ...]
    """Names, as screen/plate, of the plates whose labels changed."""
    is_committed: bool
    not_in_map: tuple[str, ...] = ()
    """Names of the plates of the screen that are not in the map: they keep their labels."""


@dataclass(frozen=True, slots=True)
class _Labelled:
    row: Row
    wells: list[dict[str, Any]]
    batch: str
    changes: list[LabelChange]
    problems: list[Problem]


def annotate(
    catalog: Catalog,
    name: str,
    plate_map: str | Path,
    *,
    label_columns: Mapping[str, str] | None = None,
    is_dry_run: bool = False,
) -> AnnotateReport:
    """Give the wells of a plate, or of all plates of a screen, the labels of a plate map, in one commit.

    The map is the whole truth: a well that it does not name loses its labels. Crops, embeddings and QC stay as they
    are; curations, scores and aligned profiles from the labels of before are stale (`cytolake plates`). Older versions
    of the catalog keep the older labels.

    Args:
        catalog: Not pinned.
        name: `screen/plate`, a plate, a plate_id, or a screen: then the map's plate column says which plates.
        plate_map: CSV or TSV, as for an ingest. The batch of a plate changes where the map names another.
        label_columns: Label -> column of the map, as `ScreenSource.label_columns`, for columns of other names than
            catalog/labels.yaml has.
        is_dry_run: Compare only.

    Raises:
        ScreenError: The map cannot be read.
        ValueError: `label_columns` names what is no label.
        CatalogError: No such plate, a map that does not name it or has no label for it, or another process corrected
            it meanwhile.
    """
    rows = plates_named(catalog, name, may_be_screen=True)
    path = Path(plate_map).expanduser().resolve()
    declared = label_columns or {}
    check_label_columns(declared)
    wells = {
        well["well"] for row in rows for well in catalog.rows_of_plate("wells", row).to_table(["well"]).to_pylist()
    }
    samples = frozenset(well for well in wells if not is_position(well))
    found = read_plate_map(SourceFolder(path.parent), path.name, rows[0]["screen"], samples=samples)
    named = [row for row in rows if not found.has_plates or row["plate"] in found.by_plate]
    if not named:
        raise CatalogError(
            f"{path}: found the plates {', '.join(found.plates()[:8]) or 'of no row'}, expected {name_of(rows[0])}. "
            "Correct the map's plate column, or give the plate's name as the catalog has it."
        )
    labelled = [_label(catalog, row, found, declared) for row in named]
    for each in labelled:
        _check_labels(catalog, each, path)
    changed = [each for each in labelled if each.changes]
    of_screen = {row["plate"] for row in catalog.visibility().plates.to_pylist() if row["screen"] == rows[0]["screen"]}
    unknown = plates_without_images(found, sorted(of_screen))
    problems = [*found.problems, *unknown, *(problem for each in labelled for problem in each.problems)]
    if changed and not is_dry_run:
        _commit(catalog, changed, path)
    return AnnotateReport(
        changes=tuple(change for each in changed for change in each.changes),
        problems=tuple(problems),
        plates=tuple(name_of(each.row) for each in changed),
        is_committed=bool(changed) and not is_dry_run,
        not_in_map=tuple(name_of(row) for row in rows if row not in named),
    )


def _label(catalog: Catalog, row: Row, plate_map: PlateMap, label_columns: Mapping[str, str]) -> _Labelled:
    stored = catalog.rows_of_plate("wells", row).to_table().to_pylist()
    with_images = frozenset(well["well"] for well in stored if well["has_images"])
    imaged = with_images | _wells_with_unreadable_sites(catalog, row["plate_id"])
    plate = label_plate(_as_listed(row, sorted(imaged, key=well_order)), plate_map)
    plate = declare_labels(plate, label_columns)
    wells, problems = well_rows(plate, with_images)
    of = ids_of(row)
    for well in wells:
        well |= {"well_id": of.well_id(well["well"]), "plate_id": row["plate_id"]}
    changes = label_changes(row["screen"], row["plate"], stored, wells)
    if plate.batch != row["batch"]:
        changes.insert(0, LabelChange(row["screen"], row["plate"], "", "batch", row["batch"], plate.batch))
    return _Labelled(row, wells, plate.batch, changes, [*plate.problems, *problems])


def _check_labels(catalog: Catalog, labelled: _Labelled, path: Path) -> None:
    """Raise where a map would remove every perturbation: it is the wrong file, or its columns have other names."""
    stored = catalog.rows_of_plate("wells", labelled.row).to_table().to_pylist()
    before, after = (
        [well["well"] for well in rows if well["has_images"] and well["perturbation"]]
        for rows in (stored, labelled.wells)
    )
    if before and not after:
        raise CatalogError(
            f"{path}: found no perturbation of any imaged well of plate {name_of(labelled.row)}, of which "
            f"{len(before)} have one, expected at least one. Nothing was changed. Correct the wells or the names of "
            "the columns (those of catalog/labels.yaml are known); to change a batch alone, give the labels, too."
        )


def _as_listed(row: Mapping[str, Any], wells: list[str]) -> Plate:
    """The plate as a listing gives it, with a site in each imaged well and without labels."""
    sites = tuple(
        SiteImage(
            screen=row["screen"], plate=row["plate"], well=well, site="", channels=(), reader="files", image_paths=()
        )
        for well in wells
    )
    return Plate(
        screen=row["screen"],
        plate=row["plate"],
        batch=row["batch"],
        source=row["source"],
        reader=row["reader"],
        channels=tuple(row["channels"] or ()),
        sites=sites,
    )


def _wells_with_unreadable_sites(catalog: Catalog, plate_id: str) -> frozenset[str]:
    rows = catalog.dataset("quarantine").to_table(
        columns=["well", "site"], filter=(pc.field("plate_id") == plate_id) & (pc.field("site") != "")
    )
    return frozenset(rows.column("well").to_pylist()) - {""}


def _commit(catalog: Catalog, labelled: list[_Labelled], path: Path) -> None:
    now = datetime.datetime.now(datetime.UTC)
    after = []
    for each in labelled:
        row, edition = each.row, write_wells(catalog, each.row, each.wells)
        new = row | {
            "batch": each.batch,
            "n_wells": len(each.wells),
            "labels_hash": labels_hash(each.wells, each.batch),
            "labels_source": str(path),
            "labelled_at": now,
            "changed_at": now,
            "wells_edition": edition,
        }
        if each.batch != row["batch"]:
            new["sites_edition"] = write_names(catalog, row, {"batch": each.batch})
        if each.problems:
            quarantine = quarantine_rows(row["plate_id"], each.problems, now)
            catalog.append("quarantine", quarantine, transaction=edition_application(edition))
        after.append(new)
    change(catalog, [each.row for each in labelled], after)
