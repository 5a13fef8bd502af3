"""A pack of simulated crops, written without a catalog."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytolake.packs.checksums import write_checksums
from cytolake.packs.pack import FORMAT, INDEX_FILE, INDEX_SCHEMA, PACK_FILE
from cytolake.packs.shards import create_array, write_shard

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")


def write_pack(folder: Path, n_crops: int, size: int, channel_counts: Sequence[int] = (len(STAINS),)) -> Path:
    """Crops of round cells under camera noise; crop i has the first `channel_counts[i % len]` stains.

    Args:
        folder: Made by this.
        n_crops: In the pack.
        size: Side in pixels.
        channel_counts: In turn.
    """
    folder.mkdir(parents=True)
    counts = [channel_counts[i % len(channel_counts)] for i in range(n_crops)]
    written, place = [], [0] * n_crops
    for n_channels in sorted(set(counts)):
        mine = [i for i, count in enumerate(counts) if count == n_channels]
        per_shard = max(1, 64_000_000 // (2 * n_channels * size**2))
        create_array(folder, (len(mine), n_channels, size, size), "uint16", per_shard)
        for number, first in enumerate(range(0, len(mine), per_shard)):
            crops = np.stack([_crop(i, n_channels, size) for i in mine[first : first + per_shard]])
            written.append(write_shard(folder, n_channels, number, crops))
        for row, i in enumerate(mine):
            place[i] = row
    ids = [f"crop{i:08d}" for i in range(n_crops)]
    wells = [f"well{i // 8}" for i in range(n_crops)]
    plates = ["plate"] * n_crops
    stains = [list(STAINS[:count]) for count in counts]
    index = pa.table([ids, wells, plates, counts, place, stains], INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
    pq.write_table(index, folder / INDEX_FILE)
    described = {
        "format": FORMAT,
        "pack_id": f"simulated-{n_crops}-{size}-{'-'.join(map(str, channel_counts))}",
        "curation_id": "simulated",
        "table_versions": {},
        "crop_size": size,
        "n_crops": n_crops,
    }
    (folder / PACK_FILE).write_text(json.dumps(described))
    write_checksums(folder, written)
    return folder


def _crop(number: int, n_channels: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:size, :size]
    expected = np.full((n_channels, size, size), 200.0)
    for centre_y, centre_x in rng.uniform(0, size, (3, 2)):
        radius = rng.uniform(size / 12, size / 5, (n_channels, 1, 1))
        cell = np.exp(-((y - centre_y) ** 2 + (x - centre_x) ** 2) / (2 * radius**2))
        expected += rng.uniform(300, 1500, (n_channels, 1, 1)) * cell
    noise = rng.standard_normal(expected.shape) * np.sqrt(expected)  # Poisson's, but for its skew
    return np.rint(expected + noise).clip(0, 65535).astype(np.uint16)
