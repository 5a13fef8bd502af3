"""Features of a site for an artefact detector: statistics of every channel, relative to the site's plate.

The statistics vector is the baseline for every encoder. It holds the metrics of `qc_metrics`, and in addition seams,
illumination gradients, low spatial frequencies and correlations of channels (a swapped channel is a good image in the
wrong place).

Plates differ in stain and exposure, so features are distances from the plate's median in the plate's robust deviations.
Most sites of a plate have no artefact, so the reference needs no labels.

Letters: N sites, C channels, F features of a channel, H and W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from cytolake.qc.image_statistics import noise_sd, tile_means
from cytolake.qc.metrics import METRICS, measure_site
from cytolake.statistics.unit_vectors import unit_vectors

Pixels = NDArray[Any]
Numbers = NDArray[np.float64]
Image = NDArray[np.float32]

_MEASURED = tuple(name for name in METRICS if name != "constant_area")
"""Metrics without those added later: a stored detector accepts only the features that it was fitted to."""
EXTRA_STATISTICS = (
    "p05",
    "p95",
    "skewness",
    "kurtosis",
    "noise_sd",
    "seam_rows",
    "seam_columns",
    "slope_rows",
    "slope_columns",
    "low_waves",
    "quarter_ratio",
)
"""Counts for percentiles and the noise's sd; the others have no unit. `seam_*`: the
largest step between neighbouring rows (columns) over what is usual around it. `slope_*`: how far the light falls from
one edge to the other, over the mean. `low_waves`: sd of the lowest 4 x 4 waves over the mean. `quarter_ratio`:
background of the darkest quarter over that of the brightest."""

RELATIONS = ("correlation_mean", "correlation_low", "correlation_high", "correlation_distance")
"""A channel's correlations with the others, each in the plate's deviations: mean, lowest, highest, and the distance
of all of them together from the plate's."""

_DEVIATIONS_MAX = 1e4  # larger deviations carry no more information


@dataclass(frozen=True, slots=True)
class RawFeatures:
    """Features of one site in their own units."""

    channels: tuple[str, ...]
    values: Numbers
    """(C, F)"""
    correlation: Numbers
    """(C, C) Pearson over pixels, -1..1; 0 where a channel is constant."""


