"""What a plate consists of on disk, as one hash: whether a plate that is in the catalog is still the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cytolake.catalog.ids import content_id
from cytolake.screens.plate import Plate

NOT_PIXELS = frozenset({"labels", "tables"})
"""Folders of an OME-Zarr image that other programs add to later."""


def content_hash(plate: Plate) -> str:
    """Hash of names and sizes of the plate's files, its plate map and the problems its reader found.

    Names are relative to the plate, so that a copy elsewhere has the same hash. A changed file of the same name and
    size goes unseen: reading every pixel again would cost as much as the ingest.
    """
    sizes: dict[str, list[str]] = {}
    parts: list[str] = [plate.screen, plate.plate, plate.batch, str(plate.pixel_size_um), *plate.channels]
    for site in sorted(plate.sites, key=lambda site: (site.well, site.site, site.timepoint, site.z)):
        parts += ["site", site.well, site.site, str(site.timepoint), site.z, *site.channels]
        for path in site.image_paths:
            if path not in sizes:
                sizes[path] = [text for name, size in _files(path) for text in (name, str(size))]
            parts += [_below(path, plate.source), *sizes[path]]
    for well in sorted(plate.wells, key=lambda row: sorted(row.items())):
        parts += ["well", *(text for pair in sorted(well.items()) for text in pair)]
    for problem in sorted(plate.problems, key=str):
        parts += ["problem", problem.problem, problem.well, problem.site, problem.channel, problem.found]
    return content_id("plate content", *parts)


def content_number(plate_content: str, crop_size: int) -> int:
    """The plate's files and the crop size as a number of 1 to 2**63 - 1, the version of a Delta transaction."""
    return int(content_id("ingest", plate_content, crop_size)[:16], 16) % (2**63 - 1) + 1


def _files(path: str) -> Iterator[tuple[str, int]]:
    """Name below `path` and bytes of every file of an image, in order; -1 bytes where it cannot be reached."""
    if not Path(path).is_dir():
        yield "", _bytes(path)
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in NOT_PIXELS)
        for name in sorted(names):
            file = os.path.join(folder, name)  # noqa: PTH118 - called for every chunk of a plate
            yield file[len(path) :], _bytes(file)


def _bytes(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return -1


def _below(path: str, source: str) -> str:
    """The path relative to the plate's source or the folder around it, with forward slashes."""
    try:
        return Path(path).relative_to(source).as_posix()
    except ValueError:
        return os.path.relpath(path, source).replace(os.sep, "/") if "://" not in path else path
