"""Every objective, small, and views of a few crops of mixed channel counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tests.models.turned import flip_rotate

from cytolake.models import ModelConfig, collate, masking_noise
from cytolake.models.objectives import (
    BarlowTwinsConfig,
    ByolConfig,
    DinoConfig,
    MaeConfig,
    MoCoV2PlusConfig,
    MoCoV3Config,
    ObjectiveConfig,
    SimClrConfig,
    SimSiamConfig,
    VicRegConfig,
    View,
)

MODEL = ModelConfig(channels=("DNA", "ER", "RNA"), crop_size=16, patch_size=4, width=16, depth=1, heads=2)

RESNET = ModelConfig(architecture="resnet", channels=("DNA", "ER"), crop_size=16)
"""For `pair_crops`."""

_PARTS = {
    "mae": MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.5, contrastive_weight=0.5),
    "dino": DinoConfig(n_local_views=2, local_size=8, hidden_width=32, bottleneck_width=8, n_prototypes=24),
    "simclr": SimClrConfig(hidden_width=32, projected_width=8),
    "byol": ByolConfig(hidden_width=32, projected_width=8),
    "vicreg": VicRegConfig(hidden_width=32, projected_width=8),
    "barlow_twins": BarlowTwinsConfig(hidden_width=32, projected_width=8),
    "moco_v2_plus": MoCoV2PlusConfig(hidden_width=32, projected_width=8, queue_size=16),
    "moco_v3": MoCoV3Config(hidden_width=32, projected_width=8),
    "simsiam": SimSiamConfig(hidden_width=32, projected_width=16, predictor_width=8),
}

CONFIGS = {name: ObjectiveConfig(name=name, **_PARTS) for name in _PARTS}
"""By name; the masked autoencoder has its contrastive term, which is what compares crops."""
NEW = [name for name in CONFIGS if name != "mae"]


def mixed_crops(n: int) -> list[np.ndarray]:
    """Noisy blobs of another place and size in each crop, of 1, 2 or 3 channels."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:16, :16]
    crops = []
    for i in range(n):
        a, b, size = random.uniform(4, 12), random.uniform(4, 12), random.uniform(1.5, 5)
        blob = 1000 * np.exp(-((y - a) ** 2 + (x - b) ** 2) / size**2)
        crops.append(np.stack([(c + 1) * blob + random.uniform(0, 100, (16, 16)) for c in range(1 + i % 3)]))
    return crops


def pair_crops(n: int) -> list[np.ndarray]:
    """The same of 2 channels all."""
    return [crop for crop in mixed_crops(3 * n) if len(crop) == 2]


def on_resnet(config: ObjectiveConfig) -> ObjectiveConfig:
    """The same objective of mean-pooled vectors, which a ResNet has alone."""
    part = dataclasses.replace(getattr(config, config.name), pooling="mean")
    return dataclasses.replace(config, **{config.name: part})


def views_of(
    config: ObjectiveConfig, crops: Sequence[np.ndarray], index: Sequence[int] | None = None, epoch: int = 0
) -> list[View]:
    """The views that the objective takes, each turned otherwise, small ones cut from the middle."""
    index = range(len(crops)) if index is None else index
    stains = [tuple(range(1, len(crop) + 1)) for crop in crops]
    views = []
    for view in range(config.n_views):
        images = flip_rotate(crops, 0, epoch, index, view=view)
        _, side = config.view_crop(view)
        if side is not None:
            first = (16 - side) // 2
            images = [image[:, first : first + side, first : first + side] for image in images]
        noise = masking_noise(0, epoch, index, 48, view=view) if config.masks_tokens else None
        views.append(View(collate(images, stains), noise))
    return views
