"""The plan of a pack: its config, the crops that go into it, their order, and the work of each task."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.packs.eight_bit import SAMPLE_PIXELS
from cytolake.packs.pack import INDEX_SCHEMA, PixelKind
from cytolake.packs.sampler import sample_order
from cytolake.packs.shards import Compression, PackError


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """Order and layout of a pack."""

    shuffle_seed: int = 0
    """Seed of the order; another seed gives another pack with the same crops."""
    pixels: PixelKind = "native"
    """`native` stores the counts of the source. `uint8` scales them to 8 bits by the range of each plate and stain:
    half the size of 16-bit counts; `packs/eight_bit.py` says what is lost."""
    compression: Compression = "none"
    """`none`: two cores read 9 GB/s, and only `Pack.verify` detects a flipped bit. `lz4` (bit-shuffled): 16-bit counts
    become 1.3 to 2.0 times smaller, 1.3 GB/s. `zstd`: 16-bit counts become 1.2 to 1.5 times smaller, 8-bit counts 2.1
    times, 0.9 GB/s. Both check each crop when it is read. Camera noise hardly compresses."""
    compression_level: int = 1
    """1 to 9 for lz4, 1 to 22 for zstd. A higher level takes several times as long and saves almost nothing."""
    shard_mb: int = 64
    """Uncompressed size of a shard, MB, and memory of a task that writes one. A shard is one file."""
    sites_per_task: int = 16
    exclude_plates: tuple[str, ...] = ()
    """Plates whose crops are left out, as `plate` or `screen/plate`, to hold them out of pretraining."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptCrops:
    """The crops that a curation keeps, at its pinned table versions."""

    curation: str
    table_versions: dict[str, int]
    crops: pa.Table
    """crop_id, well_id, plate_id, y, x, size, and `site`: number in `sites`. Ordered by crop_id."""
    sites: list[dict[str, Any]]
    """Rows of the table sites with at least one crop, ordered as they lie on the disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Crops with the same number of channels, stored in one array."""

    n_channels: int
    n_crops: int
    dtype: str
    rows_per_shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSite:
    """One site and the windows to cut from it."""

    row: dict[str, Any]
    """A row of the table sites."""
    windows: NDArray[np.int64]
    """(N, 2): y and x of each of its crops."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackPlan:
    """Work of each task."""

    crop_size: int
    index: pa.Table
    groups: dict[int, Group]
    reads: list[list[PlannedSite]]
    """Sites of each read task. Its scratch file of a group holds the group's crops in the order of the sites."""
    pixels_sampled: dict[str, int]
    """Plate id to the number of pixels per site and channel that its 8-bit scales are estimated from."""
    index_rows: dict[int, NDArray[np.int64]]
    """For each group (N,): the row of `index` of each row of the group's array."""
    sources: dict[int, NDArray[np.int64]]
    """For each group (N, 2): the read task, and the position in its scratch file, of each row of the group's array."""


def kept_crops(catalog: Catalog, curation_id: str, exclude_plates: tuple[str, ...]) -> KeptCrops:
    kept = catalog.table("curations", where="curation_id = ? AND is_kept", parameters=[curation_id])
    runs = catalog.table("curation_runs", columns=["n_kept"], where="curation_id = ?", parameters=[curation_id])
    run = runs["n_kept"]
    if len(run) and run[0].as_py() != kept.num_rows:
        raise PackError(
            f"curation {curation_id}: kept {run[0].as_py()} crops, {kept.num_rows} of them of plates that are visible "
            "now. Others were replaced, retracted or purged since: curate again: `cytolake curate`."
        )
    if kept.num_rows == 0:
        known = catalog.sql("SELECT DISTINCT curation, curation_id FROM curations ORDER BY ALL LIMIT 20").to_pylist()
        listed = ", ".join(f"{row['curation_id']} ({row['curation']})" for row in known) or "none"
        raise PackError(
            f"curation {curation_id}: keeps no crop in {catalog.root}. There are: {listed}. Run `cytolake curate`."
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
            "the versions it pinned. The tables were changed by hand or vacuumed: curate again: `cytolake curate`."
        )
    return KeptCrops(
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


def plan_pack(kept: KeptCrops, config: PackConfig) -> PackPlan:
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
        groups[number] = Group(
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
    to_read = [PlannedSite(row=described, windows=each) for described, each in zip(kept.sites, of_site, strict=True)]
    index = pa.table(
        {
            **{name: shuffled.column(name) for name in ("crop_id", "well_id", "plate_id")},
            "group": group,
            "row": row,
            "channels": channels.take(pa.array(site)),
        }
    ).cast(INDEX_SCHEMA)
    return PackPlan(
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
