"""Tasks that write the pixels of a pack: read sites into scratch files, then gather shards from them.

A read task holds one site, a write task one shard, whatever the size of the pack.
"""

from __future__ import annotations

import errno
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.ray_tasks import iterate_tasks
from cytolake.packs.checksums import Progress
from cytolake.packs.eight_bit import Scale, choose_scale, to_uint8
from cytolake.packs.pack_plan import Group, PackConfig, PackPlan, PlannedSite
from cytolake.packs.shards import PackError, WrittenFile, create_array, crop_shape, write_shard
from cytolake.screens.images.pixels import read_site, site_image
from cytolake.screens.plate import ScreenError

Scales = dict[tuple[str, str], Scale]
"""8-bit scale of each plate id and stain; empty for a pack of native pixels."""
Samples = dict[tuple[str, str], NDArray[Any]]
"""Sampled counts of each plate id and stain."""


def write_pixels(
    plan: PackPlan, building: Path, config: PackConfig, progress: Progress
) -> tuple[Scales, list[WrittenFile]]:
    """Read the sites into scratch files, then write the arrays.

    Returns:
        The 8-bit scales, and the shards with their checksums.

    Raises:
        PackError: A source changed since its ingest, or the disk is full.
    """
    scratch = building / "scratch"
    dtypes = {group: described.dtype for group, described in plan.groups.items()}
    sampled = plan.pixels_sampled if config.pixels == "uint8" else {}
    samples: dict[tuple[str, str], list[NDArray[Any]]] = defaultdict(list)
    reads = ((sites, plan.crop_size, dtypes, str(scratch), number, sampled) for number, sites in enumerate(plan.reads))
    for _, (problem, found) in iterate_tasks(_read_sites, reads, len(plan.reads), "site groups read", progress):
        if problem:
            raise PackError(problem)
        for key, pixels in found.items():
            samples[key].append(pixels)
    scales = {key: choose_scale(np.concatenate(pixels)) for key, pixels in samples.items()}

    shards = []
    for number, group in plan.groups.items():
        create_array(
            building,
            (group.n_crops, number, plan.crop_size, plan.crop_size),
            stored_dtype(group, config),
            group.rows_per_shard,
            config.compression,
            config.compression_level,
        )
        steps = range(0, group.n_crops, group.rows_per_shard)
        shards += [(number, shard, first, first + group.rows_per_shard) for shard, first in enumerate(steps)]
    writes = (
        (
            str(building),
            group,
            shard,
            plan.groups[group].dtype,
            plan.sources[group][first:end],
            _scales_of(plan, group, slice(first, end), scales),
        )
        for group, shard, first, end in shards
    )
    written = []
    for _, (problem, file) in iterate_tasks(_write_shard, writes, len(shards), "shards written", progress):
        if file is None:
            raise PackError(problem)
        written.append(file)
    return scales, written


def stored_dtype(group: Group, config: PackConfig) -> str:
    return group.dtype if config.pixels == "native" else "uint8"


def _scales_of(plan: PackPlan, group: int, rows: slice, scales: Scales) -> NDArray[np.float64] | None:
    """(2, N, C): offset and step of each channel of a group's rows; None for a pack of native pixels."""
    if not scales:
        return None
    crops = plan.index.take(plan.index_rows[group][rows])
    pairs = zip(crops.column("plate_id").to_pylist(), crops.column("channels").to_pylist(), strict=True)
    found = [[scales[plate_id, channel] for channel in channels] for plate_id, channels in pairs]
    return np.array(
        [[[each.offset for each in crop] for crop in found], [[each.step for each in crop] for crop in found]]
    )


