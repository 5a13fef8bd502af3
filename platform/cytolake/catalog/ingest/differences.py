"""How a plate as its source lists it now differs from what the catalog has, and the command that settles it."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.ingest.labels import label_changes, labels_of
from cytolake.catalog.ingest.plate_content import PlateContent
from cytolake.catalog.ingest.wells import well_rows
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import VISIBLE
from cytolake.screens.plate import WELLS_ONLY, Plate, Problem
from cytolake.screens.plate_annotation import default_batch
from cytolake.screens.sources import ScreenSource
from cytolake.storage.atomic_write import atomic_file
from cytolake.storage.files import is_uri

LABELS_NAME_MAX = 60  # a file's name has 255 bytes at most, and a letter up to 4; names that look alike get a hash
LABELS_FOLDER = "labels"
"""Below the root: labels as a source has them now, where they differ from the catalog's, as plate maps."""
NEW_ACQUISITION = "It reads the plate as a new acquisition; what was computed from the old one is hidden, not deleted."

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """What an ingest does with a plate that the catalog has."""

    kind: Literal["same", "read", "refused"]
    """`same`: skip it. `read`: its pixels decide, see `changed_pixels`. `refused`: `problem` says why."""
    problem: Problem | None = None


SAME, READ = Difference("same"), Difference("read")


def difference(
    catalog: Catalog,
    plate: Plate,
    content: PlateContent,
    known: Row,
    crop_size: int,
    *,
    by_checksum: bool,
    source: ScreenSource | None,
) -> Difference:
    """Compare a plate with its visible row of `plates`.

    Args:
        plate: As its source lists it now.
        crop_size: Of this ingest, pixels.
        by_checksum: Read pixels also where names, sizes and times of all files are those of before.
        source: The screen that the plate was listed from, for the command in a problem.
    """
    refused = _cannot_be_compared(catalog, plate, known, crop_size, source)
    if refused is not None:
        return Difference("refused", refused)
    is_at_its_place = known["source"] == plate.source
    is_touched = is_at_its_place and known["files_hash"] not in (None, content.files_hash)
    if known["content_hash"] == content.content_hash:
        return READ if by_checksum or is_touched else SAME
    if known["pixels_hash"] not in (None, content.pixels_hash):
        return Difference(
            "refused", changed_pixels(catalog, plate, known, source, "image files of other names or sizes")
        )
    if by_checksum or is_touched or known["pixels_hash"] is None:
        return READ
    return labels_difference(catalog, plate, known)


def labels_difference(catalog: Catalog, plate: Plate, known: Row) -> Difference:
    """Compare labels alone. A source without any label removes none."""
    stored = catalog.dataset("wells").to_table(filter=pc.field("plate_id") == known["plate_id"]).to_pylist()
    listed, _ = well_rows(plate, frozenset())
    changes = label_changes(plate.screen, plate.plate, stored, listed) if labels_of(listed) else []
    is_other_batch = not _is_same_batch(plate, known)
    if not changes and not is_other_batch:
        return SAME
    first = f"batch {plate.batch!r}, was {known['batch']!r}"
    if changes:
        n_wells = len({change.well for change in changes})
        first = (
            f"{n_wells} wells with other labels, the first {changes[0].well}: {changes[0].column} "
            f"{changes[0].after!r}, was {changes[0].before!r}"
        )
    file = _write_labels(catalog, plate)
    name = shlex.quote(f"{plate.screen}/{plate.plate}")
    return Difference(
        "refused",
        _problem(
            plate,
            "labels_changed",
            first,
            f"the labels that the catalog has, of {(known['labelled_at'] or known['ingested_at']):%Y-%m-%d %H:%M} UTC",
            f"To take the new ones: cytolake plates annotate {name} --plate-map {file}{_where(catalog)} (--dry-run "
            "shows what changes). No pixel is read.",
        ),
    )


