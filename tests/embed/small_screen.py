"""A catalog and a pack of a few dozen crops whose perturbations differ in texture and whose plates differ in gain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from tests.catalog.empty_catalog import empty_catalog

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id, plate_id, well_id
from cytolake.models import ModelConfig, build_encoder, save_encoder
from cytolake.packs.pack import FORMAT, INDEX_FILE, INDEX_SCHEMA, PACK_FILE, Pack, array_path

SCREEN = "small"
SIZE = 16
CHANNELS = ("DNA", "ER")
PERTURBATIONS = ("", "smooth", "fine", "bright")
"""The first is the negative control."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallScreen:
    """What the tests share."""

    catalog: Catalog
    pack: Pack
    checkpoints: dict[str, Path]


def make_small_screen(
    root: Path,
    *,
    n_plates: int = 4,
    wells_each: int = 2,
    crops_per_well: int = 3,
    mixed: bool = False,
    architecture: str = "chada_vit",
) -> SmallScreen:
    """Write tables, a pack and two encoders under `root`; with `mixed`, every second crop has one channel only."""
    catalog = empty_catalog(root)
    random = np.random.default_rng(0)
    wells, crops, images = [], [], []
    for p in range(n_plates):
        plate, place = f"P{p}", 0
        for perturbation in PERTURBATIONS:
            for _ in range(wells_each):
                well = f"{'ABCDEFGH'[place // 12]}{place % 12 + 1:02d}"
                place += 1
                wells.append(_well(plate, well, perturbation))
                for i in range(crops_per_well):
                    channels = CHANNELS[:1] if mixed and len(crops) % 2 else CHANNELS
                    crops.append(
                        {
                            "crop_id": content_id("crop", plate, well, i),
                            "well_id": well_id(SCREEN, plate, well),
                            "plate_id": plate_id(SCREEN, plate),
                            "channels": list(channels),
                        }
                    )
                    images.append(_image(perturbation, 1 + 0.3 * p, len(channels), random))
    for name, rows in (("wells", wells), ("plates", [_plate(f"P{p}") for p in range(n_plates)])):
        contract = table_contract(name)
        catalog.append(name, pa.Table.from_pylist(rows, schema=contract.schema), transaction=f"test/{name}")
    pack = write_pack(root / "packs" / "small", crops, images)
    config = ModelConfig(
        architecture=architecture, channels=CHANNELS, crop_size=SIZE, patch_size=8, width=16, depth=2, heads=2,
    )  # fmt: skip
    checkpoints = {}
    for seed, kind in enumerate(("trained", "untrained")):
        checkpoints[kind] = root / "runs" / f"{kind}.safetensors"
        save_encoder(build_encoder(config, seed=seed), checkpoints[kind])
    return SmallScreen(catalog=catalog, pack=pack, checkpoints=checkpoints)


def write_pack(folder: Path, crops: list[dict[str, Any]], images: list[np.ndarray]) -> Pack:
    """A pack of these crops, in their order."""
    folder.mkdir(parents=True)
    by_group: dict[int, list[np.ndarray]] = {}
    for crop, image in zip(crops, images, strict=True):
        crop["group"], crop["row"] = len(image), len(by_group.setdefault(len(image), []))
        by_group[len(image)].append(image)
    for group, members in by_group.items():
        array = zarr.create_array(
            str(array_path(folder, group)), shape=(len(members), group, SIZE, SIZE), chunks=(1, group, SIZE, SIZE),
            shards=(len(members), group, SIZE, SIZE), dtype="uint16",
        )  # fmt: skip
        array[:] = np.stack(members)
    pq.write_table(pa.Table.from_pylist(crops, schema=INDEX_SCHEMA), folder / INDEX_FILE)
    described = {
        "format": FORMAT, "pack_id": "pack0", "curation_id": "curation0", "crop_size": SIZE, "n_crops": len(crops),
        "table_versions": {},
    }  # fmt: skip
    (folder / PACK_FILE).write_text(json.dumps(described))
    return Pack.open(folder)


def _image(perturbation: str, gain: float, n_channels: int, random: np.random.Generator) -> np.ndarray:
    noise = random.normal(size=(n_channels, SIZE, SIZE))
    if perturbation == "smooth":
        noise = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))) / 2
    if perturbation == "fine":
        noise = (noise - np.roll(noise, 1, 1)) / 1.4
    level = 900 if perturbation == "bright" else 600
    return np.clip(gain * (level + 100 * noise), 0, 65535).astype(np.uint16)


def _well(plate: str, well: str, perturbation: str) -> dict[str, Any]:
    return {
        "well_id": well_id(SCREEN, plate, well), "plate_id": plate_id(SCREEN, plate), "screen": SCREEN, "plate": plate,
        "batch": "B0" if plate in ("P0", "P1") else "B1", "well": well, "row": 0, "column": 0,
        "perturbation": perturbation or "DMSO", "gene": "", "pathway": "", "guide": "", "compound": "", "dose": None,
        "replicate": "", "control": "" if perturbation else "negative", "is_negative_control": not perturbation,
        "has_images": True, "annotations": "{}",
    }  # fmt: skip


def _plate(plate: str) -> dict[str, Any]:
    return {
        "plate_id": plate_id(SCREEN, plate), "screen": SCREEN, "plate": plate, "batch": "B0", "source": "nowhere",
        "reader": "files", "content_hash": "0", "channels": list(CHANNELS), "pixel_size_um": None, "n_wells": 0,
        "n_sites": 0, "n_crops": 0, "n_quarantined": 0, "ingested_at": datetime.now(UTC),
    }  # fmt: skip
