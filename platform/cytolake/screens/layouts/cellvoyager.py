"""Yokogawa CellVoyager (CV7000, CV8000) measurement folders.

`MeasurementData.mlf` has one record for each image: well, field, time, focal plane, channel and file name, or an error
that the microscope met. `MeasurementDetail.mrf` next to it has the pixel size, the `.mes` file the stains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cytolake.screens.files import ImageRow, plates_of_rows
from cytolake.screens.layouts.paths import without_lone_planes
from cytolake.screens.layouts.xml_elements import XmlElement, XmlRefusedError, xml_elements
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import site_name, well_at, whole_number
from cytolake.storage.files import UnreachableError
from cytolake.storage.source_folder import PathRefusedError, SourceFolder


@dataclass(frozen=True, slots=True)
class _Settings:
    """Channel number -> stain, channel number -> micrometres as text."""

    names: dict[str, str]
    pixel_sizes_um: dict[str, str]


def measurement_files(files: Sequence[str]) -> list[str]:
    """The `.mlf` files among paths."""
    return [path for path in files if path.lower().endswith(".mlf")]


def list_cellvoyager_plates(
    screen: str, folder: SourceFolder, files: Sequence[str]
) -> tuple[list[Plate], list[Problem]]:
    """Plates of all measurement folders, each named after its folder, and problems that belong to none of them.

    Folders of one name in several places are imaging runs of one plate (see `acquisitions`).

    Args:
        folder: Of the screen.
        files: Paths of all its files, relative to it.
    """
    measurements = measurement_files(files)
    problems: list[Problem] = []
    rows: list[ImageRow] = []
    for file in measurements:
        place = file.rpartition("/")[0]
        plate = place.rpartition("/")[2] or folder.name
        neighbours = [path for path in files if path.rpartition("/")[0] == place]
        settings, found = _read_settings(screen, folder, plate, neighbours)
        problems += found
        problems += _read_records(screen, folder, plate, file, settings, rows)
    plates, others = plates_of_rows(screen, folder, without_lone_planes(rows))
    return plates, problems + others


def _read_records(
    screen: str, folder: SourceFolder, plate: str, file: str, settings: _Settings, rows: list[ImageRow]
) -> list[Problem]:
    """Add a row for each image of one measurement file; returns its error records and problems."""
    place = file.rpartition("/")[0]
    problems = []
    try:
        for record in xml_elements(folder.read_bytes(file), frozenset({"MeasurementRecord"})):
            said = record.attributes
            well = well_at(said.get("Row", ""), said.get("Column", ""))
            field = site_name(said.get("FieldIndex", ""))
            number = _number(said.get("Ch", ""))
            if said.get("Type") == "ERR":
                problems.append(
                    Problem(
                        screen=screen,
                        plate=plate,
                        well=well,
                        site=field if said.get("FieldIndex") else "",
                        channel=settings.names.get(number, ""),
                        file=file,
                        problem="acquisition_error",
                        found=record.text[:200] or "an error that the microscope noted",
                        expected="an image",
                        next_step="The microscope took no image there; image the well again, or leave it out.",
                    )
                )
            elif said.get("Type") == "IMG":
                first = whole_number(said.get("TimePoint", ""), default=1)
                rows.append(
                    ImageRow(
                        path=f"{place}/{record.text}" if place and not _is_absolute(record.text) else record.text,
                        plate=plate,
                        well=well or f"row {said.get('Row', '?')}, column {said.get('Column', '?')}",
                        site=field,
                        channel=settings.names.get(number, f"ch{number}") if number else "",
                        z=site_name(said["ZIndex"]) if said.get("ZIndex") else "",
                        timepoint=said.get("TimePoint", "") if first is None else str(max(first - 1, 0)),
                        pixel_size_um=settings.pixel_sizes_um.get(number, ""),
                        listing=file,
                        acquisition=place,
                        run_name=place.replace("/", "_"),
                    )
                )
    except UnreachableError:
        raise
    except (PathRefusedError, OSError, XmlRefusedError) as error:
        problems.append(_unreadable(screen, plate, file, error, "images behind this place are not listed"))
    return problems


def _read_settings(
    screen: str, folder: SourceFolder, plate: str, neighbours: Sequence[str]
) -> tuple[_Settings, list[Problem]]:
    """Channels of a measurement folder, from its `.mrf` and `.mes` files."""
    settings = _Settings({}, {})
    problems = []
    channels: list[XmlElement] = []
    for path in neighbours:
        kind = path.lower().rpartition(".")[2]
        if kind not in ("mrf", "mes"):
            continue
        try:
            elements = list(xml_elements(folder.read_bytes(path), frozenset({"MeasurementChannel", "Channel"})))
        except UnreachableError:
            raise
        except (PathRefusedError, OSError, XmlRefusedError) as error:
            problems.append(_unreadable(screen, plate, path, error, "channels have numbers for names"))
            continue
        for element in elements:
            number = _number(element.attributes.get("Ch", ""))
            if element.name == "MeasurementChannel":
                settings.pixel_sizes_um[number] = element.attributes.get("HorizontalPixelDimension", "").strip()
            elif kind == "mes":
                channels.append(element)
    for element in sorted(channels, key=lambda each: _number(each.attributes.get("Ch", "")).zfill(4)):
        number = _number(element.attributes.get("Ch", ""))
        said = element.attributes
        name = next((said[key].strip() for key in ("Target", "Fluorophore", "Acquisition") if said.get(key)), "")
        if number and name and number not in settings.names:
            settings.names[number] = f"{name} ch{number}" if name in settings.names.values() else name
    return settings, problems


def _unreadable(screen: str, plate: str, file: str, error: Exception, until: str) -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        file=file,
        problem="unreadable_file",
        found=str(error),
        expected="the XML that the microscope wrote",
        next_step=f"Copy it again; until then {until}.",
    )


def _number(text: str) -> str:
    return text.strip().lstrip("0")


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "\\")) or ":" in path[:16]
