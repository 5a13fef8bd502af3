"""Building a pack: every site is read once, crops are shuffled through scratch files, shards are written in parallel.

Two rounds of Ray tasks. The first reads sites and writes their crops, unshuffled, to one scratch file for each task and
number of channels. The second writes whole shards: each gathers its crops from the scratch files by memory map. A task
holds one site or one shard, whatever the size of the pack; the disk holds the pixels twice until the end.

The folder is built beside the packs under a hidden name and renamed when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.packs.pack import (
    FORMAT,
    INDEX_FILE,
    INDEX_SCHEMA,
    PACK_FILE,
    PIPELINE,
    Pack,
    PackError,
    array_path,
    open_array,
)
from cytolake.packs.sampler import sample_order
from cytolake.screens.pixels import read_site, site_image
from cytolake.screens.plate import ScreenError

Progress = Callable[[str, int, int], None]
"""Called with what is worked on, how much is done, how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """How a pack is shuffled and laid out."""

    shuffle_seed: int = 0
    """Another seed gives another pack with the same crops."""
    shard_mb: int = 64
    """Uncompressed size of a shard, MB: what a task that writes one holds in memory. A shard is one file."""
    compression_level: int = 1
    """Zstandard, 1 to 22. Camera noise hardly compresses: level 5 takes 3 times as long as 1 and saves nothing."""
    sites_per_task: int = 16

    def __post_init__(self) -> None:
        for name, least in (("shuffle_seed", 0), ("shard_mb", 1), ("compression_level", 1), ("sites_per_task", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"PackConfig.{name} is {getattr(self, name)}; expected {least} or more.")
        if self.compression_level > 22:
            raise ValueError(f"PackConfig.compression_level is {self.compression_level}; expected 1 to 22.")


def build_pack(catalog: Catalog, curation_id: str, config: PackConfig, progress: Progress | None = None) -> Pack:
    """Copy the pixels that a curation kept into a pack, `<root>/packs/<pack_id>`.

    A pack that is there already is opened instead: its id is the hash of the curation and the shuffle. Runs as Ray
    tasks; on a cluster the catalog's root must be a folder that all nodes see.

    Args:
        catalog: Holds the curation. Crops and sites are read at the versions that the curation pinned.
        curation_id: As in the table curations.
        config: Shuffle and layout.
        progress: Called as sites are read and shards are written.

    Raises:
        PackError: No such curation, crops of several sizes, or a source that is gone or changed since the ingest.
    """
    pack_id = content_id("pack", FORMAT, curation_id, config.shuffle_seed)
    path = catalog.root / "packs" / pack_id
    if path.is_dir():
        return Pack.open(path)
    kept = _kept_crops(catalog, curation_id)
    plan = _plan(kept, config)
    _remove_leftovers(path.parent, pack_id)
    building = path.parent / f".building-{pack_id}-{socket.gethostname()}-{os.getpid()}"
    scratch = building / "scratch"
    scratch.mkdir(parents=True)
    try:
        _write_pixels(plan, building, config, progress or _silent)
        shutil.rmtree(scratch)
        pq.write_table(plan.index, building / INDEX_FILE, compression="zstd")
        described = {
            "format": FORMAT,
            "pack_id": pack_id,
            "curation_id": curation_id,
            "curation": kept.curation,
            "table_versions": kept.table_versions,
            "shuffle_seed": config.shuffle_seed,
            "crop_size": plan.crop_size,
            "n_crops": plan.index.num_rows,
            "groups": [
                {
                    "n_channels": group.n_channels,
                    "n_crops": group.n_crops,
                    "dtype": group.dtype,
                    "array": array_path(Path(), group.n_channels).name,
                }
                for group in plan.groups.values()
            ],
            "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        (building / PACK_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        try:
            building.rename(path)
        except OSError:
            if not path.is_dir():
                raise  # else another process built the same pack meanwhile
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Pack.open(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    """What a curation kept, at the versions it pinned."""

    curation: str
    table_versions: dict[str, int]
    crops: pa.Table
    """crop_id, well_id, plate_id, y, x, size, and `site`: number in `sites`. In the order of their ids."""
    sites: list[dict[str, Any]]
    """Rows of the table sites, each with at least one crop, neighbours on the disk beside each other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Crops with the same number of channels: one array."""

    n_channels: int
    n_crops: int
    dtype: str
    rows_per_shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Site:
    """One site with the windows to cut from it."""

    row: dict[str, Any]
    """A row of the table sites."""
    windows: NDArray[np.int64]
    """(N, 2): y and x of each of its crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What each task does."""

    crop_size: int
    index: pa.Table
    groups: dict[int, _Group]
    reads: list[list[_Site]]
    """The sites of each read task. Its scratch file of a group holds that group's crops in the order of its sites."""
    sources: dict[int, NDArray[np.int64]]
    """For each group (N, 2): the read task, and the position in its scratch file, of each row of the group's array."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def _kept_crops(catalog: Catalog, curation_id: str) -> _Kept:
    kept = catalog.table("curations", where=f"curation_id = '{curation_id}' AND is_kept")
    if kept.num_rows == 0:
        known = catalog.sql("SELECT DISTINCT curation, curation_id FROM curations ORDER BY ALL LIMIT 20").to_pylist()
        listed = ", ".join(f"{row['curation_id']} ({row['curation']})" for row in known) or "none"
        raise PackError(
            f"curation {curation_id}: keeps no crop in {catalog.root}. There are: {listed}. Run jobs/curate.py."
        )
    versions: dict[str, int] = json.loads(kept.column("table_versions")[0].as_py())
    pinned = catalog.at(versions)
    crops = pinned.sql(
        "SELECT crop_id, well_id, plate_id, site_id, y, x, size FROM crops SEMI JOIN kept USING (crop_id) "
        "ORDER BY crop_id",
        kept=kept.select(["crop_id"]),
    )
    sites = pinned.sql(
        "SELECT * FROM sites WHERE site_id IN (SELECT site_id FROM kept) "
        "ORDER BY screen, plate, well, site, timepoint, z, site_id",
        kept=crops,
    )
    site_numbers = pc.index_in(crops.column("site_id"), sites.column("site_id").combine_chunks())
    if crops.num_rows != kept.num_rows or site_numbers.null_count:
        n_there = crops.num_rows - site_numbers.null_count
        raise PackError(
            f"curation {curation_id}: {kept.num_rows} crops kept, {n_there} of them in the tables crops and sites at "
            "the versions it pinned. The tables were changed by hand or vacuumed: curate again: jobs/curate.py."
        )
    return _Kept(
        curation=kept.column("curation")[0].as_py(),
        table_versions=versions,
        crops=crops.drop_columns(["site_id"]).append_column("site", site_numbers),
        sites=sites.to_pylist(),
    )


def _plan(kept: _Kept, config: PackConfig) -> _Plan:
    sizes = np.unique(kept.crops.column("size").to_numpy()).tolist()
    if len(sizes) > 1:
        raise PackError(
            f"crops of {', '.join(map(str, sizes))} px; expected one size in a pack. Keep one with `where: size = "
            f"{sizes[0]}` in catalog/curation/."
        )
    shuffled = kept.crops.take(sample_order(kept.crops.num_rows, config.shuffle_seed, 0))
    site, y, x = (shuffled.column(name).to_numpy() for name in ("site", "y", "x"))
    channels = pa.array([row["channels"] for row in kept.sites], pa.list_(pa.string()))
    group = np.array([len(row["channels"]) for row in kept.sites])[site]
    dtypes = np.array([row["dtype"] for row in kept.sites])
    task = site // config.sites_per_task
    by_site = np.argsort(site, kind="stable")

    row = np.empty(len(site), np.int64)
    groups, sources = {}, {}
    for number in np.unique(group).tolist():
        members = group == number
        n_crops = int(members.sum())
        row[members] = np.arange(n_crops)
        common = _common_dtype(set(dtypes[site[members]].tolist()))
        row_bytes = number * sizes[0] ** 2 * common.itemsize
        groups[number] = _Group(
            n_channels=number,
            n_crops=n_crops,
            dtype=common.name,
            rows_per_shard=min(max(1, config.shard_mb * 1_000_000 // row_bytes), n_crops),
        )
        as_read = by_site[members[by_site]]  # in the order in which the read tasks come to these crops
        first_of_task = np.searchsorted(task[as_read], task[as_read])
        sources[number] = np.empty((n_crops, 2), np.int64)
        sources[number][row[as_read], 0] = task[as_read]
        sources[number][row[as_read], 1] = np.arange(n_crops) - first_of_task

    windows = np.stack([y[by_site], x[by_site]], axis=1)
    of_site = np.split(windows, np.searchsorted(site[by_site], np.arange(1, len(kept.sites))))
    to_read = [_Site(row=described, windows=each) for described, each in zip(kept.sites, of_site, strict=True)]
    index = pa.table(
        {
            **{name: shuffled.column(name) for name in ("crop_id", "well_id", "plate_id")},
            "group": group,
            "row": row,
            "channels": channels.take(pa.array(site)),
        }
    ).cast(INDEX_SCHEMA)
    return _Plan(
        crop_size=sizes[0],
        index=index,
        groups=groups,
        reads=[to_read[i : i + config.sites_per_task] for i in range(0, len(to_read), config.sites_per_task)],
        sources=sources,
    )


def _common_dtype(names: set[str]) -> np.dtype[Any]:
    """The smallest type that holds every value of all these types."""
    dtypes = [np.dtype(name) for name in sorted(names)]
    common = np.result_type(*dtypes)
    if common.kind == "f" and any(each.kind in "iu" and each.itemsize > 4 for each in dtypes):
        raise PackError(
            f"crops of the types {', '.join(sorted(names))} with as many channels: no type holds 64-bit counts and "
            "fractions without loss. Exclude one of the screens in catalog/curation/."
        )
    return common


def _write_pixels(plan: _Plan, building: Path, config: PackConfig, progress: Progress) -> None:
    import ray

    scratch = building / "scratch"
    dtypes = {group: described.dtype for group, described in plan.groups.items()}
    read = ray.remote(num_cpus=1)(_read_sites)
    tasks: Iterator[tuple[Any, ...]] = (
        (sites, plan.crop_size, dtypes, str(scratch), number) for number, sites in enumerate(plan.reads)
    )
    for problem in _run(read, tasks, len(plan.reads), "site groups read", progress):
        if problem:
            raise PackError(
                f"{problem}\nThe source is not what it was when the plate was ingested. Put it back, or "
                "move the catalog aside and ingest again."
            )
    with zarr.config.set({"codec_pipeline.path": PIPELINE}):
        for group in plan.groups.values():
            shape = (group.n_channels, plan.crop_size, plan.crop_size)
            zarr.create_array(
                str(array_path(building, group.n_channels)),
                shape=(group.n_crops, *shape),
                dtype=group.dtype,
                chunks=(1, *shape),  # random rows: 13,000 rows/s at 1, 4,700 at 4, 3,200 at 8 (see pack.read_rows)
                shards=(group.rows_per_shard, *shape),
                compressors=[ZstdCodec(level=config.compression_level)],
                fill_value=0,
                dimension_names=("crop", "channel", "y", "x"),
            )
    shards = [
        (number, start, min(start + group.rows_per_shard, group.n_crops))
        for number, group in plan.groups.items()
        for start in range(0, group.n_crops, group.rows_per_shard)
    ]
    write = ray.remote(num_cpus=1)(_write_shard)
    tasks = ((str(building), group, start, plan.sources[group][start:stop]) for group, start, stop in shards)
    for _ in _run(write, tasks, len(shards), "shards written", progress):
        pass


def _run(task: Any, arguments: Iterator[tuple[Any, ...]], total: int, what: str, progress: Progress) -> Iterator[Any]:
    """Run one task for each tuple of arguments, few at a time, and yield results as they come."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    most = 2 * max(1, int(resources.get("CPU", 1)))
    running: list[Any] = []
    done = 0
    try:
        while True:
            while len(running) < most and (next_one := next(arguments, None)) is not None:
                running.append(task.remote(*next_one))
            if not running:
                return
            finished, running = ray.wait(running, num_returns=1)
            result = ray.get(finished[0])
            done += 1
            progress(what, done, total)
            yield result
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _read_sites(sites: list[_Site], size: int, dtypes: dict[int, str], scratch: str, number: int) -> str:
    """Cut crops from their sites into scratch files; returns what is wrong with a source, or nothing."""
    counts: dict[int, int] = defaultdict(int)
    for site in sites:
        counts[len(site.row["channels"])] += len(site.windows)
    files = {
        group: np.lib.format.open_memmap(
            str(_scratch_file(scratch, number, group)), mode="w+", dtype=dtypes[group], shape=(count, group, size, size)
        )
        for group, count in counts.items()
    }
    written: dict[int, int] = defaultdict(int)
    for site in sites:
        (top, left), (bottom, right) = site.windows.min(axis=0).tolist(), (site.windows.max(axis=0) + size).tolist()
        try:
            pixels = read_site(site_image(site.row), (top, left, bottom - top, right - left))
        except ScreenError as error:
            return str(error)
        group = len(site.row["channels"])
        found, expected = (str(pixels.dtype), pixels.shape[0]), (site.row["dtype"], group)
        if found != expected:
            return (
                f"screen {site.row['screen']}, plate {site.row['plate']}, well {site.row['well']}, site "
                f"{site.row['site']}: found {found[1]} channels of {found[0]}, expected {expected[1]} of {expected[0]}."
            )
        for y, x in site.windows.tolist():
            files[group][written[group]] = pixels[:, y - top : y - top + size, x - left : x - left + size]
            written[group] += 1
    for file in files.values():
        file.flush()
    return ""


def _write_shard(building: str, group: int, start: int, sources: NDArray[np.int64]) -> None:
    """Write rows `start` onwards of a group's array, one whole shard: (read task, position) for each row."""
    array = open_array(Path(building), group, mode="r+")
    rows = np.empty((len(sources), *array.shape[1:]), array.dtype)
    for number in np.unique(sources[:, 0]).tolist():
        file = np.load(_scratch_file(Path(building) / "scratch", number, group), mmap_mode="r")
        into = np.flatnonzero(sources[:, 0] == number)
        rows[into] = file[sources[into, 1]]
    array[start : start + len(rows)] = rows


def _scratch_file(scratch: str | Path, number: int, group: int) -> Path:
    return Path(scratch) / f"{number}_c{group}.npy"


def _remove_leftovers(folder: Path, pack_id: str) -> None:
    """Remove what a killed build of this pack on this machine left behind."""
    start = f".building-{pack_id}-{socket.gethostname()}-"
    for left in folder.glob(f"{start}*"):
        process = left.name.removeprefix(start)
        if process.isdecimal() and (int(process) == os.getpid() or not Path(f"/proc/{process}").exists()):
            shutil.rmtree(left, ignore_errors=True)
