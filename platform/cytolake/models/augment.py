"""Changes to a crop that leave its biology as it is: a microscope knows no up and no left."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytolake.models.seeding import sample_bits

_FLIP_ROTATE = 2  # purpose of `sample_bits`: even ones, a view each; masking has the odd ones


def flip_rotate(
    images: Sequence[np.ndarray],
    seed: int,
    epoch: int,
    sample_index: Sequence[int] | np.ndarray,
    *,
    view: int = 0,
) -> list[np.ndarray]:
    """Turn each crop by a multiple of 90 degrees and mirror half of them, all channels together.

    Args:
        images: One (C_i, S, S) array for each crop.
        seed: Seed of the run.
        epoch: A crop is turned otherwise in each epoch.
        sample_index: (B,) global sample indices: the same crop is turned the same way by any worker.
        view: Another view of the crops is turned independently.

    Returns:
        Views of the crops, in their dtype.
    """
    choices = (sample_bits(seed, epoch, sample_index, _FLIP_ROTATE + 2 * view) % np.uint64(8)).astype(int)
    turned = []
    for image, choice in zip(images, choices, strict=True):
        image = np.rot90(image, k=int(choice) % 4, axes=(1, 2))
        turned.append(image[:, :, ::-1] if choice >= 4 else image)
    return turned
