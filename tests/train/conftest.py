"""A small pack of real pixels to train on, written to the folder layout of packs/pack.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from cytolake.packs.pack import FORMAT, INDEX_FILE, INDEX_SCHEMA, PACK_FILE, array_path
from cytolake.tracking import TrackingConfig

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    """One MLflow store for all runs: to make one takes 4 s of CPU."""
    return TrackingConfig().at(tmp_path_factory.mktemp("tracking"))


@pytest.fixture(scope="session")
def make_pack(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a pack of crops of 16 px with blobs; crop i has `channels[i % len(channels)]`
    and lies in well i // 5."""

    def make(n: int = 32, channels: tuple[tuple[str, ...], ...] = (STAINS[:2],), size: int = 16) -> Path:
        folder = tmp_path_factory.mktemp("pack")
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:size, :size]
        crops: dict[int, list[np.ndarray]] = {}
        rows = []
        for i in range(n):
            names = channels[i % len(channels)]
            places = rng.uniform(2, size - 2, (len(names), 2))
            blobs = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 18) for a, b in places]
            images = crops.setdefault(len(names), [])
            rows.append((f"crop{i}", f"well{i // 5}", "plate", len(names), len(images), list(names)))
            images.append(np.stack([3000 * blob + rng.normal(200, 10, blob.shape) for blob in blobs]).astype(np.uint16))
        for group, images in crops.items():
            pixels = np.stack(images)
            array = zarr.create_array(
                str(array_path(folder, group)),
                shape=pixels.shape,
                dtype=pixels.dtype,
                chunks=(1, *pixels.shape[1:]),
                shards=(16, *pixels.shape[1:]),
            )
            array[:] = pixels
        columns = list(zip(*rows, strict=True))
        index = pa.table(
            [pa.array(column, type) for column, type in zip(columns, INDEX_SCHEMA.types, strict=True)],
            schema=INDEX_SCHEMA,
        )
        pq.write_table(index, folder / INDEX_FILE)
        described = {
            "format": FORMAT,
            "pack_id": f"pack-{n}-{size}-{'-'.join('.'.join(names) for names in channels)}",
            "curation_id": "curation",
            "crop_size": size,
            "n_crops": n,
            "table_versions": {"crops": 1},
        }
        (folder / PACK_FILE).write_text(json.dumps(described))
        return folder

    return make
