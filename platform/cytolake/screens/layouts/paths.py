"""Plates whose images are located by their file names, by a `PathRule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cytolake.screens.derived_copies import without_derived
from cytolake.screens.files import ImageRow, plates_of_rows
from cytolake.screens.label_vocabulary import nfc
from cytolake.screens.layouts.harmony import read_harmony_channels
from cytolake.screens.layouts.preset import PLACES, PathRule, WellTable, template_names
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import site_name, well_at, well_name, whole_number
from cytolake.screens.tables import read_table
from cytolake.screens.well_facts import Conflict, Place, facts_of_wells, with_conflicts
from cytolake.storage.source_folder import SourceFolder

Groups = dict[str, str]


def list_by_paths(
    screen: str, folder: SourceFolder, rule: PathRule, files: Sequence[str]
) -> tuple[list[Plate], list[Problem]]:
    """Plates of the files whose names match, and problems outside of plates.

    Args:
        folder: Of the screen.
        rule: How names are read.
        files: Paths of all its files, relative to it.

    Raises:
        ScreenError: The rule's table of wells cannot be read.
    """
    found = {path: groups for path in files if (groups := match_path(rule, folder, path)) is not None}
    plates_named = {path: _plate(rule, folder, groups) for path, groups in found.items()}
    originals, problems = without_derived(screen, plates_named)
    companions: dict[str, Any] = {}
    rows: list[ImageRow] = []
    for path in originals:
        groups = found[path]
        images_folder = path.rpartition("/")[0]
        if rule.companion == "harmony" and images_folder not in companions:
            companions[images_folder], said = read_harmony_channels(folder, images_folder, screen)
            problems += said
        companion = companions.get(images_folder)
        number = (groups.get("channel") or "").lstrip("0") or groups.get("channel") or ""
        name = (companion.names.get(number) if companion else "") or rule.channels.get(number)
        rows.append(
            ImageRow(
                path=path,
                plate=plates_named[path],
                well="" if _has_samples(rule) else _well(rule, groups),
                sample=groups.get("sample", "") if _has_samples(rule) else "",
                site=groups.get("site") or "1",
                channel=name or rule.channel.format_map({**groups, "channel": number}),
                z=site_name(groups["z"]) if groups.get("z") else "",
                timepoint=_timepoint(groups.get("timepoint") or "", rule.first_timepoint),
                pixel_size_um=companion.pixel_size_um if companion else "",
                said=_said(rule, groups),
                acquisition=_acquisition(path, groups),
                run_name=groups.get("acquisition", ""),
            )
        )
        if name and number:
            rows[-1] = _unlike(rows[-1], number, companions, images_folder)
    conflicts: list[Conflict] = []
    wells_file = ""
    if rule.wells is not None:
        wells_file, facts, conflicts, ragged = _read_wells(screen, folder, rule.wells, files)
        problems += ragged
        rows = _with_facts(rows, facts) if facts else rows
    plates, others = plates_of_rows(screen, folder, without_lone_planes(rows))
    return with_conflicts(plates, conflicts, screen, wells_file), problems + others


def match_path(rule: PathRule, folder: SourceFolder, path: str) -> Groups | None:
    """Groups of a matching path, those that took no part empty; None where the rule does not match.

    A plate that the path does not name may be named by the screen's own folder or the one above: a single plate, or
    the folder of its images, was given then.
    """
    match = rule.pattern.fullmatch(path)
    if match is None:
        return None
    groups = match.groupdict(default="")
    if "plate" in groups and not groups["plate"]:
        for n_above in (1, 2):
            above = "/".join(folder.root.split("/")[-n_above:])
            wider = rule.pattern.fullmatch(f"{above}/{path}")
            if wider is not None and wider["plate"]:
                return wider.groupdict(default="")
    return groups


def without_lone_planes(rows: Sequence[ImageRow]) -> list[ImageRow]:
    """Rows without the name of the focal plane if their plate has only one plane."""
    planes: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        planes.setdefault((row.plate, row.acquisition), set()).add(row.z)
    return [replace(row, z="") if row.z and len(planes[row.plate, row.acquisition]) == 1 else row for row in rows]


def _plate(rule: PathRule, folder: SourceFolder, groups: Groups) -> str:
    return rule.plate.format_map(groups) if rule.plate else groups.get("plate") or folder.name


def _acquisition(path: str, groups: Groups) -> str:
    """Folder of the imaging run, relative to the screen's where the path names it."""
    run = groups.get("acquisition", "")
    at = f"/{path}".rfind(f"/{run}/")
    return path[: at + len(run)] if run and at >= 0 else run


def _has_samples(rule: PathRule) -> bool:
    """Whether the names of samples stand for wells."""
    groups = rule.pattern.groupindex
    return "sample" in groups and "well" not in groups and "row" not in groups


def _well(rule: PathRule, groups: Groups) -> str:
    if groups.get("well"):
        return well_name(groups["well"]) or groups["well"]
    row, column = groups.get("row", ""), groups.get("column", "")
    return well_at(row, column, rule.first_row, rule.first_column) or f"row {row}, column {column}"


def _timepoint(text: str, first: int) -> str:
    number = whole_number(text, default=first)
    return text if number is None else str(max(number - first, 0))


def _unlike(row: ImageRow, number: str, companions: dict[str, Any], images_folder: str) -> ImageRow:
    """The row with its channel's number added where an earlier channel of the same index has the same name."""
    companion = companions.get(images_folder)
    if companion is None:
        return row
    first = next((key for key, name in companion.names.items() if name == row.channel), number)
    return row if first == number else replace(row, channel=f"{row.channel} ch{number}")


def _said(rule: PathRule, groups: Groups) -> dict[str, str]:
    said = {"batch": rule.batch.format_map(groups)} if rule.batch else {}
    of_samples = ("sample",) if _has_samples(rule) else ()
    located = {"acquisition", *of_samples, *PLACES, *template_names(rule.plate), *template_names(rule.batch)}
    return said | {name: value for name, value in groups.items() if value and name not in located}


def _read_wells(
    screen: str, folder: SourceFolder, table: WellTable, files: Sequence[str]
) -> tuple[str, dict[Place, Groups], list[Conflict], list[Problem]]:
    """The table's file, what it says of the wells, where its rows disagree, and rows that cannot be used."""
    file = next((path for path in files if table.files.fullmatch(path)), None)
    if file is None:
        return "", {}, [], []
    columns, rows, ragged = read_table(folder, file, screen)
    taken: dict[str, str] = {}
    for name, candidates in table.columns.items():
        column = next((each for each in candidates if each in columns), None)
        if column is None:
            return "", {}, [], []
        taken[name] = column
    places = []
    for row in rows:
        values = {name: row.cells[column] for name, column in taken.items()}
        well = well_name(table.well.format_map(values))
        others = {name: value for name, value in row.cells.items() if name and name not in taken.values()}
        places.append(((table.plate.format_map(values), well), others))
    return file, *facts_of_wells(places), ragged


def _with_facts(rows: list[ImageRow], facts: dict[Place, Groups]) -> list[ImageRow]:
    return [replace(row, said={**row.said, **facts.get((nfc(row.plate), well_name(row.well)), {})}) for row in rows]
