"""Building a pack: every site is read once, crops are shuffled through scratch files, shards are written in parallel.

Two rounds of Ray tasks. The first reads sites and writes their crops, unshuffled, to one scratch file for each task and
number of channels. The second writes whole shards: each gathers its crops from the scratch files by memory map. A task
holds one site or one shard, whatever the size of the pack; the disk holds the pixels twice until the end.

The folder is built beside the packs under a hidden name and renamed when it is whole.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.packs.built_of import (
    CONTENT,
    content_of_crops,
    find_pack,
    find_pack_of_pixels,
    pixels_of_crops,
    source_dtypes,
)
from cytolake.packs.checksums import Progress, write_checksums
from cytolake.packs.eight_bit import SAMPLE_PIXELS, Scale, choose_scale, to_uint8
from cytolake.packs.pack import FORMAT, INDEX_FILE, INDEX_SCHEMA, PACK_FILE, Pack, PixelKind
from cytolake.packs.sampler import sample_order
from cytolake.packs.shards import Compression, PackError, WrittenFile, array_path, create_array, crop_shape, write_shard
from cytolake.screens.images.pixels import read_site, site_image
from cytolake.screens.plate import ScreenError
from cytolake.storage.atomic_write import atomic_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """How a pack is shuffled and laid out."""

    shuffle_seed: int = 0
    """Another seed gives another pack with the same crops."""
    pixels: PixelKind = "native"
    """`native` keeps counts as the source has them. `uint8` scales them to 8 bits by each plate and stain's range, half
    the size of 16-bit counts, see `packs/eight_bit.py` for what is lost."""
    compression: Compression = "none"
    """`none` is read at 9 GB/s by two cores; only `Pack.verify` sees a flipped bit in it. `lz4` (bit-shuffled) makes
    16-bit counts 1.3 to 2.0 times smaller and is read at 1.3 GB/s; `zstd` makes them 1.2 to 1.5 times smaller, 8-bit
    ones 2.1 times, and is read at 0.9 GB/s: both check each crop as it is read. Camera noise hardly compresses, by any
    of them."""
    compression_level: int = 1
    """1 to 9 for lz4, 1 to 22 for zstd. A higher level takes several times as long and saves next to nothing."""
    shard_mb: int = 64
    """Uncompressed size of a shard, MB: what a task that writes one holds in memory. A shard is one file."""
    sites_per_task: int = 16
    exclude_plates: tuple[str, ...] = ()
    """Plates whose crops are left out, as `plate` or `screen/plate`: of a pack to train on, where plates are held out
    of pretraining too."""

    def __post_init__(self) -> None:
        for name, least in (("shuffle_seed", 0), ("shard_mb", 1), ("compression_level", 1), ("sites_per_task", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"PackConfig.{name} is {getattr(self, name)}; expected {least} or more.")
        for name, known in (("pixels", get_args(PixelKind)), ("compression", get_args(Compression))):
            if getattr(self, name) not in known:
                raise ValueError(f"PackConfig.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}.")
        highest = 9 if self.compression == "lz4" else 22
        if self.compression_level > highest:
            raise ValueError(f"PackConfig.compression_level is {self.compression_level}; expected 1 to {highest}.")


def build_pack(catalog: Catalog, curation_id: str, config: PackConfig, progress: Progress | None = None) -> Pack:
    """Copy the pixels that a curation kept into a pack, `<root>/packs/<pack_id>`.

    A pack of this curation, shuffle and kind of pixels that is there already is opened instead, however it is laid out;
    so is one of another curation with the same crops, such as that of before labels were corrected: it keeps its
    curation's name, and encoders and embeddings of it stay valid.
    Its id is the hash of these, of the crops, and of what the catalog knows of their pixels (`content.OF_PIXELS`); one
    that an earlier version wrote keeps the id it has. Runs as Ray tasks; on a cluster the catalog's root must be a
    folder that all nodes see.

    Args:
        catalog: Holds the curation. Crops and sites are read at the versions that the curation pinned.
        curation_id: As in the table curations.
        config: Shuffle and layout.
        progress: Called as sites are read and shards are written.

    Raises:
        PackError: No such curation, crops of several sizes, a source that is gone or changed since the ingest, or a
            disk that is full.
    """
    found = _look_up(catalog, curation_id, config)
    if isinstance(found, Pack):
        return found
    kept, pixels_content, pack_id = found
    path = catalog.root / "packs" / pack_id
    plan = _plan(kept, config)
    _remove_leftovers(path.parent, pack_id)
    _check_room(path.parent, plan, config)
    building = path.parent / f".building-{pack_id}-{socket.gethostname()}-{os.getpid()}"
    try:
        with atomic_folder(path, building):
            scratch = building / "scratch"
            scratch.mkdir()
            scales, written = _write_pixels(plan, building, config, progress or _silent)
            shutil.rmtree(scratch)
            pq.write_table(plan.index, building / INDEX_FILE, compression="zstd")
            described = {
                "format": FORMAT,
                "pack_id": pack_id,
                "curation_id": curation_id,
                "curation": kept.curation,
                "table_versions": kept.table_versions,
                "pixels_content": pixels_content,
                "shuffle_seed": config.shuffle_seed,
                "pixels": config.pixels,
                "exclude_plates": sorted(config.exclude_plates),
                "source_dtypes": source_dtypes(kept.sites),
                "scales": [
                    {"plate_id": plate_id, "channel": channel, "offset": scale.offset, "step": scale.step}
                    for (plate_id, channel), scale in sorted(scales.items())
                ],
                "crop_size": plan.crop_size,
                "n_crops": plan.index.num_rows,
                "groups": [
                    {
                        "n_channels": group.n_channels,
                        "n_crops": group.n_crops,
                        "dtype": _stored_dtype(group, config),
                        "array": array_path(Path(), group.n_channels).name,
                    }
                    for group in plan.groups.values()
                ],
                "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            (building / PACK_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            write_checksums(building, written)
    except OSError as error:
        raise PackError(_not_written(path.parent, error)) from error
    return Pack.open(path)


def find_built_pack(catalog: Catalog, curation_id: str, config: PackConfig) -> Pack | None:
    """The pack that `build_pack` would open with the same arguments; None where it would build one. Writes nothing.

    Raises:
        PackError: No such curation, or a pack that is damaged.
    """
    found = _look_up(catalog, curation_id, config)
    return found if isinstance(found, Pack) else None


def _look_up(catalog: Catalog, curation_id: str, config: PackConfig) -> Pack | tuple[_Kept, str, str]:
    """The pack that is there, or what is to be built: what was kept, the hash of its pixels, the pack's id."""
    folder = catalog.root / "packs"
    there = find_pack(folder, curation_id, config.shuffle_seed, config.pixels, config.exclude_plates)
    if there is not None:
        return Pack.open(there)
    kept = _kept_crops(catalog, curation_id, config.exclude_plates)
    pixels_content = pixels_of_crops(catalog, kept.table_versions, kept.crops)
    same = find_pack_of_pixels(folder, pixels_content, config.shuffle_seed, config.pixels)
    if same is not None:
        return Pack.open(same)
    content = content_of_crops(catalog, kept.table_versions, kept.crops)
    pack_id = content_id("pack", CONTENT, curation_id, content, config.shuffle_seed, config.pixels)
    if (folder / pack_id).is_dir():
        return Pack.open(folder / pack_id)  # says what is wrong with it
    return kept, pixels_content, pack_id


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
    pixels_sampled: dict[str, int]
    """By plate id, how many pixels of each of its sites and channels a scale is found from."""
    index_rows: dict[int, NDArray[np.int64]]
    """For each group (N,): the rows of `index` that its array's rows are."""
    sources: dict[int, NDArray[np.int64]]
    """For each group (N, 2): the read task, and the position in its scratch file, of each row of the group's array."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def _kept_crops(catalog: Catalog, curation_id: str, exclude_plates: tuple[str, ...]) -> _Kept:
    kept = catalog.table("curations", where="curation_id = ? AND is_kept", parameters=[curation_id])
    runs = catalog.table("curation_runs", columns=["n_kept"], where="curation_id = ?", parameters=[curation_id])
    run = runs["n_kept"]
    if len(run) and run[0].as_py() != kept.num_rows:
        raise PackError(
            f"curation {curation_id}: kept {run[0].as_py()} crops, {kept.num_rows} of them of plates that are visible "
            "now. Others were replaced, retracted or purged since: curate again: jobs/curate.py."
        )
    if kept.num_rows == 0:
        known = catalog.sql("SELECT DISTINCT curation, curation_id FROM curations ORDER BY ALL LIMIT 20").to_pylist()
        listed = ", ".join(f"{row['curation_id']} ({row['curation']})" for row in known) or "none"
        raise PackError(
            f"curation {curation_id}: keeps no crop in {catalog.root}. There are: {listed}. Run jobs/curate.py."
        )
    versions: dict[str, int] = json.loads(kept.column("table_versions")[0].as_py())
    pinned = catalog.at(versions)
    crops = pinned.sql(
        "SELECT crop_id, well_id, plate_id, screen, plate, site_id, y, x, size FROM crops SEMI JOIN kept "
        "USING (crop_id) ORDER BY crop_id",
        kept=kept.select(["crop_id"]),
    )
    n_found = crops.num_rows
    crops = _without_plates(crops, exclude_plates).drop_columns(["screen", "plate"])
    sites = pinned.sql(
        "SELECT * FROM sites WHERE site_id IN (SELECT site_id FROM kept) "
        "ORDER BY screen, plate, well, site, timepoint, z, site_id",
        kept=crops,
    )
    site_numbers = pc.index_in(crops.column("site_id"), sites.column("site_id").combine_chunks())
    if n_found != kept.num_rows or site_numbers.null_count:
        n_there = n_found - site_numbers.null_count
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


def _without_plates(crops: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """Crops of all plates but these."""
    if not names:
        return crops
    plates = crops.group_by(["plate_id", "screen", "plate"]).aggregate([]).to_pylist()
    known = {name: row["plate_id"] for row in plates for name in (row["plate"], f"{row['screen']}/{row['plate']}")}
    unknown = [name for name in names if name not in known]
    left = {row["plate_id"] for row in plates} - {known[name] for name in names if name in known}
    if unknown or not left:
        raise PackError(
            f"plates {', '.join(unknown or names)} cannot be left out: "
            + ("the curation keeps no crop of them" if unknown else "no other plate is left")
            + f". There are: {', '.join(sorted(row['screen'] + '/' + row['plate'] for row in plates)[:12])}."
        )
    return crops.filter(pc.is_in(crops["plate_id"], value_set=pa.array(sorted(left), pa.string())))


def _plan(kept: _Kept, config: PackConfig) -> _Plan:
    sizes = np.unique(kept.crops.column("size").to_numpy()).tolist()
    if len(sizes) > 1:
        raise PackError(
            f"crops of {', '.join(map(str, sizes))} px; expected one size in a pack. Keep one with `where: size = "
            f"{sizes[0]}` in catalog/curation/."
        )
    shuffled = kept.crops.take(sample_order(kept.crops.num_rows, config.shuffle_seed, 0))
    site, y, x = (shuffled.column(name).to_numpy() for name in ("site", "y", "x"))
    plates = Counter(described["plate_id"] for described in kept.sites)
    channels = pa.array([row["channels"] for row in kept.sites], pa.list_(pa.string()))
    group = np.array([len(row["channels"]) for row in kept.sites])[site]
    dtypes = np.array([row["dtype"] for row in kept.sites])
    task = site // config.sites_per_task
    by_site = np.argsort(site, kind="stable")

    row = np.empty(len(site), np.int64)
    groups, sources, index_rows = {}, {}, {}
    for number in np.unique(group).tolist():
        members = group == number
        n_crops = int(members.sum())
        row[members] = np.arange(n_crops)
        index_rows[number] = np.flatnonzero(members)
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
        pixels_sampled={plate_id: -(-SAMPLE_PIXELS // n) for plate_id, n in plates.items()},
        index_rows=index_rows,
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


_Scales = dict[tuple[str, str], Scale]
"""By plate id and stain; empty where the pack keeps native pixels."""
_Samples = dict[tuple[str, str], NDArray[Any]]
"""Some pixels of each plate and stain, counts."""


def _write_pixels(
    plan: _Plan, building: Path, config: PackConfig, progress: Progress
) -> tuple[_Scales, list[WrittenFile]]:
    """Scratch files, then arrays; returns the scales and the files whose checksums are known."""
    import ray

    scratch = building / "scratch"
    dtypes = {group: described.dtype for group, described in plan.groups.items()}
    sampled = plan.pixels_sampled if config.pixels == "uint8" else {}
    samples: dict[tuple[str, str], list[NDArray[Any]]] = defaultdict(list)
    read = ray.remote(num_cpus=1)(_read_sites)
    reads = ((sites, plan.crop_size, dtypes, str(scratch), number, sampled) for number, sites in enumerate(plan.reads))
    for problem, found in _run(read, reads, len(plan.reads), "site groups read", progress):
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
            _stored_dtype(group, config),
            group.rows_per_shard,
            config.compression,
            config.compression_level,
        )
        steps = range(0, group.n_crops, group.rows_per_shard)
        shards += [(number, shard, first, first + group.rows_per_shard) for shard, first in enumerate(steps)]
    write = ray.remote(num_cpus=1)(_write_shard)
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
    for problem, file in _run(write, writes, len(shards), "shards written", progress):
        if problem:
            raise PackError(problem)
        written.append(file)
    return scales, written


def _stored_dtype(group: _Group, config: PackConfig) -> str:
    return group.dtype if config.pixels == "native" else "uint8"


def _scales_of(plan: _Plan, group: int, rows: slice, scales: _Scales) -> NDArray[np.float64] | None:
    """(2, N, C): offset and step of each channel of a group's rows; None where the pack keeps native pixels."""
    if not scales:
        return None
    crops = plan.index.take(plan.index_rows[group][rows])
    pairs = zip(crops.column("plate_id").to_pylist(), crops.column("channels").to_pylist(), strict=True)
    found = [[scales[plate_id, channel] for channel in channels] for plate_id, channels in pairs]
    return np.array(
        [[[each.offset for each in crop] for crop in found], [[each.step for each in crop] for crop in found]]
    )


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
        if running:  # until they are gone they may write, and what they write must go with the folder
            ray.wait(running, num_returns=len(running), timeout=60)


