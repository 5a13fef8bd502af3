"""Plate maps: tables of the treatments of wells.

A plate map is a CSV or Parquet table with a `well` column (or `well_position`, `Metadata_Well`; or `row` in letters and
`column`), a `plate` column if it covers several plates with different layouts (otherwise it applies to every plate of
the screen), an optional `batch`, and any other columns. catalog/labels.yaml lists the names of these columns; plate
names are compared in one Unicode form.

Or it is a CSV without wells that names the map of each plate, as in the Cell Painting data sets: `barcode_platemap.csv`
with `Assay_Plate_Barcode` and `Plate_Map_Name`, and the maps in `platemap/` next to it. Its other columns describe the
plate, and so each of its wells.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from cytolake.screens.label_vocabulary import fold_column, label_vocabulary, nfc
from cytolake.screens.plate import Problem, ScreenError, SiteImage
from cytolake.screens.positions import expected_well, well_name, well_order
from cytolake.screens.spreadsheet_damage import likely_original
from cytolake.screens.tables import TableRow, read_table
from cytolake.screens.well_facts import Conflict, facts_of_wells
from cytolake.storage.source_folder import SourceFolder

MAP_COLUMN = fold_column("plate_map_name")
SAMPLE = "sample"
"""Column that names what stands for a well in a screen without wells."""
MAP_PLACES = ("platemap/{name}.txt", "platemap/{name}.csv", "platemap/{name}.tsv", "{name}.txt", "{name}.csv")
"""Where a map named in a list of plates lies, from the list's own folder."""


@dataclass(frozen=True, slots=True)
class PlateMapRow:
    """One well of a plate map; `cells` holds every column but the plate's, `well` as `"B03"`."""

    line: int
    plate: str
    well: str
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class PlateMap:
    """A checked plate map. Rows that name no well are in `problems` instead."""

    screen: str
    file: str
    has_plates: bool
    rows: tuple[PlateMapRow, ...]
    problems: tuple[Problem, ...]
    by_plate: dict[str, list[PlateMapRow]] = field(default_factory=dict, repr=False)
    """The same rows by plate, its name in NFC, so that a map of 136 plates is not read through for each."""

    def plates(self) -> list[str]:
        """Plates that the map names, as it writes them, in its order; empty where it has no plate column."""
        return [rows[0].plate for rows in self.by_plate.values()] if self.has_plates else []


def read_plate_map(
    folder: SourceFolder, file: str, screen: str, *, is_in_list: bool = False, samples: frozenset[str] = frozenset()
) -> PlateMap:
    """Read and check a plate map on its own, before any plate is looked at.

    Args:
        folder: Of the screen.
        file: The map, relative to it.
        samples: Names that stand for wells in a screen without wells; the map then has a column `sample`, or `well`.
        is_in_list: A list of plates named this map, so it must have wells; lists of lists would have no end.

    Raises:
        ScreenError: The file is missing or unreadable, or has neither a well column nor names of maps.
    """
    columns, table, problems = read_table(folder, file, screen)
    well_column = label_vocabulary().place_column(columns, "well")
    if samples:
        well_column = next((column for column in columns if fold_column(column) == SAMPLE), well_column)
    plate_column = label_vocabulary().place_column(columns, "plate")
    map_column = next((column for column in columns if fold_column(column) == MAP_COLUMN), None)
    if well_column is None and plate_column and map_column and not is_in_list:
        return _read_list_of_maps(folder, file, screen, table, problems, plate_column, map_column, samples)
    if well_column is None and not samples:
        well_column, table = _wells_from_rows_and_columns(columns, table)
    if well_column is None:
        raise ScreenError(
            Problem(
                screen=screen,
                file=file,
                problem="missing_column",
                found=f"columns {', '.join(columns) or 'none'}",
                expected=f"a column {SAMPLE}, with names such as {min(samples)}" if samples else "a column well",
                next_step="The first line names the columns: add or rename the one that holds "
                + ("the names of samples." if samples else "positions such as B03."),
            )
        )
    rows = []
    for row in table:
        plate = row.cells[plate_column] if plate_column else ""
        cell = row.cells[well_column]
        well = cell.strip() if cell.strip() in samples else well_name(cell)
        if well and (plate or plate_column is None):
            others = {name: value for name, value in row.cells.items() if name not in ("", well_column, plate_column)}
            rows.append(PlateMapRow(row.line, plate, well, {"well": well, **others}))
            continue
        problems.append(
            Problem(
                screen=screen,
                plate=plate,
                well=well,
                file=file,
                problem="missing_plate" if well else "bad_well_name",
                found=f"{'no plate' if well else repr(row.cells[well_column])} in line {row.line}",
                expected="the plate's name" if well else expected_well(row.cells[well_column]),
                next_step="Correct the row of the plate map.",
            )
        )
    return _plate_map(screen, file, plate_column is not None, rows, problems)


