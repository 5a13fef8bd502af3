"""Plates listed by tables with one row per site and columns per channel, by a `TableRule`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cytolake.screens.files import ImageRow, plates_of_rows
from cytolake.screens.label_vocabulary import nfc
from cytolake.screens.layouts.paths import without_lone_planes
from cytolake.screens.layouts.preset import TableRule, template_names
from cytolake.screens.path_prefixes import below_screen
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.positions import site_name, well_at, well_name, whole_number
from cytolake.screens.tables import TableRow, read_header, read_table
from cytolake.screens.well_facts import Conflict, facts_of_wells, with_conflicts
from cytolake.storage.source_folder import SourceFolder

_ImagePlace = tuple[str, str, str, str, str]
"""Well, site, timepoint, focal plane, channel."""

NO_TABLE = "no table of such a name"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Channel:
    """Columns of one channel; empty names where the table has no such column."""

    name: str
    file: str
    folder: str = ""
    url: str = ""
    illumination_file: str = ""
    illumination_folder: str = ""


def find_tables(
    screen: str, folder: SourceFolder, rule: TableRule, files: Sequence[str], named: str = ""
) -> tuple[list[str], str]:
    """Tables that the rule can read, and why there are none: empty where there are.

    Args:
        folder: Of the screen.
        rule: Which tables, which columns.
        files: Paths of all its files, relative to it.
        named: The one table to use, relative to the folder; empty for all that the rule's patterns match.
    """
    candidates = [named] if named else _candidates(rule, files)
    if not candidates:
        return [], NO_TABLE
    tables, reason = [], ""
    for file in candidates:
        try:
            columns = read_header(folder, file, screen)
        except ScreenError as error:
            reason = str(error)
            continue
        lacks = missing_columns(rule, columns)
        if lacks:
            reason = f"{file} has no column {' and none '.join(lacks)}"
        else:
            tables.append(file)
    return tables, "" if tables else reason


def missing_columns(rule: TableRule, columns: Sequence[str]) -> list[str]:
    """What a table lacks to be read by the rule, in words."""
    lacks = [] if _channels(rule, columns) else [f"like {rule.file_name.pattern}"]
    folded = {column.casefold() for column in columns}
    groups = rule.from_file_name.groupindex if rule.from_file_name is not None else {}
    has_well = any(name.casefold() in folded for name in rule.columns.get("well", ())) or "well" in groups
    has_row = all(any(name.casefold() in folded for name in rule.columns.get(k, ())) for k in ("row", "column"))
    if not has_well and not has_row:
        lacks.append(f"for the well ({', '.join(rule.columns.get('well', ()))})")
    return lacks


def list_by_tables(
    screen: str, folder: SourceFolder, rule: TableRule, tables: Sequence[str], prefixes: Sequence[str]
) -> tuple[list[Plate], list[Problem]]:
    """Plates of the tables' rows, and problems of rows that belong to none of them.

    Raises:
        ScreenError: A table cannot be read.
    """
    rows: list[ImageRow] = []
    ragged: list[Problem] = []
    conflicts: dict[str, list[Conflict]] = {}
    runs: dict[str, dict[str, dict[_ImagePlace, str]]] = {}
    for file in tables:
        found, problems, conflicts[file] = _image_rows(screen, folder, rule, file, prefixes)
        rows += _with_runs(found, file.rpartition("/")[0], runs)
        ragged += problems
    plates, others = plates_of_rows(screen, folder, without_lone_planes(rows), prefixes)
    for file, of_table in conflicts.items():
        plates = with_conflicts(plates, of_table, screen, file)
    return plates, ragged + others


def _with_runs(
    rows: Sequence[ImageRow], table_folder: str, runs: dict[str, dict[str, dict[_ImagePlace, str]]]
) -> list[ImageRow]:
    """Rows of one table with their imaging run, which is named after the folder of the first table that lists it.

    Tables of several folders may share a plate out among them. One that has another image for a place that an earlier
    one has too lists another run of the plate. `runs` has, for each plate and run, the images of each place.
    """
    of_plate: dict[str, list[ImageRow]] = {}
    for row in rows:
        of_plate.setdefault(row.plate, []).append(row)
    run_of: dict[str, str] = {}
    for plate, of_table in of_plate.items():
        known = runs.setdefault(plate, {})
        run = table_folder
        if run not in known:
            run = next((name for name, there in known.items() if _agree(there, of_table)), run)
        run_of[plate] = run
        for row in of_table:
            known.setdefault(run, {}).setdefault(_at(row), row.path)
    return [
        replace(row, acquisition=run_of[row.plate], run_name=_run_name(row.plate, run_of[row.plate])) for row in rows
    ]


def _agree(there: Mapping[_ImagePlace, str], rows: Sequence[ImageRow]) -> bool:
    return all(there.get(_at(row), row.path) == row.path for row in rows)


def _at(row: ImageRow) -> _ImagePlace:
    return row.well, row.site, row.timepoint, row.z, row.channel


def _run_name(plate: str, run: str) -> str:
    return f"{plate}_{run.replace('/', '_')}" if plate and run else ""


def _candidates(rule: TableRule, files: Sequence[str]) -> list[str]:
    """In each folder the files that the first matching pattern matches."""
    by_folder: dict[str, dict[int, list[str]]] = {}
    for path in files:
        for rank, pattern in enumerate(rule.files):
            if pattern.fullmatch(path):
                by_folder.setdefault(path.rpartition("/")[0], {}).setdefault(rank, []).append(path)
                break
    return [path for ranks in by_folder.values() for path in ranks[min(ranks)]]


def _image_rows(
    screen: str, folder: SourceFolder, rule: TableRule, file: str, prefixes: Sequence[str]
) -> tuple[list[ImageRow], list[Problem], list[Conflict]]:
    columns, rows, ragged = read_table(folder, file, screen)
    channels = _channels(rule, columns)
    folded = {column.casefold(): column for column in columns}
    taken = {
        name: column
        for name, candidates in rule.columns.items()
        if (column := next((folded[each.casefold()] for each in candidates if each.casefold() in folded), None))
    }
    about = {
        column: match.groupdict().get("name") or column  # a group of another alternative took no part
        for column in columns
        if rule.about_well is not None and (match := rule.about_well.fullmatch(column))
    }
    places = [_place(rule, row, taken, channels) for row in rows]
    facts, conflicts = facts_of_wells(
        ((place["plate"], place["well"]), {name: row.cells[column] for column, name in about.items()})
        for row, place in zip(rows, places, strict=True)
    )
    found: dict[tuple[str, str, str], str] = {}  # plate, folder and file as the table has them -> where the file lies
    images = []
    for row, place in zip(rows, places, strict=True):
        said = dict(facts[nfc(place["plate"]), place["well"]])
        if place["batch"]:
            said["batch"] = place["batch"]
        for channel in channels:
            path = _path_of(rule, folder, row, channel, file, place["plate"], prefixes, found)
            if not path:
                continue  # an empty cell: the channel was not taken at this site
            images.append(
                ImageRow(
                    path=path,
                    **{name: place[name] for name in ("plate", "well", "site", "z", "timepoint", "pixel_size_um")},
                    channel=channel.name,
                    illumination=_illumination(folder, row, channel, file, prefixes),
                    listing=file,
                    line=row.line,
                    said=said,
                )
            )
    return images, ragged, conflicts


def _channels(rule: TableRule, columns: Sequence[str]) -> list[_Channel]:
    there = set(columns)

    def column(template: str, match: re.Match[str]) -> str:
        name = template.format_map(match.groupdict(default=""))
        return name if template and name in there else ""

    channels: dict[str, _Channel] = {}
    for name in columns:
        if match := rule.file_name.fullmatch(name):
            channels.setdefault(
                match["channel"],
                _Channel(
                    name=match["channel"],
                    file=name,
                    folder=column(rule.folder_name, match),
                    illumination_file=column(rule.illumination_file, match),
                    illumination_folder=column(rule.illumination_folder, match),
                ),
            )
    if rule.url is not None:
        for name in columns:
            if (match := rule.url.fullmatch(name)) and match["channel"] not in channels:
                channels[match["channel"]] = _Channel(name=match["channel"], file="", url=name)
    return list(channels.values())


def _place(rule: TableRule, row: TableRow, taken: dict[str, str], channels: Sequence[_Channel]) -> dict[str, str]:
    """Where the row's images belong: from its columns, and where these say nothing from a file's name."""
    place = {
        name: row.cells[taken[name]] if name in taken else ""
        for name in ("plate", "well", "row", "column", "site", "z", "timepoint", "batch", "pixel_size_um")
    }
    if rule.from_file_name is not None and channels:
        names = [row.cells[channel.file or channel.url] for channel in channels]
        match = rule.from_file_name.search(next((name for name in names if name), ""))
        for name, value in (match.groupdict(default="") if match else {}).items():
            place[name] = place.get(name) or value
    if not place["well"]:
        place["well"] = well_at(place["row"], place["column"], rule.first_row, rule.first_column)
    place["well"] = well_name(place["well"]) or place["well"]
    place["z"] = site_name(place["z"]) if place["z"] else ""
    number = whole_number(place["timepoint"], default=rule.first_timepoint)
    place["timepoint"] = place["timepoint"] if number is None else str(max(number - rule.first_timepoint, 0))
    try:
        place["pixel_size_um"] = f"{float(place['pixel_size_um']) * rule.pixel_size_unit_um:.6g}"
    except ValueError:
        place["pixel_size_um"] = ""
    return place


def _path_of(
    rule: TableRule,
    folder: SourceFolder,
    row: TableRow,
    channel: _Channel,
    table: str,
    plate: str,
    prefixes: Sequence[str],
    found: dict[tuple[str, str, str], str],
) -> str:
    if not channel.file:
        return row.cells[channel.url]
    name = row.cells[channel.file]
    at = row.cells[channel.folder] if channel.folder else ""
    if not name or (plate, at, name) in found:
        return found.get((plate, at, name), "")
    match = rule.from_file_name.search(name) if rule.from_file_name is not None else None
    said = match.groupdict(default="") if match else {}
    said |= {
        "plate": plate,
        "folder": at.rstrip("/\\"),
        "last_folder": at.replace("\\", "/").rstrip("/").rpartition("/")[2],
        "file": name,
    }
    tried: list[str] = []
    for template in rule.places:
        if template_names(template) <= said.keys():
            written = template.format_map(said).lstrip("/" if not at else "")
            tried += _possible_paths(below_screen(written, folder.root, prefixes), table)
    path = next((each for each in tried if folder.exists(each)), tried[0] if tried else name)
    return found.setdefault((plate, at, name), path)


def _illumination(folder: SourceFolder, row: TableRow, channel: _Channel, table: str, prefixes: Sequence[str]) -> str:
    name = row.cells[channel.illumination_file] if channel.illumination_file else ""
    if not name:
        return ""
    at = row.cells[channel.illumination_folder] if channel.illumination_folder else ""
    written = f"{at.rstrip('/')}/{name}" if at else name
    tried = _possible_paths(below_screen(written, folder.root, prefixes), table)
    return next((each for each in tried if folder.exists(each)), tried[0])


def _possible_paths(path: str, table: str) -> list[str]:
    """A relative path as it is meant: from the screen's folder, or from the table's own."""
    at = table.rpartition("/")[0]
    return [path, f"{at}/{path}"] if at and not path.startswith("/") and "://" not in path else [path]
