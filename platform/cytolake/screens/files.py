"""TIFF and PNG images listed by an index CSV.

Required columns: `path` (relative to the CSV's folder), `plate`, `well`, `site`, `channel`. Optional: `z`,
`timepoint` (0 is the first), `pixel_size_um`, `shape`, `dtype`. Every other column says something about the well
(`treatment`, `batch`, ...) and goes along with it.

What an empty cell means: no `plate`: the plate is named after the CSV's folder. No `well` in any row of a plate:
positions are placed in wells A01, A02, ... in the order of their site names, and a `wells_assigned` problem says so.
No `site`: the only site of its well. No plate, no well and no site: nobody can tell where the image belongs, and it
is a problem.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.positions import PLATE_FORMATS, name_of_well, natural_order, site_name, well_name, whole_number
from cytolake.screens.site_groups import ImageFile, group_sites
from cytolake.screens.source_folder import PathRefusedError, SourceFolder

REQUIRED = ("path", "plate", "well", "site", "channel")
OF_THE_IMAGE = (*REQUIRED, "z", "timepoint", "pixel_size_um", "shape", "dtype")


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a CSV: its line in the file, from 1 for the header, and its cells by column, stripped."""

    line: int
    cells: dict[str, str]


def read_table(path: Path, screen: str, file: str) -> tuple[list[str], list[TableRow]]:
    """Columns and rows of a CSV (tabs where the name ends in .tsv or .txt); blank lines are left out.

    Raises:
        ScreenError: `missing_file`, `unreadable_file` (not UTF-8 text), `duplicate_column`.
    """

    def refuse(problem: str, found: str, expected: str, next_step: str) -> ScreenError:
        return ScreenError(
            Problem(screen=screen, file=file, problem=problem, found=found, expected=expected, next_step=next_step)
        )

    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter="\t" if path.suffix.lower() in (".tsv", ".txt") else ",")
            columns = [column.strip() for column in next(reader, [])]
            repeated = [column for column, n in Counter(columns).items() if n > 1 and column]
            if repeated:
                raise refuse(
                    "duplicate_column", ", ".join(repeated) + " twice", "each column once", "Rename or remove one."
                )
            rows = []
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    stripped = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
                    rows.append(TableRow(reader.line_num, dict(zip(columns, stripped, strict=False))))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise refuse("missing_file", "no such file", "a CSV file", "Correct its name, or write it.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise refuse("unreadable_file", str(error), "a CSV file in UTF-8", "Save it again as CSV (UTF-8).") from error
    return columns, rows


def list_indexed_plates(screen: str, folder: SourceFolder, index: str) -> tuple[list[Plate], list[Problem]]:
    """Plates of an index CSV in the order of its rows, and problems of rows that belong to none of them.

    Raises:
        ScreenError: The CSV is missing, unreadable, empty, or lacks a column.
    """
    columns, rows = read_table(folder.root / index, screen, index)
    missing = [column for column in REQUIRED if column not in columns]
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
    if not rows:
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
    problems: list[Problem] = []
    by_plate: dict[str, list[TableRow]] = {}
    for row in rows:
        cells = row.cells
        if cells["plate"] or cells["well"] or cells["site"]:
            by_plate.setdefault(cells["plate"] or folder.root.name, []).append(row)
        else:
            problems.append(
                Problem(
                    screen=screen,
                    channel=cells["channel"],
                    file=cells["path"],
                    problem="unknown_position",
                    found=f"neither plate, well nor site in line {row.line} of {index}",
                    expected="at least a site, to tell where the image belongs",
                    next_step=f"Fill in plate, well and site in {index}, or remove the row.",
                )
            )
    plates = []
    for name, plate_rows in by_plate.items():
        plate, found = _list_plate(screen, name, plate_rows, folder, index)
        if plate is None:
            problems += found
        else:
            plates.append(plate)
    return plates, problems


def _list_plate(
    screen: str, plate: str, rows: list[TableRow], folder: SourceFolder, index: str
) -> tuple[Plate | None, list[Problem]]:
    problems: list[Problem] = []

    def report(row: TableRow, problem: str, found: str, expected: str, next_step: str) -> None:
        problems.append(
            Problem(
                screen=screen,
                plate=plate,
                well=well_name(row.cells["well"]),
                site=site_name(row.cells["site"]) if row.cells["site"] else "",
                channel=row.cells["channel"],
                file=row.cells["path"],
                problem=problem,
                found=f"{found} (line {row.line} of {index})",
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
                file=index,
                problem="wells_assigned",
                found=f"no well in any of the plate's {len(rows)} rows",
                expected="a well for each image",
                next_step=f"Positions were placed in order: {_shown(assigned)}. Fill in the wells if this is wrong.",
            )
        )
    images: list[ImageFile] = []
    wells: dict[str, dict[str, dict[str, None]]] = {}
    channels: dict[str, None] = {}
    for row in rows:
        cells = row.cells
        well = assigned[cells["site"]] if assigned else well_name(cells["well"])
        if not well:
            report(
                row,
                "bad_well_name",
                repr(cells["well"]),
                "a row letter and a column number, such as B03",
                f"Correct the well in {index}.",
            )
            continue
        channel = cells["channel"]
        if not channel:
            report(row, "missing_channel", "no channel name", "the stain's name", f"Fill in the channel in {index}.")
            continue
        timepoint = whole_number(cells.get("timepoint", ""), default=0)
        if timepoint is None:
            report(
                row,
                "bad_timepoint",
                repr(cells["timepoint"]),
                "a whole number, 0 for the first",
                f"Correct the timepoint in {index}.",
            )
            continue
        try:
            path = folder.find(cells["path"])
        except PathRefusedError as refused:
            report(row, refused.problem, refused.found, refused.expected, refused.next_step)
            continue
        channels.setdefault(channel)
        images.append(
            ImageFile(
                well=well,
                site=site_name(cells["site"]),
                timepoint=timepoint,
                z=cells.get("z", ""),
                channel=channel,
                path=path,
                file=folder.relative(path),
            )
        )
        said = wells.setdefault(well, {})
        for column, value in cells.items():
            if column and column not in OF_THE_IMAGE:
                said.setdefault(column, {})
                if value:
                    said[column].setdefault(value)
    sites, repeated = group_sites(screen, plate, images, tuple(channels))
    problems += repeated
    if not sites:
        return None, problems
    pixel_sizes_um = {row.cells.get("pixel_size_um", "") for row in rows} - {""}
    return (
        Plate(
            screen=screen,
            plate=plate,
            batch=plate,
            source=str(folder.root),
            reader="files",
            channels=tuple(channels),
            sites=sites,
            wells=tuple(
                {"well": well, **{column: " | ".join(values) for column, values in said.items()}}
                for well, said in wells.items()
                if any(said.values())
            ),
            problems=tuple(problems),
            pixel_size_um=_positive(pixel_sizes_um.pop()) if len(pixel_sizes_um) == 1 else None,
        ),
        [],
    )


def _assign_wells(rows: list[TableRow]) -> dict[str, str]:
    """Site -> well for a plate of which no row names a well, in the smallest plate that fits; empty otherwise."""
    if any(row.cells["well"] for row in rows):
        return {}
    names = sorted({row.cells["site"] for row in rows}, key=natural_order)
    for n_rows, n_columns in PLATE_FORMATS:
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
