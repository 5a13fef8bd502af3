"""Random numbers of each augmentation, independent of all others.

Shapes: B crops.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence

import numpy as np

from cytolake.models.seeding import normal, sample_bits, uniform


@enum.unique
class Draw(enum.IntEnum):
    """Purpose of a random number. A value is never reused for another purpose: runs must stay reproducible."""

    CROP_SCALE = 0
    CROP_PLACE = 1
    ROTATION = 2
    TRANSLATE = 3
    SHEAR = 4
    MAGNIFICATION = 5
    BLUR = 6
    DEFOCUS = 7
    RESOLUTION = 8
    BLEED_THROUGH = 9
    BLEED_THROUGH_SOURCE = 10
    GAMMA = 11
    CONTRAST = 12
    OFFSET = 13
    GAIN = 14
    NOISE = 15
    NOISE_PIXELS = 16
    ERASING = 17
    ERASING_PLACE = 18
    ERASING_ASPECT = 19
    CHANNEL_DROP = 20
    IDENTITY_DROP = 21
    CHANNEL_SHUFFLE = 22
    CHANNEL_ORDER = 23


_FLIP_ROTATE = 2  # purpose of `sample_bits`: even ones, a view each; masking has the odd ones
_FIRST = 1 << 40  # purposes of `sample_bits` from here on, 256 for each view, 2 for each `Draw`


class Draws:
    """Random numbers of one view of B crops; row b of every array depends on crop b alone, however many columns."""

    def __init__(
        self, seed: int, epochs: int | np.ndarray, sample_index: Sequence[int] | np.ndarray, view: int
    ) -> None:
        self._seed, self._epochs, self._sample_index, self._view = seed, epochs, np.asarray(sample_index), view

    def __len__(self) -> int:
        return len(self._sample_index)

    def turns(self) -> np.ndarray:
        """(B,) 0 to 7: quarter turns, 4 more where the crop is mirrored."""
        eighths: np.ndarray = (self._bits(_FLIP_ROTATE + 2 * self._view) % np.uint64(8)).astype(np.int64)
        return eighths

    def uniform(self, what: Draw, n: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """(B, n) float64 in [low, high)."""
        return low + (high - low) * uniform(self._bits(self._purpose(what)), n)

    def factor(self, what: Draw, n: int, most: float) -> np.ndarray:
        """(B, n) float64 in [1 / most, most), uniform in the logarithm."""
        factors: np.ndarray = np.exp(self.uniform(what, n, -math.log(most), math.log(most)))
        return factors

    def happens(self, what: Draw, n: int, probability: float) -> np.ndarray:
        """(B, n) bool, whether a change is made at all: independent of its strength."""
        return uniform(self._bits(self._purpose(what) + 1), n) < probability

    def normal(self, what: Draw, n: int) -> np.ndarray:
        """(B, n) float32, standard normal."""
        return normal(self._bits(self._purpose(what)), n)

    def _purpose(self, what: Draw) -> int:
        return _FIRST + 256 * self._view + 2 * int(what)

    def _bits(self, purpose: int) -> np.ndarray:
        return sample_bits(self._seed, self._epochs, self._sample_index, purpose)