def _wells_from_rows_and_columns(columns: Sequence[str], table: list[TableRow]) -> tuple[str | None, list[TableRow]]:
    """The table with a column `well` of its columns `row`, in letters, and `column`; None where it has no such.

    Numbers of rows are not taken: nothing says whether they start at 0 or 1.
    """
    folded = {fold_column(column): column for column in reversed(columns)}
    row_column = next((folded[name] for name in ("row", "wellrow") if name in folded), None)
    column_column = next((folded[n] for n in ("column", "col", "wellcolumn", "wellcol") if n in folded), None)
    if row_column is None or column_column is None:
        return None, table
    if not all(row.cells[row_column].isalpha() for row in table):
        return None, table
    with_wells = []
    for row in table:
        others = {name: cell for name, cell in row.cells.items() if name not in (row_column, column_column)}
        with_wells.append(TableRow(row.line, {"well": row.cells[row_column] + row.cells[column_column], **others}))
    return "well", with_wells


def _read_list_of_maps(
    folder: SourceFolder,
    file: str,
    screen: str,
    table: Sequence[TableRow],
    problems: list[Problem],
    plate_column: str,
    map_column: str,
    samples: frozenset[str],
) -> PlateMap:
    """The maps of a list of plates, each read once, as one plate map; `problems` of the list are among its own."""
    at = file.replace("\\", "/").rpartition("/")[0]
    maps: dict[str, PlateMap] = {}
    rows: list[PlateMapRow] = []
    for line in table:
        plate, name = line.cells[plate_column], line.cells[map_column]
        if not plate or not name:
            problems.append(
                Problem(
                    screen=screen,
                    plate=plate,
                    file=file,
                    problem="missing_plate" if not plate else "missing_plate_map",
                    found=f"an empty cell in line {line.line}",
                    expected=f"{plate_column} and {map_column}",
                    next_step="Fill it in, or remove the row.",
                )
            )
            continue
        if name not in maps:
            if "/" in name or "\\" in name:
                raise _refused_name(screen, file, name)
            places = [f"{at}/{place}" if at else place for place in (each.format(name=name) for each in MAP_PLACES)]
            place = next((each for each in places if folder.exists(each)), places[0])
            maps[name] = read_plate_map(folder, place, screen, is_in_list=True, samples=samples)
            problems += maps[name].problems
        about = {column: value for column, value in line.cells.items() if column not in ("", plate_column)}
        rows += [PlateMapRow(row.line, plate, row.well, {**about, **row.cells}) for row in maps[name].rows]
    return _plate_map(screen, file, True, rows, problems)


def _refused_name(screen: str, file: str, name: str) -> ScreenError:
    return ScreenError(
        Problem(
            screen=screen,
            file=file,
            problem="path_outside_screen",
            found=repr(name),
            expected="the name of a plate map, without folders",
            next_step="Put the map into platemap/ next to the list, and name it without its folder.",
        )
    )


