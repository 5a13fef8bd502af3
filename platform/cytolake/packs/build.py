"""Building a pack: every site is read once, crops are shuffled through scratch files, shards are written in parallel.

Two rounds of tasks (`pixel_tasks`). The first reads sites and writes their crops, unshuffled, to one scratch file
per task and number of channels. The second writes shards: each gathers its crops from the scratch files by memory map.
The disk holds the pixels twice until the end.

The pack is built in a hidden folder next to the other packs, which is renamed when it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

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
from cytolake.packs.pack import FORMAT, INDEX_FILE, PACK_FILE, Pack
from cytolake.packs.pack_plan import KeptCrops, PackConfig, PackPlan, kept_crops, plan_pack
from cytolake.packs.pixel_tasks import not_written, stored_dtype, write_pixels
from cytolake.packs.shards import PackError, array_path
from cytolake.storage.atomic_write import atomic_folder


def build_pack(catalog: Catalog, curation_id: str, config: PackConfig, progress: Progress | None = None) -> Pack:
    """Copy the pixels of the crops that a curation keeps into a pack, `<root>/packs/<pack_id>`.

    An existing pack of this curation, order and kind of pixels is opened instead, whatever its layout. So is a pack of
    another curation with the same crops, such as the curation before a correction of labels: encoders and embeddings of
    that pack stay valid. The id is the hash of curation, order, kind of pixels, crops and what the catalog knows of
    their pixels (`content.OF_PIXELS`). Runs as Ray tasks if Ray is running, otherwise in this process; on a cluster all
    nodes must see the catalog's root.

    Args:
        catalog: The catalog with the curation. Crops and sites are read at the versions that the curation pinned.
        curation_id: Id in the table curations.
        progress: Called after each group of sites read and each shard written.

    Raises:
        PackError: No such curation, crops of several sizes, a source that is missing or changed since the ingest, or
            a full disk.
    """
    found = _look_up(catalog, curation_id, config)
    if isinstance(found, Pack):
        return found
    kept, pixels_content, pack_id = found
    path = catalog.root / "packs" / pack_id
    plan = plan_pack(kept, config)
    _remove_leftovers(path.parent, pack_id)
    _check_room(path.parent, plan, config)
    building = path.parent / f".building-{pack_id}-{socket.gethostname()}-{os.getpid()}"
    try:
        with atomic_folder(path, building):
            scratch = building / "scratch"
            scratch.mkdir()
            scales, written = write_pixels(plan, building, config, progress or _no_progress)
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
                        "dtype": stored_dtype(group, config),
                        "array": array_path(Path(), group.n_channels).name,
                    }
                    for group in plan.groups.values()
                ],
                "built_at": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            (building / PACK_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
            write_checksums(building, written)
    except OSError as error:
        raise PackError(not_written(path.parent, error)) from error
    return Pack.open(path)


def find_built_pack(catalog: Catalog, curation_id: str, config: PackConfig) -> Pack | None:
    """The pack that `build_pack` would open with the same arguments; None where it would build one. Writes nothing.

    Raises:
        PackError: No such curation, or a pack that is damaged.
    """
    found = _look_up(catalog, curation_id, config)
    return found if isinstance(found, Pack) else None


def _look_up(catalog: Catalog, curation_id: str, config: PackConfig) -> Pack | tuple[KeptCrops, str, str]:
    """The existing pack, or what to build: the kept crops, the hash of their pixels, the pack's id."""
    folder = catalog.root / "packs"
    there = find_pack(folder, curation_id, config.shuffle_seed, config.pixels, config.exclude_plates)
    if there is not None:
        return Pack.open(there)
    kept = kept_crops(catalog, curation_id, config.exclude_plates)
    pixels_content = pixels_of_crops(catalog, kept.table_versions, kept.crops)
    same = find_pack_of_pixels(folder, pixels_content, config.shuffle_seed, config.pixels)
    if same is not None:
        return Pack.open(same)
    content = content_of_crops(catalog, kept.table_versions, kept.crops)
    pack_id = content_id("pack", CONTENT, curation_id, content, config.shuffle_seed, config.pixels)
    if (folder / pack_id).is_dir():
        return Pack.open(folder / pack_id)  # raises an error that names the damage
    return kept, pixels_content, pack_id


def _check_room(folder: Path, plan: PackPlan, config: PackConfig) -> None:
    """Refuse a pack that does not fit on the disk, before its sites are read."""
    scratch = stored = 0
    for group in plan.groups.values():
        n_pixels = group.n_crops * group.n_channels * plan.crop_size**2
        scratch += n_pixels * np.dtype(group.dtype).itemsize
        stored += n_pixels * np.dtype(stored_dtype(group, config)).itemsize
    if config.compression != "none":
        stored //= 4  # the smallest share measured on real screens
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder)
    if disk.total > 0 and disk.free < scratch + stored:  # a total of 0: a file system that does not report it
        raise PackError(
            f"{folder}: {disk.free / 1e9:.2f} GB free, the pack takes {stored / 1e9:.2f} GB and {scratch / 1e9:.2f} GB "
            "more while it is built. Free space, keep fewer crops in catalog/curation/, or set pack.pixels=uint8."
        )


def _remove_leftovers(folder: Path, pack_id: str) -> None:
    """Remove the folders of killed builds of this pack on this machine."""
    start = f".building-{pack_id}-{socket.gethostname()}-"
    for left in folder.glob(f"{start}*"):
        process = left.name.removeprefix(start)
        if process.isdecimal() and (int(process) == os.getpid() or not Path(f"/proc/{process}").exists()):
            shutil.rmtree(left, ignore_errors=True)


def _no_progress(what: str, done: int, total: int) -> None:
    """The progress of callers that pass none."""
