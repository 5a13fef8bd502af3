"""Minibatches of a pack as input of a model, with the range of the source's pixel type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cytolake.models.config import ModelConfig
from cytolake.models.crops import CropBatch, collate
from cytolake.packs.pack import Pack
from cytolake.packs.shards import Pixels


def crop_batch(
    pack: Pack,
    rows: NDArray[np.int64],
    model: ModelConfig,
    images: Sequence[Pixels] | None = None,
    identities: Sequence[Sequence[int]] | None = None,
) -> CropBatch:
    """One minibatch of a pack's crops.

    Args:
        pack: A pack; 8-bit values are scaled back to counts if the model needs counts.
        rows: (B,) rows of the pack.
        model: Config with the channel vocabulary and the scaling.
        images: Result of `Pack.read` for these rows, if already read.
        identities: Channel identities of each crop; None looks them up.

    Raises:
        PackError: As `Pack.read`.
        ValueError: As `collate`, or a stain is unknown to the model.
    """
    if model.needs_counts and pack.pixels != "native":
        images = pack.counts(rows)
    elif images is None:
        images = pack.read(rows)
    if identities is None:
        identities = [model.channel_indices(pack.channels(int(row))) for row in rows]
    return collate(images, identities, pack.full_scale(rows) if model.needs_counts else None)