def _plate_map(
    screen: str, file: str, has_plates: bool, rows: Sequence[PlateMapRow], problems: Sequence[Problem]
) -> PlateMap:
    by_plate: dict[str, list[PlateMapRow]] = {}
    for row in rows:
        by_plate.setdefault(nfc(row.plate), []).append(row)
    damaged = [
        Problem(
            screen=screen,
            plate=plate,
            file=file,
            problem="spreadsheet_damage",
            found=f"the plate's name {plate} in {len(of_plate)} rows",
            expected=f"a barcode; probably {original}",
            next_step="Correct the names of plates in the map, and save them as text.",
        )
        for plate, of_plate in by_plate.items()
        if (original := likely_original(plate, is_name=False))
    ]
    return PlateMap(screen, file, has_plates, tuple(rows), (*problems, *damaged), by_plate)


def wells_of_plate(
    plate_map: PlateMap, plate: str, sites: Sequence[SiteImage]
) -> tuple[tuple[dict[str, str], ...], list[Problem]]:
    """Plate-map rows of one plate in the order of wells, and where map, images and map disagree.

    A well in two equal rows is one well. If the rows differ, neither can be trusted, so the well
    keeps its images and what all its rows say, and loses what they differ in: a wrong label is worse than none.
    """
    problems: list[Problem] = []

    def report(problem: str, well: str, found: str, expected: str, next_step: str) -> None:
        problems.append(
            Problem(
                screen=plate_map.screen,
                plate=plate,
                well=well,
                file=plate_map.file,
                problem=problem,
                found=found,
                expected=expected,
                next_step=next_step,
            )
        )

    rows: dict[str, list[PlateMapRow]] = {}
    for row in plate_map.by_plate.get(nfc(plate) if plate_map.has_plates else "", ()):
        rows.setdefault(row.well, []).append(row)
    facts: dict[tuple[str, str], dict[str, str]] = {}
    conflicts: list[Conflict] = []
    if any(len(repeated) > 1 for repeated in rows.values()):
        each_row = ((("", well), row.cells) for well, repeated in rows.items() for row in repeated)
        facts, conflicts = facts_of_wells(each_row, one_row_each=True)
    differing: dict[str, list[str]] = {}
    for conflict in conflicts:
        text = f"{conflict.column} ({' and '.join(conflict.values)})"
        differing.setdefault(conflict.well, []).append(text)
    wells: dict[str, dict[str, str]] = {}
    for well, repeated in rows.items():
        if len(repeated) == 1:
            wells[well] = repeated[0].cells
            continue
        wells[well] = {"well": well, **facts["", well]}
        lines = " and ".join(str(row.line) for row in repeated)
        if well in differing:
            found = f"lines {lines}, which differ in {', '.join(differing[well])}"
            next_step = "Keep the right row; until then the well has no value there."
        else:
            found, next_step = f"lines {lines}, which say the same", "Remove all but one."
        report("duplicate_well", well, found, "each well once for each plate", next_step)
    imaged = dict.fromkeys(site.well for site in sites)
    for well in wells:
        if well not in imaged:
            report(
                "well_without_image",
                well,
                "a row of the plate map and no image",
                "an image of every well in the map",
                "Copy the well's images, or remove its row if it was not imaged.",
            )
    for well in imaged:
        if well not in wells:
            report(
                "image_without_well",
                well,
                "images and no row of the plate map",
                "a row for every imaged well",
                "Add the well to the plate map; until then its images have no annotation.",
            )
    return tuple(wells[well] for well in sorted(wells, key=well_order)), problems


def plates_without_images(plate_map: PlateMap, plates: Collection[str]) -> list[Problem]:
    """One problem for each plate that the map names and the screen lacks."""
    there = {nfc(plate) for plate in plates}
    return [
        Problem(
            screen=plate_map.screen,
            plate=plate,
            file=plate_map.file,
            problem="plate_without_image",
            found=f"rows of the plate map; the screen's plates are {', '.join(plates)}",
            expected="images of every plate in the map",
            next_step="Correct the plate's name in the map, or copy its images.",
        )
        for plate in plate_map.plates()
        if nfc(plate) not in there
    ]