def _read_sites(
    sites: list[_Site], size: int, dtypes: dict[int, str], scratch: str, number: int, sampled: dict[str, int]
) -> tuple[str, _Samples]:
    """Cut crops from their sites into scratch files.

    Args:
        sites: To read, in the order in which their crops are written.
        size: Of a crop, pixels.
        dtypes: Of each group's scratch file.
        scratch: Folder of the scratch files.
        number: Of this task.
        sampled: By plate id, how many pixels of each site and channel to return; none of other plates.

    Returns:
        What is wrong with a source or the disk, or nothing; and the sampled pixels.
    """
    samples: dict[tuple[str, str], list[NDArray[Any]]] = defaultdict(list)
    begun: set[int] = set()
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
                "catalog/curation/, mend its files, or set pack.pixels=native."
            ), {}
        for i, channel in enumerate(row["channels"] if n_sampled else []):
            values = crops[:, i].reshape(-1)
            evenly = np.linspace(0, len(values) - 1, min(n_sampled, len(values))).astype(np.int64)
            samples[row["plate_id"], channel].append(values[evenly])
        try:
            # Ray runs a task again whose process died, so it begins anew. No memory map: a full disk would kill it.
            with _scratch_file(scratch, number, group).open("ab" if group in begun else "wb") as file:
                file.write(crops.data)
            begun.add(group)
        except OSError as error:
            return _not_written(Path(scratch), error), {}
    return "", {key: np.concatenate(values) for key, values in samples.items()}


