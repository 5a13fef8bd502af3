"""Does a column that the table's description does not name separate the images of one prompt, as a generator would?

Images of one prompt differ by noise, and by what made them. Taken for noise, the latter makes scores look unreliable
that are not.

M images, P prompts, L levels of a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
MOST_LEVELS = 20
"""A column of more different values is a measurement or an id, and no generator."""
LEAST_SHARE, LARGEST_P = 0.05, 1e-4
"""A column counts where it explains this share of the variance within prompts, by a p-value of at most this."""


@dataclass(frozen=True, slots=True)
class ImageEffect:
    """A column whose values shift the scores of a prompt's images."""

    column: str
    levels: tuple[str, ...]
    share: float
    """Of the variance within prompts."""
    of_image: Numbers
    """(M,) the shift of each image, 0 on average."""


def find_image_effect(
    scores: Numbers, prompt: NDArray[np.intp], columns: Mapping[str, Sequence[str]]
) -> ImageEffect | None:
    """The column that separates the images of prompts most; None where none does beyond chance.

    Effects are least squares of scores less their prompt's mean on the columns' indicators less theirs, so a prompt of
    other images than most has none by that.

    Args:
        scores: (M,) of images.
        prompt: (M,) which prompt each is of.
        columns: (M,) values of each column that could be it.
    """
    from scipy.stats import f as f_distribution

    sizes = np.bincount(prompt)
    within = scores - (np.bincount(prompt, scores) / np.maximum(sizes, 1))[prompt]
    total = float((within**2).sum())
    found: ImageEffect | None = None
    for name, values in columns.items():
        levels, codes = np.unique(np.asarray(values), return_inverse=True)
        n_pairs = len(np.unique(prompt * len(levels) + codes))
        if not 2 <= len(levels) <= MOST_LEVELS or n_pairs == len(np.unique(prompt)) or total <= 0:
            continue  # one level for each prompt: a property of prompts
        indicators = np.eye(len(levels))[codes]
        means = np.stack([np.bincount(prompt, each) for each in indicators.T], axis=1) / np.maximum(sizes, 1)[:, None]
        effects, _, rank, _ = np.linalg.lstsq(indicators - means[prompt], within, rcond=None)
        explained = total - float(((within - (indicators - means[prompt]) @ effects) ** 2).sum())
        left = len(scores) - int((sizes > 0).sum()) - int(rank)
        if rank < 1 or left < 1:
            continue
        share = explained / total
        f = (explained / rank) / max((total - explained) / left, 1e-300)
        if share >= LEAST_SHARE and f_distribution.sf(f, rank, left) <= LARGEST_P:
            shift = indicators @ effects
            if found is None or share > found.share:
                found = ImageEffect(name, tuple(levels.tolist()), share, shift - shift.mean())
    return found
