"""Plates whose image files hold several channels, focal planes or timepoints each.

File names locate the files; the first readable file of each channel defines the content of all files of the plate. A
file that differs becomes a problem of its site when it is read. Reads metadata, no pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from cytolake.screens.images.image_errors import STORAGE_FAILED, ImageFileError
from cytolake.screens.images.tiff_stacks import TiffStack, opened_stack
from cytolake.screens.layouts.xml_elements import XmlRefusedError, xml_elements
from cytolake.screens.plate import Plate, Problem, Reader, SiteImage
from cytolake.screens.site_groups import site_order
from cytolake.storage.files import is_uri

Pages = Literal["", "channels", "planes", "times"]
"""What the pages of a TIFF are that has no metadata of its own: empty, nothing is assumed."""

_N_TRIED = 8  # files of a channel, until one can be read
_N_AT_ONCE = 16  # files of a bucket
_TIFF = re.compile(r".*\.tiff?", re.IGNORECASE)
_MICROMETRES = {"nm": 1e-3, "mm": 1e3} | dict.fromkeys(
    ("µm", "μm", "um", "micron", "microns", "micrometer", "\\u00b5m"), 1.0
)


@dataclass(frozen=True, slots=True)
class _Inside:
    """Content of the files of one channel."""

    n_channels: int
    n_planes: int
    n_times: int
    names: tuple[str, ...]
    """Of the channels inside; empty where the file does not name them."""
    pixel_size_um: float | None
    unknown_pages: int = 0
    """Pages that nothing explains."""
    file: str = ""


def expand_stacks(plates: Sequence[Plate], pages: Pages = "") -> list[Plate]:
    """The plates, with the channels, planes and times inside of their files as those of their sites.

    Args:
        plates: As a layout's reader gives them; only those of plain image files are looked at.
        pages: Meaning of pages that no metadata explain.
    """
    reader: Reader = f"stack-{pages}" if pages else "stack"  # type: ignore[assignment]
    files = [(i, channel, paths) for i, plate in enumerate(plates) for channel, paths in _files_of(plate)]
    if any(is_uri(paths[0]) for _, _, paths in files):
        with ThreadPoolExecutor(_N_AT_ONCE) as pool:
            found = list(pool.map(lambda each: _inside(each[2], reader), files))
    else:
        found = [_inside(paths, reader) for _, _, paths in files]
    of_plate: dict[int, dict[str, _Inside]] = {}
    for (i, channel, _), inside in zip(files, found, strict=True):
        if inside is not None:
            of_plate.setdefault(i, {})[channel] = inside
    return [_expanded(plate, of_plate[i], reader) if i in of_plate else plate for i, plate in enumerate(plates)]


def _files_of(plate: Plate) -> Iterator[tuple[str, list[str]]]:
    """A few files of each channel of a plate of plain files, where they are TIFF."""
    if plate.reader != "files":
        return
    found: dict[str, list[str]] = {}
    for site in plate.sites:
        for channel, path in zip(site.channels, site.image_paths, strict=True):
            paths = found.setdefault(channel, [])
            if len(paths) < _N_TRIED and _TIFF.fullmatch(path):
                paths.append(path)
    yield from ((channel, paths) for channel, paths in found.items() if paths)


def _inside(paths: Sequence[str], reader: str) -> _Inside | None:
    """What the first readable file holds; None where that is one plane, or no file can be read."""
    for path in paths:
        try:
            with opened_stack(path, reader) as stack:
                return None if stack is None else _facts(stack, path)
        except ImageFileError as error:
            if error.problem == STORAGE_FAILED:
                return None  # the pixels' reader reports it
    return None


def _facts(stack: TiffStack, path: str) -> _Inside:
    if "?" in stack.axes:
        return _Inside(1, 1, 1, (), None, unknown_pages=stack.n_pages, file=path)
    names, size_um = _ome(stack) if stack.tif.is_ome else _imagej(stack)
    n_channels = stack.n("C")
    is_named = len(names) == n_channels == len(set(names)) and all(names)
    return _Inside(n_channels, stack.n("Z"), stack.n("T"), tuple(names) if is_named else (), size_um, file=path)


def _ome(stack: TiffStack) -> tuple[list[str], float | None]:
    try:
        (pixels, *_) = xml_elements((stack.tif.ome_metadata or "").encode(), frozenset({"Pixels"}))
    except (XmlRefusedError, ValueError):
        return [], None
    names = [each.attributes.get("Name", "").strip() for each in pixels.children if each.name == "Channel"]
    unit = _MICROMETRES.get(pixels.attributes.get("PhysicalSizeXUnit", "µm"))
    return names, _positive(pixels.attributes.get("PhysicalSizeX", ""), unit)


def _imagej(stack: TiffStack) -> tuple[list[str], float | None]:
    said = (stack.tif.imagej_metadata or {}) if stack.tif.is_imagej else {}
    labels = [str(label).strip() for label in said.get("Labels") or ()]
    names = []
    for channel in range(stack.n("C") if len(labels) == stack.n_pages else 0):
        of_channel = {
            labels[stack.page_number(c=channel, z=z, t=t)] for z in range(stack.n("Z")) for t in range(stack.n("T"))
        }
        names.append(of_channel.pop() if len(of_channel) == 1 else "")
    tag = stack.tif.pages.first.tags.get("XResolution")
    unit = _MICROMETRES.get(str(said.get("unit", "")).lower())
    size = f"{tag.value[1] / tag.value[0]}" if tag is not None and tag.value[0] else ""
    return names, _positive(size, unit)


def _positive(text: str, unit_um: float | None) -> float | None:
    try:
        size = float(text) * (unit_um or 0.0)
    except ValueError:
        return None
    return size if 0 < size < float("inf") else None


def _expanded(plate: Plate, inside: dict[str, _Inside], reader: Reader) -> Plate:
    unknown = {channel: each for channel, each in inside.items() if each.unknown_pages}
    if unknown:
        problems = (*plate.problems, *(_unknown_pages(plate, *each) for each in unknown.items()))
        return replace(plate, problems=problems)
    plain = _Inside(1, 1, 1, (), None)
    of_channel = {channel: inside.get(channel, plain) for channel in plate.channels}
    depths = {(each.n_times, each.n_planes) for each in of_channel.values()}
    if len(depths) > 1:
        return replace(plate, problems=(*plate.problems, _mixed(plate, of_channel)))
    names = _channel_names(of_channel)
    ((n_times, n_planes),) = depths
    places = {(site.well, site.site) for site in plate.sites}
    has_times = n_times > 1 and len({site.timepoint for site in plate.sites}) > 1
    has_planes = n_planes > 1 and any(site.z for site in plate.sites)
    if has_times or has_planes:
        return replace(plate, problems=(*plate.problems, _twofold(plate, len(places))))
    sizes_um = {each.pixel_size_um for each in inside.values() if each.pixel_size_um is not None}
    sites = [
        replace(
            site,
            timepoint=timepoint if n_times > 1 else site.timepoint,
            z=str(plane) if n_planes > 1 else site.z,
            channels=tuple(name for channel in site.channels for name in names[channel]),
            reader=reader,
            illumination_paths=_repeated(site, of_channel),
        )
        for site in plate.sites
        for timepoint in range(n_times)
        for plane in range(n_planes)
    ]
    return replace(
        plate,
        reader=reader,
        channels=tuple(name for channel in plate.channels for name in names[channel]),
        sites=tuple(sorted(sites, key=site_order)),
        pixel_size_um=plate.pixel_size_um or (sizes_um.pop() if len(sizes_um) == 1 else None),
    )


def _channel_names(of_channel: dict[str, _Inside]) -> dict[str, list[str]]:
    """Channel of the file's name -> names of the channels inside; no name twice in a plate.

    A name from the metadata is taken where it is the only one of its kind; else the file's channel and a number. The
    lone channel of files whose names say none is `ch1`, and so gives ch1, ch2, ...
    """
    said = [name for each in of_channel.values() for name in each.names]
    names: dict[str, list[str]] = {}
    for channel, each in of_channel.items():
        if each.n_channels == 1:
            names[channel] = [channel]
        elif each.names and all(said.count(name) == 1 for name in each.names):
            names[channel] = list(each.names)
        elif len(of_channel) == 1 and channel == "ch1":
            names[channel] = [f"ch{i + 1}" for i in range(each.n_channels)]
        else:
            names[channel] = [f"{channel}_{name}" for name in each.names or map(str, range(1, each.n_channels + 1))]
    flat = sorted(name for each in names.values() for name in each)
    if any(one == two for one, two in pairwise(flat)):
        return {channel: [f"{channel}_{i + 1}" for i in range(each.n_channels)] for channel, each in of_channel.items()}
    return names


def _repeated(site: SiteImage, of_channel: dict[str, _Inside]) -> tuple[str, ...]:
    if not site.illumination_paths:
        return ()
    pairs = zip(site.channels, site.illumination_paths, strict=True)
    return tuple(path for channel, path in pairs for _ in range(of_channel[channel].n_channels))


def _unknown_pages(plate: Plate, channel: str, inside: _Inside) -> Problem:
    return plate.problem(
        channel=channel,
        file=inside.file,
        problem="unknown_pages",
        found=f"{inside.unknown_pages} pages, and no metadata that say what they are",
        expected="one page, or pages that ImageJ or OME metadata name",
        next_step="Set `pages` of the screen to channels, planes or times; until then no site of these files is read.",
    )


def _mixed(plate: Plate, of_channel: dict[str, _Inside]) -> Problem:
    found = ", ".join(
        f"{channel}: {each.n_channels} channels, {each.n_planes} planes, {each.n_times} times"
        for channel, each in of_channel.items()
    )
    return plate.problem(
        problem="mixed_stacks",
        found=found,
        expected="files of one kind, with as many planes and times each",
        next_step="Export all channels alike; until then sites with stacks among their files are not read.",
    )


def _twofold(plate: Plate, n_places: int) -> Problem:
    return plate.problem(
        problem="mixed_stacks",
        found=f"planes or times in the files' names and inside of the files too, at {n_places} sites",
        expected="planes and times in one of the two",
        next_step="Take z or timepoint out of the pattern, or split the files; until then these sites are not read.",
    )