_SOURCE_CHANGED = (
    "The source is not what it was when the plate was ingested. Put it back, or move the catalog aside and ingest "
    "again."
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
        shard: Its number.
        dtype: Of the scratch files.
        sources: (N, 2), read task and position in its scratch file, for each row.
        scales: See `_scales_of`.

    Returns:
        What is wrong with the disk, or nothing; and what was written.
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
        return _not_written(Path(building), error), None


def _not_written(folder: Path, error: OSError) -> str:
    """That a pack could not be written, and why."""
    text = f"{folder}: the pack could not be written ({error.strerror or error}). Nothing of it is kept. "
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text + "Mend the folder, then run again."
    free = shutil.disk_usage(folder).free / 1e9 if folder.is_dir() else 0.0
    return (
        f"{text}{free:.2f} GB are free; while it is built, a pack takes its size twice. Free space, or keep fewer "
        "crops in catalog/curation/, then run again."
    )


def _scratch_file(scratch: str | Path, number: int, group: int) -> Path:
    return Path(scratch) / f"{number}_c{group}.raw"


def _check_room(folder: Path, plan: _Plan, config: PackConfig) -> None:
    """Refuse a pack that cannot fit, before its sites are read."""
    scratch = stored = 0
    for group in plan.groups.values():
        n_pixels = group.n_crops * group.n_channels * plan.crop_size**2
        scratch += n_pixels * np.dtype(group.dtype).itemsize
        stored += n_pixels * np.dtype(_stored_dtype(group, config)).itemsize
    if config.compression != "none":
        stored //= 4  # no screen of ours came out smaller
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    if disk.total > 0 and disk.free < scratch + stored:  # a total of 0: a file system that does not say
        raise PackError(
            f"{folder}: {disk.free / 1e9:.2f} GB free, the pack takes {stored / 1e9:.2f} GB and {scratch / 1e9:.2f} GB "
            "more while it is built. Free space, keep fewer crops in catalog/curation/, or set pack.pixels=uint8."
        )


def _remove_leftovers(folder: Path, pack_id: str) -> None:
    """Remove what a killed build of this pack on this machine left behind."""
    start = f".building-{pack_id}-{socket.gethostname()}-"
    for left in folder.glob(f"{start}*"):
        process = left.name.removeprefix(start)
        if process.isdecimal() and (int(process) == os.getpid() or not Path(f"/proc/{process}").exists()):
            shutil.rmtree(left, ignore_errors=True)
