"""ImageXpress (MetaXpress) export folders.

`<anything>/TimePoint_<n>/[ZStep_<m>/]<plate>_<well>_s<site>_w<channel><GUID>.tif`. Time and focus folders may be
absent, and a plate may mix channels with and without focal planes. Thumbnails are left out. Channel names and pixel
size are in the files' MetaSeries metadata, of which one readable file for each channel is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cytolake.screens.derived_copies import without_derived
from cytolake.screens.imagexpress_names import ImageName, parse_image_name
from cytolake.screens.imagexpress_planes import planes_of
from cytolake.screens.metaseries import htd_files, pixel_size_um, read_htd, read_metaseries
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import site_name, well_name, whole_number
from cytolake.screens.site_groups import ImageFile, group_sites
from cytolake.storage.natural_order import natural_order
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

N_TRIED = 16
"""Files of a channel that are tried until one can be read."""

_TIMEPOINT = re.compile(r"TimePoint_([0-9]+)", re.IGNORECASE)
_ZSTEP = re.compile(r"ZStep_([0-9]+)", re.IGNORECASE)


def has_imagexpress_images(files: Sequence[str]) -> bool:
    """Whether paths hold an image in a `TimePoint_` folder or one that is named with a MetaXpress GUID."""
    for path in files:
        *folders, name = path.split("/")
        image = parse_image_name(name)
        if image and (image.has_guid or any(_TIMEPOINT.fullmatch(folder) for folder in folders)):
            return True
    return False


def list_imagexpress_plates(
    screen: str, folder: SourceFolder, files: Sequence[str]
) -> tuple[list[Plate], list[Problem]]:
    """Plates of an export folder, in the order of their names, and problems of files that belong to none of them.

    Timepoints count from 0 (`TimePoint_1`); z is the number of the `ZStep_` folder, empty where there is none. Each
    plate folder is one imaging run; two of one plate are two plates of one name (see `acquisitions`).

    Args:
        folder: Of the screen.
        files: Paths of all its files, relative to it.
    """
    found: dict[tuple[str, str], list[ImageFile]] = {}
    problems: list[Problem] = []
    names = {path: name for path in files if (name := _name_of(path)) is not None}
    kept, derived = without_derived(screen, {path: name.plate for path, name in names.items()})
    problems += derived
    for plate_folder, timepoint, z, file, name in _places(kept, names):
        well = well_name(name.well)
        try:
            path = folder.find(file)
        except PathRefusedError:
            path = ""
        if not well or not path:
            problems.append(
                Problem(
                    screen=screen,
                    plate=name.plate,
                    well=well,
                    file=file,
                    problem="path_outside_screen" if well else "bad_well_name",
                    found="a link to another folder" if well else name.well,
                    expected="a file below the screen's folder" if well else "a well of a 1536-well plate or smaller",
                    next_step="Copy the file here." if well else "Rename the file.",
                )
            )
            continue
        image = ImageFile(
            well=well,
            site=site_name(name.site),
            timepoint=timepoint,
            z=z,
            channel=f"w{name.wavelength}",
            path=path,
            file=file,
        )
        found.setdefault((name.plate, plate_folder), []).append(image)
    headers = htd_files(files)
    plates = []
    for (plate, plate_folder), of_plate in found.items():
        said: dict[str, list[str]] = {}
        for header in headers.get(plate_folder, ()):
            said |= read_htd(folder, header)
        planes, left_out = planes_of(of_plate, said)
        if left_out:
            problems.append(_planes_left_out(screen, plate, plate_folder or ".", left_out))
        plates.append(_as_plate(screen, plate, folder, plate_folder, planes))
    return sorted(plates, key=lambda plate: natural_order(plate.plate)), problems


def _name_of(path: str) -> ImageName | None:
    image = parse_image_name(path.rpartition("/")[2])
    return None if image is None or image.is_thumbnail else image


def _places(files: Iterable[str], names: dict[str, ImageName]) -> Iterator[tuple[str, int, str, str, ImageName]]:
    """(plate folder, timepoint, z, path, name) of images."""
    for path in files:
        folder = path.rpartition("/")[0]
        timepoint, z = 0, ""
        if match := _ZSTEP.fullmatch(folder.rpartition("/")[2]):
            z, folder = site_name(match[1]), folder.rpartition("/")[0]
        if match := _TIMEPOINT.fullmatch(folder.rpartition("/")[2]):
            timepoint = max((whole_number(match[1], default=1) or 1) - 1, 0)
            folder = folder.rpartition("/")[0]
        yield folder, timepoint, z, path, names[path]


def _as_plate(screen: str, plate: str, folder: SourceFolder, plate_folder: str, images: Sequence[ImageFile]) -> Plate:
    paths: dict[int, dict[str, str]] = {}
    for image in images:
        of_wavelength = paths.setdefault(int(image.channel[1:]), {})
        if len(of_wavelength) < N_TRIED:
            of_wavelength[image.path] = image.file
    names: dict[str, str] = {}
    sizes_um: set[float] = set()
    unknown: list[Problem] = []
    for wavelength in sorted(paths):
        said = next((said for path in paths[wavelength] if (said := read_metaseries(path)) is not None), None)
        if said is None:
            unknown.append(_unknown_stain(screen, plate, f"w{wavelength}", paths[wavelength]))
            said = {}
        name = said.get("_IllumSetting_") or said.get("image-name") or f"w{wavelength}"
        names[f"w{wavelength}"] = f"{name} w{wavelength}" if name in names.values() else name
        size_um = pixel_size_um(said)
        if size_um is not None:
            sizes_um.add(size_um)
    channels = tuple(names.values())
    renamed = [replace(image, channel=names[image.channel]) for image in images]
    sites, problems = group_sites(screen, plate, renamed, channels)
    return Plate(
        screen=screen,
        plate=plate,
        batch=plate,
        source=f"{folder.root}/{plate_folder}" if plate_folder else str(folder.root),
        reader="files",
        channels=channels,
        sites=sites,
        problems=(*problems, *unknown),
        pixel_size_um=sizes_um.pop() if len(sizes_um) == 1 else None,
        acquisition=plate_folder,
        run_name=f"{plate}_{plate_folder.rpartition('/')[2] or folder.name}",
    )


def _unknown_stain(screen: str, plate: str, channel: str, files: dict[str, str]) -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        channel=channel,
        file=next(iter(files.values())),
        problem="unknown_stain",
        found=f"{len(files)} images of {channel}, of which none can be read",
        expected="one readable image, which names the stain",
        next_step="Copy the images again, or set `channel_names` of the screen; until then the channel has its number.",
    )


def _planes_left_out(screen: str, plate: str, file: str, said: str) -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        file=file,
        problem="not_a_focal_plane",
        found=said,
        expected="one image for each focal plane in the ZStep folders",
        next_step="Each plane is read once, and a projection that an HTD file declares is left out. To read the "
        "projections instead, set `path` to a folder that holds only these.",
    )
