"""Random numbers that depend on the crop alone, so that the number of workers does not matter. Every draw is a function
of (seed, epoch, global sample index, purpose). Source: SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195,
used as a counter-based generator.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, SplitMix64's increment


def sample_bits(
    seed: int, epoch: int | np.ndarray, sample_index: Sequence[int] | np.ndarray, purpose: int
) -> np.ndarray:
    """(B,) uint64, 64 random bits for each global sample index; `purpose` keeps masks and flips independent.

    `epoch` is one number, or (B,) where the samples are of several epochs.
    """
    bits = np.zeros(len(sample_index), dtype=np.uint64)
    for part in (seed, epoch, purpose):
        bits = _mix(bits + np.atleast_1d(np.asarray(part, dtype=np.int64)).astype(np.uint64))
    return _mix(bits + np.asarray(sample_index, dtype=np.int64).astype(np.uint64))


def uniform(bits: np.ndarray, n: int) -> np.ndarray:
    """(B, n) float64 in [0, 1) for (B,) uint64 bits of `sample_bits`: row b depends on bits b alone."""
    counter = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(bits[:, None] + counter[None, :]) >> np.uint64(11)).astype(np.float64) / 2.0**53


def normal(bits: np.ndarray, n: int) -> np.ndarray:
    """(B, n) float32 standard normal for (B,) uint64 bits of `sample_bits`: row b depends on bits b alone.

    Takes one of 65,536 equally likely values, none beyond 4.33, which is enough for the noise of an image and several
    times as fast as a transform of `uniform`.
    """
    counter = np.arange(1, -(-n // 4) + 1, dtype=np.uint64) * _GOLDEN
    quarters = _mix(bits[:, None] + counter[None, :]).astype("<u8", copy=False).view("<u2")
    values: np.ndarray = _normal_values().take(quarters[:, :n])
    return values


@functools.cache
def _normal_values() -> np.ndarray:
    """(65536,) float32, the normal distribution's quantiles in the middle of equal steps, scaled to variance 1."""
    steps = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    quantiles = torch.special.ndtri(steps).numpy()
    values: np.ndarray = (quantiles / quantiles.std()).astype(np.float32)
    return values


def _mix(bits: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser on an array; wraps around at 64 bits, as meant."""
    bits = bits + _GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed
