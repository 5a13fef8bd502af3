"""A minibatch as a screen gives it: 16-bit counts on a pedestal, crops of 1 to 5 channels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from cytolake.models import CropBatch, collate
from cytolake.models.augment import KNOBS, NOTHING, AugmentConfig, augment

SIDE = 24


@pytest.fixture
def crops() -> CropBatch:
    rng = np.random.default_rng(0)
    images, identities = [], []
    for i in range(10):
        n_channels = 1 + i % 5
        cells = rng.gamma(0.7, 3000, (n_channels, SIDE, SIDE)) + 1000 * (1 + i) + rng.normal(0, 20, (SIDE, SIDE))
        images.append(np.clip(cells, 0, 65535).astype(np.uint16))
        identities.append(tuple(range(1, n_channels + 1)))
    return collate(images, identities)


@pytest.fixture
def many() -> Callable[..., CropBatch]:
    """Many crops that are all the same, so that what differs in the results was drawn."""

    def make(n: int, n_channels: int = 1, side: int = SIDE) -> CropBatch:
        image = np.random.default_rng(1).gamma(2, 500, (n_channels, side, side)).astype(np.float32)
        pixels = torch.from_numpy(image).expand(n, -1, -1, -1).contiguous()
        return CropBatch(pixels, torch.arange(1, n_channels + 1).repeat(n, 1), (n_channels,) * n)

    return make


@pytest.fixture
def everything() -> AugmentConfig:
    """All knobs on at once, moderately."""
    config = NOTHING
    for knob in KNOBS.values():
        config = knob(0.3, config)
    return config


@pytest.fixture
def change() -> Callable[..., CropBatch]:
    """`augment` with seed 0, epoch 0, and sample indices counted from 100."""

    def run(crops: CropBatch, config: AugmentConfig, **kwargs) -> CropBatch:
        kwargs = {"seed": 0, "epochs": 0, "sample_index": np.arange(100, 100 + len(crops))} | kwargs
        return augment(crops, config, **kwargs)

    return run
