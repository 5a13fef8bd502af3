"""A small pack of known pixels, written by the functions that a build uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytolake.packs.checksums import write_checksums
from cytolake.packs.pack import FORMAT, INDEX_FILE, INDEX_SCHEMA, PACK_FILE
from cytolake.packs.shards import Compression, create_array, write_shard

ROWS_PER_SHARD = 16
STAINS = ("DNA", "ER", "RNA")


def make_pixels(n: int = 50, channels: int = 2, size: int = 8, dtype: str = "uint16") -> np.ndarray:
    """(n, channels, size, size): noise over a slope, so that it compresses a little."""
    rng = np.random.default_rng(n + channels)
    slope = np.arange(size * size).reshape(size, size)
    return (slope + rng.integers(0, 150, (n, channels, size, size))).astype(dtype)


def write_array(folder: Path, pixels: np.ndarray, compression: Compression = "none") -> None:
    shape: Any = pixels.shape
    create_array(folder, shape, str(pixels.dtype), ROWS_PER_SHARD, compression)
    for shard, first in enumerate(range(0, len(pixels), ROWS_PER_SHARD)):
        write_shard(folder, pixels.shape[1], shard, pixels[first : first + ROWS_PER_SHARD])


def write_pack(folder: Path, compression: Compression = "none", **described: Any) -> None:
    """Write 50 crops into an empty folder, 30 with two channels and 20 with three; crop i has the id `crop{i}`."""
    groups = np.array([2, 2, 3, 2, 3] * 10)
    for group in (2, 3):
        write_array(folder, make_pixels(int((groups == group).sum()), group), compression)
    rows = [
        (f"crop{i}", f"well{i // 5}", f"plate{i // 25}", group, int((groups[:i] == group).sum()), STAINS[:group])
        for i, group in enumerate(groups.tolist())
    ]
    columns = [dict(zip(INDEX_SCHEMA.names, row, strict=True)) for row in rows]
    pq.write_table(pa.Table.from_pylist(columns, INDEX_SCHEMA), folder / INDEX_FILE)
    required = {
        "format": FORMAT,
        "pack_id": "pack",
        "curation_id": "curation",
        "crop_size": 8,
        "n_crops": len(rows),
        "table_versions": {"crops": 1},
    }
    (folder / PACK_FILE).write_text(json.dumps(required | described))
    write_checksums(folder)
