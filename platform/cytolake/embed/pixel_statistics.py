"""The baseline without an encoder: classical statistics of a crop's raw pixels.

Shapes: B crops, C channels, S side of a crop in pixels, P channel pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.unit_vectors import unit_vectors

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
STATISTICS = (
    "mean", "sd", "skewness", "kurtosis", *(f"p{q:02d}" for q in PERCENTILES), "laplacian_variance", "gradient_energy",
)  # fmt: skip
"""Per channel. Counts, but for skewness and excess kurtosis (no unit); the last two are counts squared."""
MODEL = "pixel_statistics/1"
"""Names this exact list of numbers; a change of any of them takes a new number."""
ALL = "all"
VARIANTS = (ALL, "log", "intensity", "texture")
"""Forms of the vector, each a representation: a baseline may choose among several as an encoder does among its blocks.
`all` numbers; `log`, the same with sign(x) log(1 + |x|) of those in counts; `intensity`, the mean, standard deviation
and percentiles; `texture`, all others, which a change of brightness or offset hardly moves."""
_INTENSITY = ("mean", "sd", *(f"p{q:02d}" for q in PERCENTILES))
_IN_COUNTS = (*_INTENSITY, "laplacian_variance", "gradient_energy")


class PixelStatistics:
    """Turns crops of one pack into vectors of one length.

    Where all crops have the same stains, the vector is the statistics of each stain, in alphabetical order, and the
    correlation of each pair of stains. In a pack of mixed stains no position could stand for one stain, so it is the
    mean and the maximum over a crop's channels of each statistic, and the mean, minimum and maximum of its
    correlations: it knows nothing about which stain is which, and not how many there are.
    """

    def __init__(self, channel_sets: Sequence[tuple[str, ...]]) -> None:
        """Choose the form of the vector.

        Args:
            channel_sets: Stains of the pack's crops; repeats do not matter.
        """
        sets = {tuple(sorted(channels)) for channels in channel_sets}
        if not sets or () in sets:
            raise ValueError("pixel statistics need at least one crop, and at least one channel in each.")
        only = next(iter(sets)) if len(sets) == 1 else None
        self.channels = only if only is not None and len(set(only)) == len(only) else None
        """Stains in the order of the vector; None for a pack of mixed stains."""

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of the vector is."""
        if self.channels is None:
            pooled = tuple(f"{pool} of {name}" for pool in ("mean", "max") for name in STATISTICS)
            return (*pooled, *(f"{pool} of correlation" for pool in ("mean", "min", "max")))
        each = tuple(f"{channel} {name}" for channel in self.channels for name in STATISTICS)
        return (*each, *(f"{a} x {b} correlation" for a, b in combinations(self.channels, 2)))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return len(self.names)

    def variant(self, vectors_BD: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        """(B, D') one of `VARIANTS` of vectors that `measure` gave."""
        if name == ALL:
            return vectors_BD
        if name == "log":
            is_count = np.asarray([each.split(" ")[-1] in _IN_COUNTS for each in self.names])
            return np.where(is_count, np.sign(vectors_BD) * np.log1p(np.abs(vectors_BD)), vectors_BD).astype(np.float32)
        return np.ascontiguousarray(vectors_BD[:, self._columns(name)])

    def variant_dim(self, name: str) -> int:
        """Length of a vector of one of `VARIANTS`."""
        return self.dim if name in (ALL, "log") else len(self._columns(name))

    def _columns(self, name: str) -> list[int]:
        is_intensity = [each.split(" ")[-1] in _INTENSITY for each in self.names]
        return [i for i, each in enumerate(is_intensity) if each == (name == "intensity")]

    def measure(
        self, images: Sequence[NDArray[np.generic]], channels: Sequence[tuple[str, ...]]
    ) -> NDArray[np.float32]:
        """(B, dim) vectors.

        Args:
            images: One (C_i, S, S) array of raw counts for each crop.
            channels: Its stains, in the order of its first axis.
        """
        vectors = np.empty((len(images), self.dim), dtype=np.float32)
        by_count: dict[int, list[int]] = {}
        for i, image in enumerate(images):
            by_count.setdefault(len(image), []).append(i)
        for members in by_count.values():
            pixels = np.stack([self._ordered(images[i], channels[i]) for i in members]).astype(np.float32)
            statistics, correlations = channel_statistics(pixels), channel_correlations(pixels)
            vectors[members] = self._vector(statistics, correlations)
        return vectors

    def _ordered(self, image: NDArray[np.generic], channels: tuple[str, ...]) -> NDArray[np.generic]:
        if self.channels is None or channels == self.channels:
            return image
        return image[[channels.index(name) for name in self.channels]]

    def _vector(self, statistics_BCF: NDArray[np.float32], correlations_BP: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.channels is not None:
            return np.concatenate([statistics_BCF.reshape(len(statistics_BCF), -1), correlations_BP], axis=1)
        if correlations_BP.shape[1] == 0:
            correlations_BP = np.zeros((len(correlations_BP), 1), dtype=np.float32)
        pools = [
            statistics_BCF.mean(axis=1), statistics_BCF.max(axis=1),
            *(pool(correlations_BP, axis=1)[:, None] for pool in (np.mean, np.min, np.max)),
        ]  # fmt: skip
        return np.concatenate(pools, axis=1)


def channel_statistics(pixels_BCSS: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, C, len(STATISTICS)) of each channel; skewness and kurtosis of a constant channel are 0."""
    flat = pixels_BCSS.reshape(*pixels_BCSS.shape[:2], -1)
    mean = flat.mean(axis=-1, dtype=np.float64)
    centred = flat - mean[..., None].astype(np.float32)
    variance = np.square(centred, dtype=np.float64).mean(axis=-1)
    sd = np.sqrt(variance)
    unit = centred / np.where(sd > 0, sd, 1)[..., None]
    square = unit * unit
    skewness = (square * unit).mean(axis=-1)
    kurtosis = np.where(sd > 0, (square * square).mean(axis=-1) - 3, 0)
    percentiles = np.moveaxis(np.percentile(flat, PERCENTILES, axis=-1), 0, -1)
    laplacian = (
        pixels_BCSS[..., :-2, 1:-1] + pixels_BCSS[..., 2:, 1:-1] + pixels_BCSS[..., 1:-1, :-2]
        + pixels_BCSS[..., 1:-1, 2:] - 4 * pixels_BCSS[..., 1:-1, 1:-1]
    )  # fmt: skip
    down = (pixels_BCSS[..., 2:, 1:-1] - pixels_BCSS[..., :-2, 1:-1]) / 2
    right = (pixels_BCSS[..., 1:-1, 2:] - pixels_BCSS[..., 1:-1, :-2]) / 2
    last_two = laplacian.var(axis=(-2, -1)), (down * down + right * right).mean(axis=(-2, -1))
    single = np.stack([mean, sd, skewness, kurtosis], axis=-1)
    return np.concatenate([single, percentiles, np.stack(last_two, axis=-1)], axis=-1).astype(np.float32)


def channel_correlations(pixels_BCSS: NDArray[np.float32]) -> NDArray[np.float32]:
    """(B, P) Pearson correlation of each pair of channels over pixels, -1..1; 0 where a channel is constant."""
    flat = pixels_BCSS.reshape(*pixels_BCSS.shape[:2], -1)
    centred = flat - flat.mean(axis=-1, keepdims=True, dtype=np.float64).astype(np.float32)
    unit = unit_vectors(centred)
    gram = unit @ unit.swapaxes(-1, -2)
    first, second = np.triu_indices(flat.shape[1], k=1)
    return np.asarray(gram[:, first, second], dtype=np.float32)
