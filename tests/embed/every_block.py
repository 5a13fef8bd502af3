"""What an encoder gives of some crops, from the model alone: the oracle for stored and served vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cytolake.models import POOLINGS, Encoder, collate


def every_block(
    encoder: Encoder,
    images: Sequence[np.ndarray],
    channels: Sequence[tuple[str, ...]],
    poolings: Sequence[str] = POOLINGS,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(B, R, D) of every pooling, outer, and block, inner, of crops of raw counts."""
    batch = collate(images, [encoder.config.channel_indices(names) for names in channels])
    pooled = encoder.pooled_blocks(batch, poolings)
    return np.stack([block.float().numpy() for name in poolings for block in pooled[name]], axis=1)