def changed_pixels(catalog: Catalog, plate: Plate, known: Row, source: ScreenSource | None, found: str) -> Problem:
    """The problem of a plate with other pixels, with the command that ingests it."""
    return _problem(
        plate,
        "plate_changed",
        found,
        f"the files of {known['ingested_at']:%Y-%m-%d %H:%M} UTC, when the catalog read them",
        f"If the new files are right: {_replace_command(catalog, plate, source)}. {NEW_ACQUISITION} Else put the old "
        "files back.",
    )


def _replace_command(catalog: Catalog, plate: Plate, source: ScreenSource | None) -> str:
    name = shlex.quote(f"{plate.screen}/{plate.plate}")
    options = _listed_by(source) if source is not None else f" --path {shlex.quote(plate.source)}"
    return f"cytolake plates replace {name}{options}{_where(catalog)}"


def _how_to_find_it(catalog: Catalog, plate: Plate, known: Row, source: ScreenSource | None) -> str:
    """What to do about a plate whose files are no longer where the catalog reads them."""
    if is_uri(plate.source):
        return f"Copy the plate back; or {_replace_command(catalog, plate, source)}. {NEW_ACQUISITION}"
    old, new = Path(known["source"]), shlex.quote(str(Path(plate.source).absolute()))
    return (
        f"Leave a link there, and ingest again: mkdir -p {shlex.quote(str(old.parent))} && ln -s {new} "
        f"{shlex.quote(str(old))}. Embeddings and scores stay."
    )


def same_sites(catalog: Catalog, plate_id: str, staged: Sequence[Row]) -> bool:
    """Whether sites that were read again have the pixels of the catalog's, by checksum.

    Of sites of before checksums, mean and sd of each channel are compared instead (`means` of a staged site).
    """
    stored = catalog.dataset("sites").to_table(
        columns=["site_id", "checksum", "channels"], filter=pc.field("plate_id") == plate_id
    )
    before = {row["site_id"]: (row["checksum"], row["channels"]) for row in stored.to_pylist()}
    after = {row["site_id"]: row for row in staged}
    if before.keys() != after.keys():
        return False
    old = {site for site, (checksum, _) in before.items() if checksum is None}
    if any(before[site] != (row["checksum"], row["channels"]) for site, row in after.items() if site not in old):
        return False
    if not old:
        return True
    metrics = catalog.dataset("qc_metrics").to_table(
        columns=["site_id", "channel_index", "mean", "sd"], filter=pc.field("plate_id") == plate_id
    )
    measured = {(row["site_id"], row["channel_index"]): (row["mean"], row["sd"]) for row in metrics.to_pylist()}
    return all(
        _is_close(measured.get((site, index)), pair) for site in old for index, pair in enumerate(after[site]["means"])
    )


def files_under_another_name(catalog: Catalog, plate: Plate, visible: Collection[Row]) -> Problem | None:
    """A problem where most of the plate's images are in the catalog already, as a plate of another name."""
    ours = {(site.image_paths, site.planes, site.z) for site in plate.sites}
    there, n_sites = _with_files(catalog, plate, visible)
    if there is None:
        return None
    old = f"{there['screen']}/{there['plate']}"
    options = f" --screen {shlex.quote(plate.screen)}" if there["screen"] != plate.screen else ""
    options += f" --plate {shlex.quote(plate.plate)}" if there["plate"] != plate.plate else ""
    return _problem(
        plate,
        "files_in_catalog",
        f"{n_sites} of {len(ours)} sites whose files the catalog has as {old}",
        "files of a plate that is not in the catalog",
        f"If it is the same plate under a new name: cytolake plates rename {shlex.quote(old)}{options}"
        f"{_where(catalog)}. Its ids, embeddings and scores stay. To read the files a second time, use another catalog "
        "root.",
    )


def _with_files(catalog: Catalog, plate: Plate, rows: Collection[Row]) -> tuple[Row | None, int]:
    """The row of `plates` with the most images of the plate, and their number; None and 0 where there is none."""
    others = [row for row in rows if row["source"] == plate.source]
    if not others:
        return None, 0
    ours = {(site.image_paths, site.planes, site.z) for site in plate.sites}
    columns = ["image_paths", "planes", "z"]
    counts = {  # of hidden plates too, which `Catalog.dataset` leaves out
        row["plate_id"]: sum(
            (tuple(site["image_paths"]), tuple(site["planes"] or ()), site["z"]) in ours
            for site in catalog.rows_of_plate("sites", row).to_table(columns).to_pylist()
        )
        for row in others
    }
    most = max(counts, key=lambda each: counts[each], default="")
    if not most or 2 * counts[most] <= len(ours):
        return None, 0
    return next(row for row in others if row["plate_id"] == most), counts[most]


