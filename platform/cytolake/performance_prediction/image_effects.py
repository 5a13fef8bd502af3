"""Search for an unnamed column that separates the images of one prompt, as a generator would.

Images of one prompt differ by noise and by their generator. Where the generator counts as noise, reliable scores look
unreliable.

Shapes: M images, P prompts, L levels of a column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
MOST_LEVELS = 20
"""Most levels of a column: one with more is a measurement or an id, not a generator."""
LEAST_SHARE, LARGEST_P = 0.05, 1e-4
"""Least share of the variance within prompts that a column explains, and its largest p-value."""


@dataclass(frozen=True, slots=True)
class ImageEffect:
    """A column with an effect on the scores of a prompt's images."""

    column: str
    levels: tuple[str, ...]
    share: float
    """Explained share of the variance within prompts."""
    of_image: Numbers
    """(M,) effect on each image, with mean 0."""


def find_image_effect(
    scores: Numbers, prompt: NDArray[np.intp], columns: Mapping[str, Sequence[str]]
) -> ImageEffect | None:
    """The column that separates the images of prompts most; None where no column does beyond chance.

    Effects are a least-squares fit of scores on the indicators of a column, both less their mean over the prompt, so
    differences between prompts have no effect.

    Args:
        scores: (M,) scores of images.
        prompt: (M,) number of each image's prompt.
        columns: (M,) values of each candidate column.
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
            continue  # one level for each prompt is a property of prompts
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
