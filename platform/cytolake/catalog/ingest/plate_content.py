"""Hashes the files and labels of a plate, to recognise it when it is ingested again."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cytolake.catalog.ids import content_id
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.plate_annotation import default_batch
from cytolake.storage.files import StoredFile, is_uri, list_beginning_with

NOT_PIXELS = frozenset({"labels", "tables"})
"""Folders of an OME-Zarr image that other programs add to later."""
NEW_PROBLEMS = frozenset({"derived_copy", "not_a_focal_plane", "repeated_acquisition", "duplicate_plate"})
"""Problems of whole screens that earlier versions did not report, or not in these words."""


class PlateContent(NamedTuple):
    """Hashes of a plate's source. None depends on other files next to the plate."""

    content_hash: str
    """Of names and sizes of files, plate map and problems; see `content_hash`."""
    pixels_hash: str
    """Of names and sizes of image files, channels and pixel size: not of the names of screen and plate, nor of what the
    plate map says."""
    files_hash: str
    """Of names, sizes and modification times: equal where no file was written since."""


def content_hash(plate: Plate) -> str:
    """Hash of names and sizes of the plate's files, its plate map and the problems its reader found.

    Names are relative to the plate, so that a copy elsewhere has the same hash. Objects of a bucket have their etag
    hashed too; of local files, pixels changed within the same size show in `files_hash` alone. Focal planes and
    illumination functions count as files of their site.

    Raises:
        OSError: A bucket that cannot be listed. A single file that cannot be reached is part of the hash.
    """
    return plate_content(plate).content_hash


def plate_content(plate: Plate) -> PlateContent:
    """All hashes of a plate, each file looked at once.

    Raises:
        OSError: As for `content_hash`.
    """
    facts: dict[str, list[tuple[str, str, str]]] = {}
    objects = _objects(plate)

    def files(path: str, times: list[str]) -> list[str]:
        if path not in facts:
            facts[path] = list(_files(path, objects))
            times.append(_below(path, plate.source))
            times += [text for fact in facts[path] for text in fact]
        return [_below(path, plate.source), *(text for name, size, _ in facts[path] for text in (name, size))]

    times: list[str] = []
    sites: list[str] = []
    for site in sorted(plate.sites, key=lambda site: (site.well, site.site, site.timepoint, site.z)):
        sites += ["site", site.well, site.site, str(site.timepoint), site.z, *site.channels]
        for path in site.image_paths:
            sites += files(path, times)
        # only where there are any: plates ingested before these were known keep their hash
        if site.planes:
            sites += ["planes", *map(str, site.planes)]
        if any(site.illumination_paths):
            sites.append("illumination")
            for path in site.illumination_paths:
                sites += files(path, times) if path else [""]
    whole = [plate.screen, plate.plate, _hashed_batch(plate), str(plate.pixel_size_um), *plate.channels, *sites]
    for well in sorted(plate.wells, key=lambda row: sorted(row.items())):
        whole += ["well", *(text for pair in sorted(well.items()) for text in pair)]
    for problem in sorted(plate.problems, key=str):
        whole += ["problem", problem.problem, problem.well, problem.site, problem.channel, problem.found]
    return PlateContent(
        content_id("plate content", *whole),
        content_id("plate pixels", str(plate.pixel_size_um), *plate.channels, *sites),
        content_id("plate files", *times),
    )


def _hashed_batch(plate: Plate) -> str:
    """The batch as it was hashed before a default one named the screen, and before other columns than `batch` could."""
    if named := Counter(row["batch"] for row in plate.wells if row.get("batch")):
        return named.most_common(1)[0][0]
    is_default = plate.batch.startswith(default_batch(plate.screen, ""))
    return plate.batch.removeprefix(default_batch(plate.screen, "")) if is_default else plate.plate


def has_content(plate: Plate, known: str, of_screens: Sequence[Problem]) -> bool:
    """Whether a plate is the one whose hash the catalog has.

    Earlier versions hashed what was wrong with the whole screen as a part of its first plate.

    Args:
        plate: As it is listed now.
        known: Hash in the catalog.
        of_screens: Problems of no plate, of any screen.
    """
    if content_hash(plate) == known:
        return True
    of_screen = [each for each in of_screens if each.screen == plate.screen and each.problem not in NEW_PROBLEMS]
    return bool(of_screen) and content_hash(replace(plate, problems=(*plate.problems, *of_screen))) == known


def content_number(plate_content: str, crop_size: int) -> int:
    """The plate's files and the crop size as a number of 1 to 2**63 - 1, the version of a Delta transaction."""
    return int(content_id("ingest", plate_content, crop_size)[:16], 16) % (2**63 - 1) + 1


def _objects(plate: Plate) -> dict[str, dict[str, StoredFile]]:
    """For each image of a plate in a bucket its objects, by their name below it.

    One paged listing of all that begins as all images do, rather than a request for each; another for the functions.
    """
    images = {path for site in plate.sites for path in site.image_paths if is_uri(path)}
    functions = {path for site in plate.sites for path in site.illumination_paths if path and is_uri(path)}
    found: dict[str, dict[str, StoredFile]] = {}
    for paths in (images, functions - images):
        if not paths:
            continue
        found |= {path: {} for path in paths}
        for name, file in list_beginning_with(_common_beginning(paths)).items():
            path = name
            while path not in paths and "/" in path[len("s3://") :]:
                path = path.rpartition("/")[0]
            if path in paths:
                found[path][name[len(path) :]] = file
    return found


def _common_beginning(paths: set[str]) -> str:
    """What all URIs begin with: at least the bucket, where they share one."""
    first, last = min(paths), max(paths)
    n_alike = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    if n_alike <= first.find("/", len("s3://")):
        raise ValueError(f"{first} and {last}: found two buckets, expected a plate in one. Split the plate.")
    return first[:n_alike]


def _files(path: str, objects: Mapping[str, Mapping[str, StoredFile]]) -> Iterator[tuple[str, str, str]]:
    """Name below `path`, size (and etag) and time of every file of an image, in order; -1 bytes where unreachable."""
    if path in objects:
        for name, file in sorted(objects[path].items()) or (("", StoredFile(-1)),):
            if not NOT_PIXELS.intersection(name.split("/")[:-1]):
                yield name, f"{file.size} {file.etag}", ""
        return
    if not Path(path).is_dir():
        yield "", *_size_and_time(path)
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in NOT_PIXELS)
        for name in sorted(names):
            file_path = os.path.join(folder, name)  # noqa: PTH118 - called for every chunk of a plate
            yield file_path[len(path) :], *_size_and_time(file_path)


def _size_and_time(path: str) -> tuple[str, str]:
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError:
        return "-1", ""
    return str(found.st_size), str(found.st_mtime_ns)


def _below(path: str, source: str) -> str:
    """The path relative to the plate's source or the folder around it, with forward slashes."""
    if path.startswith(source + "/"):
        return path[len(source) + 1 :]
    return os.path.relpath(path, source).replace(os.sep, "/")
