"""Plates as OME-Zarr HCS 0.4 (Zarr v2) and 0.5 (Zarr v3), read through ngio.

Source: https://ngff.openmicroscopy.org/0.4 and /0.5, "plate" and "well" metadata.
"""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ngio import open_ome_zarr_container, open_ome_zarr_plate

from cytolake.screens.plate import Plate, Problem, SiteImage
from cytolake.screens.positions import natural_order, site_name, well_name
from cytolake.screens.site_groups import site_order
from cytolake.screens.source_folder import SourceFolder

_MICROMETRES = {"micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "angstrom": 1e-4, "centimeter": 1e4}


def is_plate(path: Path) -> bool:
    """Whether a folder holds OME-Zarr plate metadata."""
    return "plate" in _ome_metadata(path)


def is_zarr(path: Path) -> bool:
    """Whether a folder says it is Zarr, by its name or by what it holds."""
    return path.suffix == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))


def plate_folders(root: Path) -> list[Path]:
    """The plate itself, or the Zarr folders in a screen's folder; hidden ones are half-written and left out."""
    if is_plate(root):
        return [root]
    try:
        folders = [entry for entry in root.iterdir() if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []
    return sorted((entry for entry in folders if is_zarr(entry)), key=lambda entry: natural_order(entry.name))


def list_zarr_plates(screen: str, folder: SourceFolder) -> tuple[list[Plate], list[Problem]]:
    """Every plate with at least one readable site, and what is wrong outside of these. Reads metadata only."""
    plates, problems = [], []
    for path in plate_folders(folder.root):
        plate, found = _list_plate(screen, folder, path)
        if plate is None:
            problems += found
        else:
            plates.append(plate)
    return plates, problems


@dataclass(frozen=True, slots=True)
class _ImageFacts:
    """What the listing needs of one image group."""

    channels: tuple[str, ...]
    n_timepoints: int
    n_planes: int
    pixel_size_um: float | None


def _list_plate(screen: str, folder: SourceFolder, path: Path) -> tuple[Plate | None, list[Problem]]:
    name = path.name.removesuffix(".zarr").removesuffix(".ome")
    problems: list[Problem] = []

    def report(problem: str, found: str, expected: str, next_step: str, *, well: str = "", site: str = "") -> None:
        file = folder.relative(path)
        if well:
            file += f"/{well}" + (f"/{site}" if site else "")
        problems.append(
            Problem(
                screen=screen,
                plate=name,
                well=well_name(well) or well,
                site=site_name(site) if site else "",
                file=file,
                problem=problem,
                found=found,
                expected=expected,
                next_step=next_step,
            )
        )

    if not folder.holds(path):
        report(
            "path_outside_screen",
            "a link to another folder",
            "a plate below the screen's folder",
            "Copy the plate here, or give its real folder as a source of its own.",
        )
        return None, problems
    metadata = _ome_metadata(path)
    if "plate" not in metadata:
        report(
            "not_a_plate",
            "an OME-Zarr image" if "multiscales" in metadata else "no plate metadata",
            "OME-Zarr HCS plate metadata, version 0.4 or 0.5",
            "Remove the folder from the screen, or write it again as a plate.",
        )
        return None, problems
    try:
        zarr_plate = open_ome_zarr_plate(str(path), cache=True, mode="r")
        well_paths = zarr_plate.wells_paths()
    except Exception as error:  # ngio, zarr and pydantic each raise their own for damaged metadata
        report("unreadable_file", _one_line(error), "valid OME-Zarr plate metadata", "Write the plate again.")
        return None, problems

    facts_of: dict[str, _ImageFacts] = {}
    wells: dict[str, str] = {}
    sites: list[SiteImage] = []
    channels: dict[str, None] = {}
    pixel_sizes_um: set[float] = set()
    for well_path in well_paths:
        row, _, column = well_path.partition("/")
        well = well_name(f"{row}{column}")
        if not well or "/" in column:
            report(
                "bad_well_name",
                repr(well_path),
                "a row letter and a column number, such as B/03",
                "Rename the well in the plate metadata and on disk.",
                well=well_path,
            )
            continue
        if wells.setdefault(well, well_path) != well_path:
            report(
                "duplicate_well",
                f"{wells[well]} and {well_path}",
                "each well once",
                "The first was kept; merge or remove the other.",
                well=well_path,
            )
            continue
        try:
            image_paths = zarr_plate.get_well(row, column).paths()
        except Exception as error:
            report(
                "unreadable_file",
                _one_line(error),
                "the well's metadata, which lists its images",
                "Write the well again, or remove it from the plate metadata.",
                well=well_path,
            )
            continue
        if not image_paths:
            report(
                "well_without_image",
                "no image in the well's metadata",
                "at least one image",
                "Remove the well from the plate metadata if it was not imaged.",
                well=well_path,
            )
        seen: dict[str, str] = {}
        for image_path in image_paths:
            image = path / well_path / image_path
            if "/" in image_path or ".." in image_path or not folder.holds(image):
                report(
                    "path_outside_screen",
                    repr(image_path),
                    "an image group directly in the well's folder",
                    "Copy the image into the well's folder and name it there.",
                    well=well_path,
                )
                continue
            site = site_name(image_path)
            if seen.setdefault(site, image_path) != image_path:
                report(
                    "duplicate_image",
                    f"images {seen[site]} and {image_path}",
                    "site names that differ by more than leading zeros",
                    "The first was kept; rename the other.",
                    well=well_path,
                    site=image_path,
                )
                continue
            try:
                facts = _image_facts(image, facts_of)
            except Exception as error:
                missing = not image.is_dir()
                report(
                    "missing_file" if missing else "unreadable_file",
                    "no such image group on disk" if missing else _one_line(error),
                    "the image that the well's metadata names",
                    "Write the image again, or remove it from the well's metadata.",
                    well=well_path,
                    site=image_path,
                )
                continue
            channels.update(dict.fromkeys(facts.channels))
            if facts.pixel_size_um is not None:
                pixel_sizes_um.add(facts.pixel_size_um)
            sites += [
                SiteImage(
                    screen=screen,
                    plate=name,
                    well=well,
                    site=site,
                    timepoint=timepoint,
                    z=str(plane) if facts.n_planes > 1 else "",
                    channels=facts.channels,
                    reader="ome-zarr",
                    image_paths=(str(image),),
                )
                for timepoint in range(facts.n_timepoints)
                for plane in range(facts.n_planes)
            ]
    if not sites:
        report("no_images", "a plate without a readable image", "at least one image", "Remove the plate, or mend it.")
        return None, problems
    return (
        Plate(
            screen=screen,
            plate=name,
            batch=name,
            source=str(path),
            reader="ome-zarr",
            channels=tuple(channels),
            sites=tuple(sorted(sites, key=site_order)),
            problems=tuple(problems),
            pixel_size_um=pixel_sizes_um.pop() if len(pixel_sizes_um) == 1 else None,
        ),
        [],
    )


def open_site(path: str) -> Any:
    """The full-resolution ngio `Image` of one image group; has `shape`, `axes`, `dtype` without reading pixels."""
    return open_ome_zarr_container(path, mode="r").get_image()


def n_of(image: Any, axis: str) -> int:
    """Length of an axis of an ngio image; 1 where the image has no such axis."""
    length = image.dimensions.get(axis, default=1)
    return int(length)


def read_plane(image: Any, timepoint: int, z: str, window: tuple[int, int, int, int]) -> np.ndarray:
    """(C, height, width) of one timepoint and focal plane; window is (y, x, height, width) in pixels."""
    y, x, height, width = window
    slices: dict[str, int | slice] = {"y": slice(y, y + height), "x": slice(x, x + width)}
    if "t" in image.axes:
        slices["t"] = timepoint
    if "z" in image.axes:
        slices["z"] = int(z) if z else 0
    pixels_CHW: np.ndarray = image.get_as_numpy(axes_order=["c", "y", "x"], **slices)
    return pixels_CHW


def cut_chunk(image: Any, path: str, timepoint: int, z: str, window: tuple[int, int, int, int]) -> str:
    """The first Blosc chunk in a window that is shorter on disk than its header says; empty where all are whole.

    Blosc takes the length in a chunk's header on trust and reads on behind a chunk that was cut, so a cut one would
    come back as pixels (numcodecs 0.16, Zarr v2 and v3). Every other codec refuses a cut chunk by itself.
    """
    array = image.zarr_array
    if array.shards is not None or not array.compressors or "blosc" not in type(array.compressors[-1]).__name__.lower():
        return ""
    y, x, height, width = window
    spans = {"t": (timepoint, 1), "z": (int(z) if z else 0, 1), "y": (y, height), "x": (x, width)}
    ranges = []
    for axis, length, chunk in zip(image.axes, array.shape, array.chunks, strict=True):
        start, n = spans.get(axis, (0, length))
        ranges.append(range(start // chunk, (start + n - 1) // chunk + 1))
    level = f"{path}/{image.path}"
    for place in itertools.product(*ranges):
        key = array.metadata.encode_chunk_key(place)
        try:
            with open(f"{level}/{key}", "rb") as file:  # noqa: PTH123 - called for each chunk
                header = file.read(16)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            continue  # a chunk of nothing but the fill value is not written
        n_bytes = int.from_bytes(header[12:16], "little") if len(header) == 16 else 16
        if size < n_bytes:
            return f"{image.path}/{key}, {size} of {n_bytes} bytes"
    return ""


def _image_facts(path: Path, known: dict[str, _ImageFacts]) -> _ImageFacts:
    """Facts of an image group. ngio takes 5 ms to open one, so images whose metadata are equal are opened once."""
    metadata = _ome_metadata(path)
    multiscale = metadata["multiscales"][0]
    labels = [str(channel.get("label") or "") for channel in metadata.get("omero", {}).get("channels", [])]
    level = path / str(multiscale["datasets"][0]["path"])
    array = _read_json(level / "zarr.json") or _read_json(level / ".zarray")
    if "shape" not in array:
        raise ValueError(f"no Zarr array at {level.name}, the image's full resolution")
    fingerprint = json.dumps([multiscale.get("axes"), multiscale["datasets"], labels, array["shape"]], sort_keys=True)
    if fingerprint not in known:
        image = open_site(str(path))
        n_channels = n_of(image, "c")
        if labels and len(labels) != n_channels:
            raise ValueError(f"{len(labels)} channel labels for {n_channels} channels")
        known[fingerprint] = _ImageFacts(
            channels=_channel_names(labels, n_channels),
            n_timepoints=n_of(image, "t"),
            n_planes=n_of(image, "z"),
            pixel_size_um=_pixel_size_um(image, multiscale),
        )
    return known[fingerprint]


def _channel_names(labels: list[str], n_channels: int) -> tuple[str, ...]:
    """Channel labels, with c0, c1, ... where there are none; the second of two equal ones gets its number added."""
    names: list[str] = []
    for i in range(n_channels):
        label = (labels[i].strip() if labels else "") or f"c{i}"
        names.append(f"{label} c{i}" if label in names else label)
    return tuple(names)


def _pixel_size_um(image: Any, multiscale: dict[str, Any]) -> float | None:
    """Micrometres for one pixel; None where the axes carry no unit, since a scale of 1 then means nothing."""
    units = [axis.get("unit") for axis in multiscale.get("axes", []) if axis.get("name") == "x"]
    if not units or units[0] not in _MICROMETRES:
        return None
    return float(image.pixel_size.x) * _MICROMETRES[units[0]]


def _ome_metadata(path: Path) -> dict[str, Any]:
    """OME metadata of a group: `plate`, `well` or `multiscales` and `omero`; empty where there are none."""
    group = _read_json(path / "zarr.json")
    if group:
        attributes = group.get("attributes")
        ome = attributes.get("ome") if isinstance(attributes, dict) else None
        return ome if isinstance(ome, dict) else {}
    return _read_json(path / ".zattrs")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with open(os.fspath(path), encoding="utf-8") as file:  # noqa: PTH123 - called for each of many files
            content = json.load(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