def copied_plate(
    catalog: Catalog, plate: Plate, content: PlateContent, plate_id: str, checksums: Collection[str]
) -> Problem | None:
    """A remark on a plate whose every pixel is that of another visible plate, read from other files.

    Args:
        catalog: Where the other plate may be.
        content: Its hashes: only plates with images of the same names and sizes are looked at.
    """
    rows = catalog.visibility().visible.to_pylist()
    alike = [row for row in rows if row["pixels_hash"] == content.pixels_hash and row["plate_id"] != plate_id]
    for row in alike if checksums else ():
        sites = catalog.dataset("sites").to_table(columns=["checksum"], filter=pc.field("plate_id") == row["plate_id"])
        if set(sites.column("checksum").to_pylist()) == set(checksums):
            name = f"{row['screen']}/{row['plate']}"
            return _problem(
                plate,
                "copy_of_a_plate",
                f"the pixels of {name}, which the catalog has from {row['source']}",
                "pixels that no other plate has",
                "It came in all the same. If it is the same plate, retract one of the two: cytolake plates retract. "
                "Copies in training and held-out plates make scores too good.",
            )
    return None


def hidden_plate(plate: Plate, content: PlateContent, rows: Collection[Row]) -> Problem | None:
    """A problem for a plate of which the catalog has hidden acquisitions alone; None where it may come in.

    It is known by its name, or, where it was renamed, by the name that it came in under with the same files.

    Args:
        plate: As listed; no visible plate has its name.
        rows: Of `plates`, all of them.
    """
    hidden = [
        row
        for row in rows
        if row["state"] not in (None, VISIBLE, "replaced")
        and (
            (row["screen"], row["plate"]) == (plate.screen, plate.plate)
            or (
                row["id_names"] is not None
                and json.loads(row["id_names"])[:2] == [plate.screen, plate.plate]
                and _has_same_files(row, plate, content)
            )
        )
    ]
    if not hidden:
        return None
    newest = max(hidden, key=lambda row: row["acquisition"] or 1)
    name = shlex.quote(f"{newest['screen']}/{newest['plate']}")
    is_retracted = newest["state"] == "retracted"
    return _problem(
        plate,
        f"plate_{'retracted' if is_retracted else 'purged'}",
        f"a plate that was {'retracted' if is_retracted else 'purged'}: {newest['why'] or 'no reason given'}",
        "a plate that may be read",
        f"It stays out. To have it back: cytolake plates {'restore' if is_retracted else 'replace'} {name}.",
    )


def _has_same_files(row: Row, plate: Plate, content: PlateContent) -> bool:
    """By the folder; by names and sizes for a purged plate, whose row names no folder."""
    return row["source"] == plate.source or (row["source"] is None and row["pixels_hash"] == content.pixels_hash)


def is_hidden_run(problem: Problem, rows: Sequence[Row]) -> bool:
    """Whether a second run of a plate is an acquisition that the catalog has, replaced or retracted.

    Args:
        problem: Of a screen; `file` of a `duplicate_plate` is the run's folder, relative to the screen's.
        rows: All rows of the plate's name.
    """
    return problem.problem == "duplicate_plate" and any(
        f"/{row['source']}".endswith(f"/{problem.file.rstrip('/')}")
        for row in rows
        if row["state"] not in (None, VISIBLE)
    )


def twice(plate: Plate, first: Plate) -> Problem:
    """The problem of two plates of one name in one ingest."""
    is_same = plate.source == first.source
    return _problem(
        plate,
        "duplicate_plate",
        f"{plate.source}, {'listed by a second source' if is_same else 'a second plate of this name'}",
        f"one plate of this name in a screen, which is {first.source}",
        "Remove one of the two from screens.sources."
        if is_same
        else "Rename one of them, or put it into a screen of its own.",
    )


