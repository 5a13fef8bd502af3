"""Probes of many encoders on the same crops, labels and splits of a pack, pinned once.

`PinnedCrops` needs the pack and no catalog, so that any process can evaluate an encoder. `TrainingProbe` scores every
block while an encoder is trained; studies and sweeps (`tune.study_probe`) and audits use the same crops in other ways.

N crops, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True, slots=True)
class PinnedCrops:
    """Labelled crops of a pack that every encoder is evaluated on."""

    pack_path: Path
    rows: NDArray[np.int64]
    """(N,) of the pack, in the order of `data.crop_ids`."""
    data: ProbeData

    def vectors(self, encoder_path: Path) -> list[NDArray[np.float32]]:
        """(N, D) of each block of an encoder's file, mean pooling."""
        return embed_rows(load_encoder(encoder_path), Pack.open(self.pack_path), self.rows)


def pin_crops(
    catalog: Catalog, pack: Pack, label: str, *, n_crops: int, salt: str, include_controls: bool = False
) -> PinnedCrops:
    """Choose crops by their ids alone, so that every run with this pack has the same, and join them with a label.

    Args:
        label: Column of `wells` to predict.
        n_crops: Crops to choose; all where the pack has fewer.
        salt: Names the purpose; each purpose has a choice of its own.
        include_controls: Whether negative-control wells are a class.

    Raises:
        ValueError: A label that these crops do not have.
    """
    chosen = np.sort(order_by_id(pack.index.column("crop_id").to_pylist(), salt)[:n_crops])
    crops = pack.index.select(["crop_id", "well_id"]).take(chosen)
    data = label_crops(catalog, crops, label, include_controls=include_controls, what=f"pack {pack.pack_id}")
    return PinnedCrops(pack.path, pack.rows_of(data.crop_ids), data)


def order_by_id(crop_ids: Sequence[str], *salt: str) -> NDArray[np.intp]:
    """(N,) places of crops in a random order that depends on their ids and the salt alone."""
    return np.argsort([content_id(*salt, crop_id) for crop_id in crop_ids], kind="stable")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProbeConfig:
    """Crops and probe of the curve that is drawn while an encoder is trained."""

    n_crops: int = 1000
    """Crops of the pack, the same at every evaluation of every run with this pack; all where it has fewer."""
    probe: ProbeConfig = field(default_factory=lambda: ProbeConfig(regularisation=(0.01,)))
    """Label and split. One strength of regularisation keeps an evaluation short."""

    def __post_init__(self) -> None:
        if self.n_crops < 2:
            raise ValueError(f"training_probe.n_crops is {self.n_crops}, expected 2 or more.")


@dataclass(frozen=True, slots=True)
class TrainingProbe:
    """Balanced accuracy of every block of an encoder's file."""

    crops: PinnedCrops
    config: ProbeConfig

    def __call__(self, encoder_path: Path) -> dict[str, float]:
        """`block_K` for each block, mean pooling, and `best_block`, the highest.

        The highest of several scores on the same plates is biased upwards, equally at every step: it shows how a
        training develops, and is not comparable with other scores.
        """
        data = self.crops.data
        key = probe_key(data, self.config)
        scores = {
            f"block_{block}": probe_representation(vectors, "pinned", data, self.config, key, nested=False)
            .summary[CROP_METRIC]
            .value
            for block, vectors in enumerate(self.crops.vectors(encoder_path))
        }
        return {**scores, "best_block": max(scores.values())}


def pin_training_probe(catalog: Catalog, pack: Pack, config: TrainingProbeConfig) -> TrainingProbe:
    """Pin the crops of a training probe.

    Raises:
        ValueError: A label or a split that these crops do not allow.
    """
    probe = config.probe
    crops = pin_crops(
        catalog,
        pack,
        probe.label,
        n_crops=config.n_crops,
        salt="training_probe",
        include_controls=probe.include_controls,
    )
    check_units(crops.data, probe)
    return TrainingProbe(crops, probe)