class FeatureExtractor(Protocol):
    """Measures features of sites. `key` changes whenever the features change."""

    @property
    def key(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the F features."""
        ...

    def measure(self, sites: Sequence[Pixels], channels: Sequence[tuple[str, ...]], scale: PlateScale) -> list[Numbers]:
        """(C, F) features of each site of one plate.

        Args:
            sites: (C, H, W) raw counts each.
            scale: Of the plate.
        """
        ...


@dataclass(frozen=True, slots=True)
class PlateScale:
    """Range of counts of each channel of a plate, common to all its sites.

    Scaling each image by its own range would hide saturation and emptiness.
    """

    ranges: dict[str, tuple[float, float]]
    """Stain to the 0.1st and 99.9th percentile of its counts over the plate."""

    def apply(self, pixels: Pixels, channels: Sequence[str]) -> NDArray[np.float32]:
        """(C, H, W) in 0..1, clipped to the plate's range; a stain without a range there gives 0."""
        scaled = np.zeros(pixels.shape, np.float32)
        for c, name in enumerate(channels):
            low, high = self.ranges.get(name, (0.0, 0.0))
            if high > low:
                scaled[c] = np.clip((pixels[c].astype(np.float32) - low) / (high - low), 0, 1)
        return scaled


def plate_scale(sites: Sequence[Pixels], channels: Sequence[tuple[str, ...]]) -> PlateScale:
    """Measure the range of each stain over sites of one plate, on at most 20,000 pixels of each site."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for pixels, names in zip(sites, channels, strict=True):
        step = max(1, math.isqrt(pixels.shape[1] * pixels.shape[2] // 20_000))
        for c, name in enumerate(names):
            found.setdefault(name, []).append(pixels[c, ::step, ::step].ravel().astype(np.float32))
    ranges = {}
    for name, counts in found.items():
        low, high = np.percentile(np.concatenate(counts), (0.1, 99.9))
        ranges[name] = (float(low), float(high))
    return PlateScale(ranges)


class SiteStatistics:
    """Extractor of the statistics vector of each channel."""

    @property
    def key(self) -> str:
        return f"statistics/1/{','.join(self.names)}"

    @property
    def names(self) -> tuple[str, ...]:
        return (*_MEASURED, *EXTRA_STATISTICS)

    def measure(self, sites: Sequence[Pixels], channels: Sequence[tuple[str, ...]], scale: PlateScale) -> list[Numbers]:
        return [
            np.array(
                [
                    [*(metrics[name] for name in _MEASURED), *_extra_statistics(channel)]
                    for metrics, channel in zip(measure_site(pixels), pixels, strict=True)
                ]
            )
            for pixels in sites
        ]


def measure_sites(
    sites: Sequence[Pixels],
    channels: Sequence[tuple[str, ...]],
    extractors: Sequence[FeatureExtractor],
    scale: PlateScale,
) -> list[RawFeatures]:
    """Measure sites of one plate: the concatenated features of the extractors, and correlations of channels.

    Args:
        sites: (C, H, W) raw counts each.
        extractors: One or more.
        scale: Of the plate, `plate_scale`.

    Raises:
        ValueError: The numbers of stains and channels differ.
    """
    for i, (pixels, names) in enumerate(zip(sites, channels, strict=True)):
        if pixels.ndim != 3 or len(pixels) != len(names):
            raise ValueError(f"site {i}: pixels of shape {pixels.shape} for {len(names)} stains ({', '.join(names)}).")
    parts = [extractor.measure(sites, channels, scale) for extractor in extractors]
    return [
        RawFeatures(tuple(names), np.concatenate(values, axis=1), _correlations(pixels))
        for pixels, names, *values in zip(sites, channels, *parts, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class PlateReference:
    """Reference of one plate: median and robust deviation of every feature of every stain and pair of stains."""

    features: dict[str, tuple[Numbers, Numbers]]
    """Stain to (F,) medians and (F,) deviations."""
    pairs: dict[tuple[str, str], tuple[float, float]]

    def deviations(self, site: RawFeatures) -> Numbers:
        """(C, F + len(RELATIONS)): features of one site in deviations from the plate's median.

        A channel whose stain the plate's other sites do not have is compared with itself: all 0.
        """
        rows = np.zeros((len(site.channels), site.values.shape[1] + len(RELATIONS)))
        for c, name in enumerate(site.channels):
            if name in self.features:
                median, deviation = self.features[name]
                rows[c, : len(median)] = (site.values[c] - median) / deviation
            apart = [
                (site.correlation[c, d] - self.pairs[name, other][0]) / self.pairs[name, other][1]
                for d, other in enumerate(site.channels)
                if d != c and (name, other) in self.pairs
            ]
            if apart:
                rows[c, -len(RELATIONS) :] = (
                    np.mean(apart), np.min(apart), np.max(apart), math.sqrt(float(np.mean(np.square(apart)))),
                )  # fmt: skip
        return np.asarray(np.clip(np.nan_to_num(rows), -_DEVIATIONS_MAX, _DEVIATIONS_MAX))


def plate_reference(sites: Sequence[RawFeatures]) -> PlateReference:
    """Estimate the reference from sites of one plate, most of them without artefacts. No labels are needed.

    Deviations are 1.4826 times the median absolute deviation, and never less than a fiftieth of the median or of what
    the plate's other features vary by: a feature that never moves must not shout when it does by a rounding error.
    """
    found: dict[str, list[Numbers]] = {}
    pairs: dict[tuple[str, str], list[float]] = {}
    for site in sites:
        for c, name in enumerate(site.channels):
            found.setdefault(name, []).append(site.values[c])
            for d, other in enumerate(site.channels):
                if d != c:
                    pairs.setdefault((name, other), []).append(float(site.correlation[c, d]))
    features = {name: _usual(np.stack(rows), share=0.02, least=1e-3) for name, rows in found.items()}
    usual = {pair: _usual(np.array(values)[:, None], share=0.0, least=0.02) for pair, values in pairs.items()}
    return PlateReference(
        features, {pair: (float(median[0]), float(deviation[0])) for pair, (median, deviation) in usual.items()}
    )


def feature_names(extractors: Sequence[FeatureExtractor]) -> tuple[str, ...]:
    """Names of the columns of `PlateReference.deviations`."""
    return (*(name for extractor in extractors for name in extractor.names), *RELATIONS)


def _usual(values_NF: Numbers, share: float, least: float) -> tuple[Numbers, Numbers]:
    median = np.median(values_NF, axis=0)
    deviation = 1.4826 * np.median(np.abs(values_NF - median), axis=0)  # 1.4826: MAD -> sd of a normal
    return median, np.maximum(deviation, np.maximum(share * np.abs(median), least))


def _extra_statistics(channel: Pixels) -> list[float]:
    image = channel.astype(np.float32)  # counts up to 2**24 are exact
    if not np.issubdtype(channel.dtype, np.integer):
        image = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    p05, p95, bright = np.percentile(image, (5, 95, 99.5))
    mean = float(image.mean(dtype=np.float64))
    unit = image - np.float32(mean)
    square = unit * unit
    sd = math.sqrt(float(square.mean(dtype=np.float64)))
    cube = float((square * unit).mean(dtype=np.float64)) / max(sd, 1e-9) ** 3
    fourth = float((square * square).mean(dtype=np.float64)) / max(sd, 1e-9) ** 4
    clipped = np.minimum(image, np.float32(bright))
    coarse = tile_means(image, 16)
    level = max(float(coarse.mean()), 1e-9)
    rows = np.linspace(-0.5, 0.5, len(coarse))
    columns = np.linspace(-0.5, 0.5, coarse.shape[1])
    waves = fft.dctn(coarse, type=2, norm="ortho")[:4, :4]
    waves[0, 0] = 0
    half = (len(coarse) + 1) // 2, (coarse.shape[1] + 1) // 2
    quarters = [np.percentile(part, 20) for side in (coarse[: half[0]], coarse[half[0] :]) if side.size
                for part in (side[:, : half[1]], side[:, half[1] :]) if part.size]  # fmt: skip
    return [
        float(p05), float(p95), cube, fourth, noise_sd(image),
        _seam(clipped), _seam(clipped.T),
        float(rows @ coarse.mean(axis=1) / max(rows @ rows, 1e-9) / level),
        float(columns @ coarse.mean(axis=0) / max(columns @ columns, 1e-9) / level),
        float(np.sqrt((waves**2).sum() / coarse.size) / level),
        float(min(quarters) / max(*quarters, 1e-9)),
    ]  # fmt: skip


def _seam(image: Image) -> float:
    """Largest mean step from one row to the next, over the median of the steps around it."""
    steps = np.abs(np.diff(image, axis=0)).mean(axis=1, dtype=np.float64)
    if len(steps) < 3 or not steps.any():
        return 1.0
    usual = ndimage.median_filter(steps, size=min(11, len(steps) // 2 * 2 - 1), mode="nearest")
    return float((steps / np.maximum(usual, 1e-3 * steps.max())).max())


def _correlations(pixels: Pixels) -> Numbers:
    flat = np.nan_to_num(pixels.reshape(len(pixels), -1).astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    flat = flat - flat.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    unit = unit_vectors(flat)
    return np.asarray(unit @ unit.T, np.float64)
