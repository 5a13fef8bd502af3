"""Plates of image files that are located by a table, a vendor's index or their names; and cytolake's own index CSV.

Required columns of the CSV: `path` (relative to the screen's folder), `plate`, `well`, `site`, `channel`. Optional:
`z`, `timepoint` (0 is the first), `pixel_size_um`, `illumination`, `shape`, `dtype`. Every other column says something
about the well (`treatment`, `batch`, ...) and goes along with it.

What an empty cell means: no `plate`: the plate is named after the screen's folder. No `well` in any row of a plate:
positions are placed in wells A01, A02, ... in the order of their site names, and a `wells_assigned` problem says so.
No column `well` and a column `sample`: the sample's name stands for the well, and nothing is said about a position.
No `site`: the only site of its well. No plate, no well and no site: the image cannot be located, and it
is a problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cytolake.screens.label_vocabulary import nfc
from cytolake.screens.path_prefixes import below_screen
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.plate_format import ASSIGNED_FORMATS
from cytolake.screens.positions import (
    expected_well,
    name_of_well,
    site_name,
    well_name,
    whole_number,
)
from cytolake.screens.site_groups import ImageFile, group_sites
from cytolake.screens.tables import read_table
from cytolake.screens.well_facts import facts_of_wells
from cytolake.storage.natural_order import natural_order
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

REQUIRED = ("path", "plate", "well", "site", "channel")
OF_THE_IMAGE = (*REQUIRED, "z", "timepoint", "pixel_size_um", "illumination", "shape", "dtype")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRow:
    """What a source says about one image file, as text; nothing of it is checked yet."""

    path: str
    """Relative to the screen's folder, or as the source has it."""
    plate: str
    well: str
    site: str
    channel: str
    sample: str = ""
    """Name that stands for the well where `well` is empty."""
    z: str = ""
    timepoint: str = ""
    """0 is the first."""
    illumination: str = ""
    """Path of the channel's illumination function."""
    pixel_size_um: str = ""
    listing: str = ""
    """File that says so; empty where the image's own name does."""
    line: int = 0
    """Line in `listing`; 0 where it has no lines."""
    said: Mapping[str, str] = field(default_factory=dict)
    """What it says about the well."""
    acquisition: str = ""
    """Folder of the imaging run, where the source has such folders; two runs of one plate are two plates of a name."""
    run_name: str = ""
    """The plate's name with its run in it."""


def list_indexed_plates(
    screen: str, folder: SourceFolder, index: str, prefixes: Sequence[str] = ()
) -> tuple[list[Plate], list[Problem]]:
    """Plates of an index CSV in the order of its rows, and problems of rows that belong to none of them.

    Raises:
        ScreenError: The CSV is missing, unreadable, empty, or lacks a column.
    """
    columns, rows, ragged = read_table(folder, index, screen)
    missing = missing_columns(columns)
    if missing:
        raise ScreenError(
            Problem(
                screen=screen,
                file=index,
                problem="missing_column",
                found=f"columns {', '.join(columns) or 'none'}; no {', '.join(missing)}",
                expected=f"columns {', '.join(REQUIRED)}",
                next_step="Add the column; leave its cells empty where nothing is known.",
            )
        )
    if not rows and not ragged:
        raise ScreenError(
            Problem(
                screen=screen,
                file=index,
                problem="no_images",
                found="a header and no rows",
                expected="one row for each image file",
                next_step="Fill in the index.",
            )
        )
    placing = OF_THE_IMAGE if "well" in columns else (*OF_THE_IMAGE, "sample")
    plates, problems = plates_of_rows(
        screen,
        folder,
        (
            ImageRow(
                **{name: row.cells.get(name, "") for name in REQUIRED},
                sample="" if "well" in columns else row.cells["sample"],
                **{name: row.cells.get(name, "") for name in ("z", "timepoint", "illumination", "pixel_size_um")},
                listing=index,
                line=row.line,
                said={column: value for column, value in row.cells.items() if column and column not in placing},
            )
            for row in rows
        ),
        prefixes,
    )
    return plates, ragged + problems


def missing_columns(columns: Sequence[str]) -> list[str]:
    """Columns that an index needs and does not have; `sample` does in place of `well`."""
    return [name for name in REQUIRED if name not in columns and not (name == "well" and "sample" in columns)]


def plates_of_rows(
    screen: str, folder: SourceFolder, rows: Iterable[ImageRow], prefixes: Sequence[str] = ()
) -> tuple[list[Plate], list[Problem]]:
    """Plates in the order of the rows, and problems of rows that belong to none of them.

    Several plates have one name where their rows are of several imaging runs (see `acquisitions`).

    Args:
        folder: Every image must lie below it.
        rows: One for each image file.
        prefixes: What absolute paths stand for; see `path_prefixes.below_screen`.
    """
    problems: list[Problem] = []
    by_plate: dict[tuple[str, str], list[ImageRow]] = {}
    forms: dict[str, str] = {}  # a plate's name in NFC -> as it is first written
    for row in rows:
        if row.plate or row.well or row.sample or row.site:
            name = row.plate or folder.name
            by_plate.setdefault((forms.setdefault(nfc(name), name), row.acquisition), []).append(row)
        else:
            problems.append(
                Problem(
                    screen=screen,
                    channel=row.channel,
                    file=row.path,
                    problem="unknown_position",
                    found=f"neither plate, well nor site{_place(row, ' in ')}",
                    expected="at least a site, to know where the image belongs",
                    next_step=f"Fill in plate, well and site in {row.listing or 'its name'}, or remove it.",
                )
            )
    plates = []
    for (name, _), plate_rows in by_plate.items():
        plate, found = _list_plate(screen, name, plate_rows, folder, prefixes)
        if plate is None:
            problems += found
        else:
            plates.append(plate)
    return plates, problems


