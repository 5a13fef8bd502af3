"""ImageXpress (MetaXpress) export folders.

`<anything>/TimePoint_<n>/[ZStep_<m>/]<plate>_<well>_s<site>_w<channel><GUID>.tif`. Time and focus folders may be
absent, and a plate may mix channels with and without focal planes. Thumbnails are left out. Channel names and pixel
size are in the files' MetaSeries metadata, of which one file for each channel is read.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import cast

import tifffile

from cytolake.screens import storage
from cytolake.screens.length_units import micrometres
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import natural_order, site_name, well_name, whole_number
from cytolake.screens.site_groups import ImageFile, group_sites
from cytolake.screens.source_folder import PathRefusedError, SourceFolder

_IMAGE_NAME = re.compile(
    r"(?P<plate>.+)_(?P<well>[A-Z]{1,2}[0-9]{2})(?:_s(?P<site>[0-9]+))?(?:_w(?P<wavelength>[0-9]+?))?(?P<thumbnail>_thumb)?"
    r"(?P<guid>[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12})?\.tiff?",
    re.IGNORECASE,
)
_TIMEPOINT = re.compile(r"TimePoint_([0-9]+)", re.IGNORECASE)
_ZSTEP = re.compile(r"ZStep_([0-9]+)", re.IGNORECASE)
_PROPERTY = re.compile(r'<(?:custom-)?prop id="([^"]+)" type="[^"]*" value="([^"]*)"')


def has_imagexpress_images(files: Sequence[str]) -> bool:
    """Whether paths hold an image in a `TimePoint_` folder or one that is named with a MetaXpress GUID."""
    for path in files:
        *folders, name = path.split("/")
        match = _IMAGE_NAME.fullmatch(name)
        if match and (match["guid"] or any(_TIMEPOINT.fullmatch(folder) for folder in folders)):
            return True
    return False


def list_imagexpress_plates(
    screen: str, folder: SourceFolder, files: Sequence[str]
) -> tuple[list[Plate], list[Problem]]:
    """Plates of an export folder, in the order of their names, and problems of files that belong to none of them.

    Timepoints count from 0 (`TimePoint_1`); z is the number of the `ZStep_` folder, empty where there is none. Two
    plate folders with plates of one name become `<name>_<folder>`.

    Args:
        screen: Its name.
        folder: Of the screen.
        files: Paths of all its files, relative to it.
    """
    found: dict[tuple[str, str], list[tuple[ImageFile, int]]] = {}
    problems: list[Problem] = []
    for plate_folder, timepoint, z, file, match in _images(files):
        well = well_name(match["well"])
        try:
            path = folder.find(file)
        except PathRefusedError:
            path = ""
        if not well or not path:
            problems.append(
                Problem(
                    screen=screen,
                    plate=match["plate"],
                    well=well,
                    file=file,
                    problem="path_outside_screen" if well else "bad_well_name",
                    found="a link to another folder" if well else match["well"],
                    expected="a file below the screen's folder" if well else "a well of a 1536-well plate or smaller",
                    next_step="Copy the file here." if well else "Rename the file.",
                )
            )
            continue
        wavelength = int(match["wavelength"] or 1)
        image = ImageFile(
            well=well,
            site=site_name(match["site"] or ""),
            timepoint=timepoint,
            z=z,
            channel=f"w{wavelength}",
            path=path,
            file=file,
        )
        found.setdefault((match["plate"], plate_folder), []).append((image, wavelength))
    names = [name for name, _ in found]
    plates = []
    for (name, plate_folder), images in found.items():
        plate = name if names.count(name) == 1 else f"{name}_{plate_folder.rpartition('/')[2] or folder.name}"
        source = f"{folder.root}/{plate_folder}" if plate_folder else str(folder.root)
        plates.append(_as_plate(screen, plate, source, images))
    return sorted(plates, key=lambda plate: natural_order(plate.plate)), problems


def _images(files: Sequence[str]) -> Iterator[tuple[str, int, str, str, re.Match[str]]]:
    """(plate folder, timepoint, z, path, name match) of every image among files."""
    for path in files:
        folder, _, name = path.rpartition("/")
        image = _IMAGE_NAME.fullmatch(name)
        if image is None or image["thumbnail"]:
            continue
        timepoint, z = 0, ""
        if match := _ZSTEP.fullmatch(folder.rpartition("/")[2]):
            z, folder = site_name(match[1]), folder.rpartition("/")[0]
        if match := _TIMEPOINT.fullmatch(folder.rpartition("/")[2]):
            timepoint = max((whole_number(match[1], default=1) or 1) - 1, 0)
            folder = folder.rpartition("/")[0]
        yield folder, timepoint, z, path, image


def _as_plate(screen: str, plate: str, plate_folder: str, images: list[tuple[ImageFile, int]]) -> Plate:
    first_of: dict[int, str] = {}
    for image, wavelength in images:
        first_of.setdefault(wavelength, image.path)
    names: dict[str, str] = {}
    pixel_sizes_um: set[float] = set()
    for wavelength in sorted(first_of):
        said = _metaseries(first_of[wavelength])
        name = said.get("_IllumSetting_") or said.get("image-name") or f"w{wavelength}"
        names[f"w{wavelength}"] = f"{name} w{wavelength}" if name in names.values() else name
        size_um = _pixel_size_um(said)
        if size_um is not None:
            pixel_sizes_um.add(size_um)
    renamed = [
        ImageFile(
            well=image.well,
            site=image.site,
            timepoint=image.timepoint,
            z=image.z,
            channel=names[image.channel],
            path=image.path,
            file=image.file,
        )
        for image, _ in images
    ]
    channels = tuple(names.values())
    sites, problems = group_sites(screen, plate, renamed, channels)
    return Plate(
        screen=screen,
        plate=plate,
        batch=plate,
        source=plate_folder,
        reader="files",
        channels=channels,
        sites=sites,
        problems=tuple(problems),
        pixel_size_um=pixel_sizes_um.pop() if len(pixel_sizes_um) == 1 else None,
    )


def _metaseries(path: str) -> dict[str, str]:
    """MetaSeries properties of one file's first page; empty where it has none or cannot be read."""
    try:
        with storage.open_file(path) as file, tifffile.TiffFile(file) as tif:
            description = cast(tifffile.TiffPage, tif.pages[0]).description
    except storage.UnreachableError:
        raise
    except Exception:  # a damaged file is reported when its pixels are read; here it only loses the channel's name
        return {}
    if not description.lstrip().startswith("<MetaData>"):
        return {}
    return {name: html.unescape(value).strip() for name, value in _PROPERTY.findall(description)}


def _pixel_size_um(said: dict[str, str]) -> float | None:
    unit = micrometres(said.get("spatial-calibration-units", ""))
    if unit is None or said.get("spatial-calibration-state", "on") != "on":
        return None
    try:
        size_um = float(said["spatial-calibration-x"]) * unit
    except (KeyError, ValueError):
        return None
    return size_um if 0 < size_um < float("inf") else None