def _read_sites(
    sites: list[PlannedSite], size: int, dtypes: dict[int, str], scratch: str, number: int, sampled: dict[str, int]
) -> tuple[str, Samples]:
    """Cut crops from their sites into scratch files.

    Args:
        sites: Sites to read, in the order in which their crops are written.
        size: Edge of a crop, pixels.
        dtypes: Pixel type of each group's scratch file.
        scratch: Folder of the scratch files.
        number: Number of this task.
        sampled: Plate id to the number of pixels of each site and channel to return; other plates return none.

    Returns:
        The problem of a source or the disk, empty if there is none; and the sampled pixels.
    """
    samples: dict[tuple[str, str], list[NDArray[Any]]] = defaultdict(list)
    started: set[int] = set()
    for site in sites:
        row, group = site.row, len(site.row["channels"])
        where = f"screen {row['screen']}, plate {row['plate']}, well {row['well']}, site {row['site']}"
        (top, left), (bottom, right) = site.windows.min(axis=0).tolist(), (site.windows.max(axis=0) + size).tolist()
        try:
            pixels = read_site(site_image(row), (top, left, bottom - top, right - left))
        except ScreenError as error:
            return f"{error}\n{_SOURCE_CHANGED}", {}
        found, expected = (str(pixels.dtype), pixels.shape[0]), (row["dtype"], group)
        if found != expected:
            return (
                f"{where}: found {found[1]} channels of {found[0]}, expected {expected[1]} of {expected[0]}.\n"
                f"{_SOURCE_CHANGED}"
            ), {}
        crops = np.empty((len(site.windows), group, size, size), dtypes[group])
        for crop, (y, x) in zip(crops, site.windows.tolist(), strict=True):
            crop[...] = pixels[:, y - top : y - top + size, x - left : x - left + size]
        n_sampled = sampled.get(row["plate_id"], 0)
        if n_sampled and not np.isfinite(crops).all():
            return (
                f"{where}: counts that are not finite (NaN or infinite), which 8 bits cannot hold. Exclude the site in "
                "catalog/curation/, repair its files, or set pack.pixels=native."
            ), {}
        for i, channel in enumerate(row["channels"] if n_sampled else []):
            values = crops[:, i].reshape(-1)
            evenly = np.linspace(0, len(values) - 1, min(n_sampled, len(values))).astype(np.int64)
            samples[row["plate_id"], channel].append(values[evenly])
        try:
            # Ray repeats a task whose process died: the first write truncates. On a full disk a memory map would crash.
            with _scratch_file(scratch, number, group).open("ab" if group in started else "wb") as file:
                file.write(crops.data)
            started.add(group)
        except OSError as error:
            return not_written(Path(scratch), error), {}
    return "", {key: np.concatenate(values) for key, values in samples.items()}


_SOURCE_CHANGED = (
    "The source changed after the plate was ingested. Restore it, or move the catalog aside and ingest again."
)


def _write_shard(
    building: str,
    group: int,
    shard: int,
    dtype: str,
    sources: NDArray[np.int64],
    scales: NDArray[np.float64] | None,
) -> tuple[str, WrittenFile | None]:
    """Write one whole shard of a group's array.

    Args:
        building: Folder of the pack.
        group: Number of channels.
        sources: (N, 2), read task and position in its scratch file, for each row.
        scales: As `_scales_of` returns them.

    Returns:
        The problem of the disk, empty if there is none; and the written file.
    """
    crop = crop_shape(Path(building), group)
    rows = np.empty((len(sources), *crop), dtype)
    try:
        for number in np.unique(sources[:, 0]).tolist():
            file = _scratch_file(Path(building) / "scratch", number, group)
            into = np.flatnonzero(sources[:, 0] == number)
            rows[into] = np.memmap(file, dtype, "r").reshape(-1, *crop)[sources[into, 1]]
        if scales is not None:
            rows = to_uint8(rows, *scales)
        return "", write_shard(Path(building), group, shard, rows)
    except OSError as error:
        return not_written(Path(building), error), None


def not_written(folder: Path, error: OSError) -> str:
    """The message that a pack could not be written."""
    text = f"{folder}: the pack could not be written ({error.strerror or error}). Nothing of it is kept. "
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text + "Correct the folder, then run again."
    free = shutil.disk_usage(folder).free / 1e9 if folder.is_dir() else 0.0
    return (
        f"{text}{free:.2f} GB are free; while it is built, a pack takes its size twice. Free space, or keep fewer "
        "crops in catalog/curation/, then run again."
    )


def _scratch_file(scratch: str | Path, number: int, group: int) -> Path:
    return Path(scratch) / f"{number}_c{group}.raw"