def _place(row: ImageRow, before: str = "") -> str:
    if not row.listing:
        return ""
    return f"{before}line {row.line} of {row.listing}" if row.line else f"{before}{row.listing}"


def _list_plate(
    screen: str, plate: str, rows: list[ImageRow], folder: SourceFolder, prefixes: Sequence[str]
) -> tuple[Plate | None, list[Problem]]:
    problems: list[Problem] = []

    def report(row: ImageRow, problem: str, found: str, expected: str, next_step: str) -> None:
        place = _place(row)
        problems.append(
            Problem(
                screen=screen,
                plate=plate,
                well=well_name(row.well) if row.well else row.sample,
                site=site_name(row.site) if row.site else "",
                channel=row.channel,
                file=row.path,
                problem=problem,
                found=f"{found} ({place})" if place else found,
                expected=expected,
                next_step=next_step,
            )
        )

    assigned = _assign_wells(rows)
    if assigned:
        problems.append(
            Problem(
                screen=screen,
                plate=plate,
                file=rows[0].listing,
                problem="wells_assigned",
                found=f"no well in any of the plate's {len(rows)} rows",
                expected="a well for each image",
                next_step=f"Positions were placed in order: {_shown(assigned)}. Fill in the wells if this is wrong.",
            )
        )
    images: list[ImageFile] = []
    said: list[tuple[tuple[str, str], Mapping[str, str]]] = []
    channels: dict[str, None] = {}
    functions: dict[str, str] = {}  # illumination as named -> absolute, "" where it could not be had
    for row in rows:
        source = row.listing or "the file's name"
        well = assigned[row.site] if assigned else well_name(row.well) if row.well else row.sample.strip()
        if not well:
            report(
                row,
                "bad_well_name",
                repr(row.well),
                expected_well(row.well),
                f"Correct the well in {source}.",
            )
            continue
        if not row.channel:
            report(row, "missing_channel", "no channel name", "the stain's name", f"Fill in the channel in {source}.")
            continue
        timepoint = whole_number(row.timepoint, default=0)
        if timepoint is None:
            report(
                row,
                "bad_timepoint",
                repr(row.timepoint),
                "a whole number, 0 for the first",
                f"Correct the timepoint in {source}.",
            )
            continue
        file = below_screen(row.path, folder.root, prefixes)
        try:
            path = folder.find(file)
        except PathRefusedError as refused:
            report(row, refused.problem, refused.found, refused.expected, _mended(refused, row.path))
            continue
        if row.illumination and row.illumination not in functions:
            try:
                functions[row.illumination] = folder.find(below_screen(row.illumination, folder.root, prefixes))
            except PathRefusedError as refused:  # reported once, for the first image that needs it
                functions[row.illumination] = ""
                problems.append(_without_function(screen, plate, row, refused))
        channels.setdefault(row.channel)
        images.append(
            ImageFile(
                well=well,
                site=site_name(row.site),
                timepoint=timepoint,
                z=row.z,
                channel=row.channel,
                path=path,
                file=file,
                illumination=functions.get(row.illumination, ""),
            )
        )
        said.append(((plate, well), row.said))
    facts, conflicts = facts_of_wells(said, join=" | ")
    problems += [conflict.problem(screen, rows[0].listing) for conflict in conflicts]
    sites, repeated = group_sites(screen, plate, images, tuple(channels))
    problems += repeated
    if not sites:
        return None, problems
    pixel_sizes_um = {size for text in {row.pixel_size_um for row in rows} if (size := _positive(text)) is not None}
    return (
        Plate(
            screen=screen,
            plate=plate,
            batch=plate,
            source=str(folder.root),
            reader="files",
            channels=tuple(channels),
            sites=sites,
            wells=tuple({"well": well, **of_well} for (_, well), of_well in facts.items() if any(of_well.values())),
            problems=tuple(problems),
            pixel_size_um=pixel_sizes_um.pop() if len(pixel_sizes_um) == 1 else None,
            acquisition=rows[0].acquisition,
            run_name=rows[0].run_name,
        ),
        [],
    )


def _mended(refused: PathRefusedError, path: str) -> str:
    text = path.strip()
    if refused.problem == "path_outside_screen" and ".." not in text and (text.startswith("/") or ":" in text[:16]):
        return f"{refused.next_step} Or set `path_prefix` to the part of the path that the screen's folder stands for."
    return refused.next_step


def _without_function(screen: str, plate: str, row: ImageRow, refused: PathRefusedError) -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        channel=row.channel,
        file=row.illumination,
        problem="missing_illumination" if refused.problem == "missing_file" else refused.problem,
        found=refused.found,
        expected="the channel's illumination function",
        next_step=f"{_mended(refused, row.illumination)} Until then the channel is read uncorrected.",
    )


def _assign_wells(rows: list[ImageRow]) -> dict[str, str]:
    """Site -> well for a plate of which no row names a well, in the smallest plate that fits; empty otherwise."""
    if any(row.well or row.sample for row in rows):
        return {}
    names = sorted({row.site for row in rows}, key=natural_order)
    for n_rows, n_columns in ASSIGNED_FORMATS:
        if len(names) <= n_rows * n_columns:
            return {name: name_of_well(*divmod(i, n_columns)) for i, name in enumerate(names)}
    return {}  # more positions than a 1536-well plate: each row becomes a bad well name


def _shown(assigned: dict[str, str], n: int = 6) -> str:
    pairs = [f"site {site_name(site)} in {well}" for site, well in assigned.items()]
    return ", ".join(pairs[:n]) + (f" and {len(pairs) - n} more" if len(pairs) > n else "")


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None
