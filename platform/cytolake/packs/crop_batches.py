"""Crops of a pack as a model takes them, with the range of their source's pixel type."""

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
        pack: Of native pixels or of 8 bits. Values of 8 bits are scaled back to counts for a model that needs these.
        rows: (B,) of the pack.
        model: Whose vocabulary and scaling count.
        images: What `Pack.read` gives of these rows, where that is at hand.
        identities: Of the channels of each crop; None looks them up.

    Raises:
        PackError: As `Pack.read`.
        ValueError: As `collate`, or stains that the model does not take.
    """
    if model.needs_counts and pack.pixels != "native":
        images = pack.counts(rows)
    elif images is None:
        images = pack.read(rows)
    if identities is None:
        identities = [model.channel_indices(pack.channels(int(row))) for row in rows]
    return collate(images, identities, pack.full_scale(rows) if model.needs_counts else None)
