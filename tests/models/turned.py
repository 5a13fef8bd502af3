"""Flips and quarter turns of single images by numpy, to hold those of a minibatch against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytolake.models.augment.draws import Draws


def flip_rotate(
    images: Sequence[np.ndarray],
    seed: int,
    epoch: int | np.ndarray,
    sample_index: Sequence[int] | np.ndarray,
    *,
    view: int = 0,
) -> list[np.ndarray]:
    """Turn each crop by a multiple of 90 degrees and mirror half of them, all channels together.

    The flips and quarter turns of `augment` by numpy, for images that are not yet a minibatch.

    Args:
        images: One (C_i, S, S) array for each crop.
        seed: Seed of the run.
        epoch: A crop is turned otherwise in each epoch; one number, or (B,).
        sample_index: (B,) global sample indices: the same crop is turned the same way by any worker.
        view: Another view of the crops is turned independently.

    Returns:
        Views of the crops, in their dtype.
    """
    turned = []
    for image, choice in zip(images, Draws(seed, epoch, sample_index, view).turns(), strict=True):
        image = np.rot90(image, k=int(choice) % 4, axes=(1, 2))
        turned.append(image[:, :, ::-1] if choice >= 4 else image)
    return turned