def written_elsewhere(plate: Plate) -> Problem:
    """The problem of a plate of which another process ingests other content at this moment."""
    return _problem(
        plate,
        "plate_changed",
        f"files or a plate map other than before, at {plate.source}",
        "other files, from an ingest that runs now",
        "Let the other ingest end, then run this one again.",
    )


def _cannot_be_compared(
    catalog: Catalog, plate: Plate, known: Row, crop_size: int, source: ScreenSource | None
) -> Problem | None:
    if known["reader"] == WELLS_ONLY:
        return _problem(
            plate,
            "plate_without_images",
            f"images of the plate, at {plate.source}",
            f"none: the plate's wells came from a published table, {known['source']}",
            "Give the screen of the images another name, or ingest them into another catalog root: the wells of the "
            "table have embeddings and scores of their own.",
        )
    crops = catalog.dataset("crops").to_table(columns=["size"], filter=pc.field("plate_id") == known["plate_id"])
    sizes = crops.column("size").unique().to_pylist()
    if sizes and sizes != [crop_size]:
        return _problem(
            plate,
            "other_crop_size",
            f"crop size {crop_size}",
            f"crop size {sizes[0]}, which the plate was ingested with",
            f"Set ingest.crop_size={sizes[0]}, or ingest into another catalog root.",
        )
    if not is_uri(known["source"]) and known["source"] != plate.source and not Path(known["source"]).exists():
        return _problem(
            plate,
            "plate_moved",
            plate.source,
            f"{known['source']}, where the catalog reads its pixels",
            _how_to_find_it(catalog, plate, known, source),
        )
    return None


def _is_same_batch(plate: Plate, known: Row) -> bool:
    """Whether batches agree; also where neither map nor catalog names one: the default differs between versions."""
    is_named = any(row.get("batch") for row in plate.wells)
    earlier = (default_batch(known["screen"], known["batch"]), known["batch"])
    return plate.batch == known["batch"] or (
        not is_named and (known["plate"] in (known["batch"], plate.batch) or plate.batch in earlier)
    )


def _write_labels(catalog: Catalog, plate: Plate) -> str:
    """Write the source's labels of a plate as a plate map for `annotate`; returns its path, quoted for a shell."""
    try:
        folder = catalog.root / LABELS_FOLDER
    except CatalogError:
        return "FILE"
    columns = list(dict.fromkeys(("well", *(name for row in plate.wells for name in row))))
    if not any(row.get("batch") for row in plate.wells):
        columns = [name for name in columns if name != "batch"]
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{plate.screen}-{plate.plate}")
    path = folder / f"{safe[:LABELS_NAME_MAX]}-{content_id(plate.screen, plate.plate)[:8]}.csv"
    with atomic_file(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in plate.wells)
    return shlex.quote(str(path))


def _listed_by(source: ScreenSource) -> str:
    """Options of `plates replace` with which it lists the plate as this source does."""
    options = f" --path {shlex.quote(source.path)}"
    bare = ScreenSource(screen=source.screen, path=source.path)
    for each in fields(ScreenSource):
        value = getattr(source, each.name)
        if value == getattr(bare, each.name):
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        options += f" --set {shlex.quote(f'{each.name}={text}')}"
    return options


def _where(catalog: Catalog) -> str:
    try:
        return f" --root {shlex.quote(str(catalog.root))}"
    except CatalogError:
        return f" --root {shlex.quote(catalog.place)}"


def _is_close(stored: tuple[float | None, float | None] | None, measured: Sequence[float]) -> bool:
    return stored is not None and all(
        a is not None and abs(a - b) <= 1e-9 * max(1.0, abs(a)) for a, b in zip(stored, measured, strict=True)
    )


def _problem(plate: Plate, problem: str, found: str, expected: str, next_step: str) -> Problem:
    return plate.problem(file=plate.source, problem=problem, found=found, expected=expected, next_step=next_step)
