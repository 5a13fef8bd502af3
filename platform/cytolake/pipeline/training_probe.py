"""A probe on a small pinned set of crops, repeated while an encoder is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.cross_validation import check_units, probe_representation
from cytolake.benchmark.linear_probe import CROP_METRIC, ProbeConfig, probe_key
from cytolake.benchmark.probe_data import ProbeData, label_crops
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.embed.crop_vectors import embed_rows
from cytolake.models import load_encoder
from cytolake.packs.pack import Pack


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProbeConfig:
    """Which crops are pinned, and how they are probed."""

    n_crops: int = 1000
    """Crops of the pack, the same ones at every evaluation of every run with this pack; all where it has fewer."""
    probe: ProbeConfig = field(default_factory=lambda: ProbeConfig(regularisation=(0.01,)))
    """What is predicted, and what is held out. One strength of regularisation keeps it quick."""

    def __post_init__(self) -> None:
        if self.n_crops < 2:
            raise ValueError(f"training_probe.n_crops is {self.n_crops}, expected 2 or more.")


@dataclass(frozen=True, slots=True)
class TrainingProbe:
    """Balanced accuracy of every block of an encoder's file. Needs the pack and no catalog, so any process can ask."""

    pack_path: Path
    rows: NDArray[np.int64]
    """Of the pack, in the order of `data.crop_ids`."""
    data: ProbeData
    config: ProbeConfig

    def __call__(self, encoder_path: Path) -> dict[str, float]:
        """`block_K` for each block, mean pooling, and `best_block`, the highest.

        The highest of several on the plates that it is read off is a little high, at every step alike: a curve to watch
        a training by, and not a score to compare with anything else.
        """
        encoder, pack = load_encoder(encoder_path), Pack.open(self.pack_path)
        vectors_KND = embed_rows(encoder, pack, self.rows)
        key = probe_key(self.data, self.config)
        numbers = {
            f"block_{block}": probe_representation(vectors, "pinned", self.data, self.config, key, nested=False)
            .summary[CROP_METRIC]
            .value
            for block, vectors in enumerate(vectors_KND)
        }
        return {**numbers, "best_block": max(numbers.values())}


def pin_training_probe(catalog: Catalog, pack: Pack, config: TrainingProbeConfig) -> TrainingProbe:
    """Choose the crops, by their ids alone, so that every run and every recipe with this pack has the same.

    Raises:
        ValueError: A label or a split that these crops do not allow.
    """
    crop_ids = pack.index.column("crop_id").to_pylist()
    by_chance = np.argsort([content_id("training_probe", crop_id) for crop_id in crop_ids], kind="stable")
    crops = pack.index.select(["crop_id", "well_id"]).take(np.sort(by_chance[: config.n_crops]))
    data = label_crops(
        catalog,
        crops,
        config.probe.label,
        include_controls=config.probe.include_controls,
        what=f"pack {pack.pack_id}",
    )
    check_units(data, config.probe)
    return TrainingProbe(pack.path, pack.rows_of(data.crop_ids), data, config.probe)
