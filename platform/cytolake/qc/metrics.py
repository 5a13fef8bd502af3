"""What is measured on every site and channel before anyone judges it: light, focus, noise, background, debris, count.

Shapes: C channels, H by W pixels. Every shape-like metric (focus, noise, shares) is computed on the channel scaled to
0..1, so a gain on the whole image leaves it alone; the others are in counts. Noise is taken out of the focus metrics:
in BBBC006 camera noise made planes 20 um out of focus look sharper than those in focus (slope -2.6 against -4.2).
What needs no fine detail is read from the channel averaged over 2 x 2 (halved) or 4 x 4 pixels (quartered).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from cytolake.qc.constant_area import constant_area
from cytolake.qc.modality import is_transmitted
from cytolake.qc.transmitted_light import transmitted_foreground

Counts = NDArray[Any]  # any real type
Image = NDArray[np.float32]  # one channel, scaled to 0..1

METRICS = (
    "mean",
    "sd",
    "p01",
    "p50",
    "p99",
    "max",
    "saturated_share",
    "foreground_share",
    "focus_slope",
    "laplacian_variance",
    "noise_share",
    "brightest_share",
    "background_level",
    "tenengrad",
    "background_floor",
    "unevenness",
    "object_count",
    "common_brightness",
    "constant_area",
)
"""The metric columns of catalog/tables/qc_metrics.yaml, in its order."""

PERCENTILES = (1, 50, 99)
GRID = 16  # coarse cells along each side; 34 px on a 540 px site, wider than most nuclei at 20x
NOISE_SDS = 4.0  # 3e-5 of the pixels of an empty, white-noise image pass
FLAT_CONTRAST = 0.5  # p99 - p01 over the median: 0.1 in real brightfield, above 1.5 in every stained channel looked at
CONTRAST_SHARE = 0.1  # of p99 above background: keeps an uneven background from counting as cells
BACKGROUND_GRID = 8  # cells along each side: 24 px on a 192 px site, as wide as a nucleus with its surroundings
BLOB_SIGMAS = tuple(1.2 * 2 ** (k / 2) for k in range(7))  # quartered px; 6 differences: discs of 7 to 40 px radius


def measure_site(
    pixels: Counts, channels: Sequence[str] | None = None, types: Sequence[np.dtype[Any]] | None = None
) -> list[dict[str, float]]:
    """Measure every channel of one site.

    Args:
        pixels: (C, H, W), raw counts of any real type. NaN and infinity count as 0 and as the largest float32.
        channels: Their C names, which say where light is transmitted (`modality`); None: all are fluorescence. In
            transmitted light foreground is what differs from a bright background, `brightest_share` is of that
            difference, and the channel does not count in `common_brightness`.
        types: Pixel type of each channel's own file, where the array's is wider (8-bit brightfield next to 16-bit
            fluorescence); None: the array's.

    Returns:
        One dict for each channel, keys METRICS, every value finite. A constant channel has slope, variances, count and
        shares 0 (`saturated_share` is 1 where an integer channel stands at the top of its own type throughout) and
        `constant_area` 1.
        `common_brightness` belongs to the site and is the same in each; it is 0 with fewer than two channels that
        vary.

    Raises:
        ValueError: The array is not (C, H, W), an axis is empty, or there are as many names missing.
    """
    return measure_with_windows(pixels, (), channels, types)[0]


def measure_with_windows(
    pixels: Counts,
    windows: Sequence[tuple[int, int, int]],
    channels: Sequence[str] | None = None,
    types: Sequence[np.dtype[Any]] | None = None,
) -> tuple[list[dict[str, float]], NDArray[np.float64]]:
    """`measure_site` and `foreground_shares` of the same pixels, which share the costliest step.

    Args, Returns, Raises: As those two.
    """
    _check(pixels, windows, channels)
    measured = []
    shares = np.zeros((len(pixels), len(windows)))
    common, n_common = np.zeros((), np.float32), 0
    for index, channel in enumerate(pixels):
        own = channel if types is None else channel.astype(types[index], copy=False)  # exact: it was widened from it
        metrics, lit, mask = _measure_channel(_finite(own), channels[index] if channels else None)
        measured.append(metrics)
        if mask is not None and len(windows):
            shares[index] = _shares(mask, windows)
        if lit is not None:
            common = common + np.log(np.maximum(lit, 1e-3, out=lit))
            n_common += 1
    brightness = float(np.exp(common.max() / n_common)) if n_common > 1 else 0.0
    for metrics in measured:
        metrics["common_brightness"] = brightness
    return measured, shares.max(axis=0)


def foreground_shares(
    pixels: Counts, windows: Sequence[tuple[int, int, int]], channels: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Share of each window that is above background, in the channel that shows most there.

    The threshold is the site's, one for each channel, so an empty window of a full site reads 0.

    Args:
        pixels: (C, H, W), raw counts.
        windows: (y, x, size) of each square, inside the site.
        channels: As `measure_site`.

    Returns:
        (len(windows),), 0..1.

    Raises:
        ValueError: The array is not (C, H, W), an axis is empty, or a window is not inside the site.
    """
    _check(pixels, windows, channels)
    shares = np.zeros((len(pixels), len(windows)))
    for index, channel in enumerate(map(_finite, pixels)):
        scaled, low, span = _scale(channel)
        if span > 0:
            percentiles = _percentiles(channel, low)
            is_bright = channels is not None and is_transmitted(channels[index], percentiles.tolist())
            mask = _foreground(scaled, low / span, (percentiles - low) / span, is_bright).mask
            shares[index] = _shares(mask, windows)
    best: NDArray[np.float64] = shares.max(axis=0)
    return best


def _check(pixels: Counts, windows: Sequence[tuple[int, int, int]], channels: Sequence[str] | None) -> None:
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise ValueError(f"a site of shape {pixels.shape}; expected (channels, height, width), none of them 0.")
    if channels is not None and len(channels) != len(pixels):
        raise ValueError(f"{len(channels)} channel names for {len(pixels)} channels, expected as many. Name each.")
    _, height, width = pixels.shape
    for y, x, size in windows:
        if size < 1 or y < 0 or x < 0 or y + size > height or x + size > width:
            raise ValueError(
                f"window y={y} x={x} size={size} is not inside a site of {height} x {width} pixels. "
                "Lower the crop size, or exclude the site."
            )


def _shares(mask: NDArray[np.bool_], windows: Sequence[tuple[int, int, int]]) -> list[float]:
    """Share of each window that the mask covers."""
    summed = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    summed[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    return [(summed[y + s, x + s] - summed[y, x + s] - summed[y + s, x] + summed[y, x]) / s**2 for y, x, s in windows]


def _measure_channel(
    channel: Counts, name: str | None
) -> tuple[dict[str, float], Image | None, NDArray[np.bool_] | None]:
    """Every metric of one channel but `common_brightness`; the halved image over its typical lit level; foreground."""
    scaled, low, span = _scale(channel)
    if span == 0:
        is_top = np.issubdtype(channel.dtype, np.integer) and low == np.iinfo(channel.dtype).max
        flat = dict.fromkeys(METRICS, 0.0)
        in_counts = ("mean", "p01", "p50", "p99", "max", "background_level", "background_floor")
        flat.update(dict.fromkeys(in_counts, low))
        flat["saturated_share"] = float(is_top)
        flat["constant_area"] = 1.0
        return flat, None, None
    percentiles = _percentiles(channel, low)
    sd = float(scaled.std(dtype=np.float64))
    is_bright = name is not None and is_transmitted(name, percentiles.tolist())
    mask, background, noise_sd, difference = _foreground(scaled, low / span, (percentiles - low) / span, is_bright)
    halved = _halve(scaled)
    quartered = _halve(halved)
    floor = float(np.percentile(quartered, 2))
    lit = np.maximum(halved - np.float32(floor), 0)
    # The mean of the light, weighted by the light itself: it does not sink as cells get fewer, as a percentile does.
    typical = float(np.vdot(lit, lit)) / max(float(lit.sum(dtype=np.float64)), 1e-12)
    laplacian_variance, tenengrad = _sharpness(halved, sd)
    metrics = {
        "mean": float(channel.mean(dtype=np.float64)),
        "sd": span * sd,
        "p01": float(percentiles[0]),
        "p50": float(percentiles[1]),
        "p99": float(percentiles[2]),
        "max": low + span,
        "saturated_share": _saturated_share(scaled),
        "foreground_share": float(mask.mean()),
        "focus_slope": _focus_slope(scaled),
        "laplacian_variance": laplacian_variance,
        "noise_share": min(1.0, noise_sd / sd),
        "brightest_share": _brightest_share(scaled, mask, background)
        if difference is None
        else _brightest_share(difference / max(float(difference.max()), 1e-12), mask, 0.0),
        "background_level": low + span * background,
        "tenengrad": tenengrad,
        "background_floor": low + span * floor,
        "unevenness": _unevenness(quartered, (float(percentiles[2]) - low) / span - floor),
        "object_count": float(_count_objects(quartered, floor, typical, noise_sd)),
        "common_brightness": 0.0,
        "constant_area": constant_area(channel),
    }
    return metrics, lit / np.float32(typical) if typical > 0 and not is_bright else None, mask


def _finite(channel: Counts) -> Counts:
    if np.issubdtype(channel.dtype, np.integer):
        return channel
    top = float(np.finfo(np.float32).max)
    counts: Counts = np.clip(np.nan_to_num(channel.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0), -top, top)
    return counts


def _scale(channel: Counts) -> tuple[Image, float, float]:
    """The channel in 0..1, with its lowest count and its range. A range too small for float32 counts as 0."""
    low, high = float(channel.min()), float(channel.max())
    span = high - low
    if span <= np.finfo(np.float32).tiny:
        return np.zeros(channel.shape, np.float32), low, 0.0
    return ((channel - np.float64(low)) / span).astype(np.float32), low, span


def _percentiles(channel: Counts, low: float) -> NDArray[np.float64]:
    """PERCENTILES as numpy gives them; small integers are counted, which takes a quarter of the time of sorting."""
    if channel.dtype.kind not in "iu" or channel.dtype.itemsize > 2:
        found: NDArray[np.float64] = np.percentile(channel, PERCENTILES)
        return found
    below = np.cumsum(np.bincount(channel.ravel().astype(np.int32) - int(low)))
    place = np.array(PERCENTILES) / 100 * (channel.size - 1)
    lower, upper = (np.searchsorted(below, edge(place), side="right") for edge in (np.floor, np.ceil))
    return np.asarray(low + lower + (upper - lower) * (place % 1), np.float64)


def _halve(image: Image) -> Image:
    """Means of 2 x 2 pixels; the image itself where it has one row or column."""
    if min(image.shape) < 2:
        return image
    height, width = (n // 2 * 2 for n in image.shape)
    even = image[:height, :width]
    rows = even[::2] + even[1::2]
    return np.asarray((rows[:, ::2] + rows[:, 1::2]) * np.float32(0.25), np.float32)


class _Foreground(NamedTuple):
    mask: NDArray[np.bool_]
    background: float
    noise_sd: float
    difference: Image | None
    """From the background of transmitted light; None for fluorescence."""


def _foreground(scaled: Image, pedestal: float, percentiles: NDArray[np.float64], is_bright: bool) -> _Foreground:
    """Foreground mask, background level and noise sd of one channel in 0..1.

    Background is the 5th percentile of the cells of a coarse grid: it holds while one cell in twenty is empty. Where
    the whole range is small against the level it stands on (an empty field), foreground is texture above noise.
    """
    p01, p50, p99 = percentiles.tolist()
    coarse = _coarse_grid(scaled)
    background = float(np.percentile(coarse, 5))
    noise_sd = _noise_sd(scaled)
    smooth = ndimage.uniform_filter(scaled, 3, mode="nearest")
    floor = max(NOISE_SDS * noise_sd / 3, CONTRAST_SHARE * (p99 - p01))  # 3: nine pixels averaged
    if is_bright:
        mask, difference = transmitted_foreground(smooth, coarse, floor)
        return _Foreground(mask, background, noise_sd, difference)
    if p99 - p01 < FLAT_CONTRAST * (p50 + pedestal):
        spread = ndimage.uniform_filter(smooth**2, 9, mode="nearest")
        spread -= ndimage.uniform_filter(smooth, 9, mode="nearest") ** 2
        return _Foreground(spread > floor**2, background, noise_sd, None)
    threshold = max(NOISE_SDS * noise_sd / 3, CONTRAST_SHARE * (p99 - background))
    return _Foreground(smooth > background + max(threshold, 1e-6), background, noise_sd, None)


def _coarse_grid(scaled: Image) -> NDArray[np.float64]:
    """Means of a GRID by GRID tiling; the image itself where it is smaller."""
    rows, columns = (np.unique(np.linspace(0, n, GRID + 1)[:-1].astype(int)) for n in scaled.shape)
    sums = np.add.reduceat(np.add.reduceat(scaled, rows, axis=0, dtype=np.float64), columns, axis=1)
    heights, widths = np.diff([*rows, scaled.shape[0]]), np.diff([*columns, scaled.shape[1]])
    means: NDArray[np.float64] = sums / np.outer(heights, widths)
    return means


def _noise_sd(scaled: Image) -> float:
    """Sd of white noise from the median of a second-difference residual that cancels planes and edges.

    Source: Immerkaer 1996, doi:10.1006/cviu.1996.0060, with the median in place of the mean.
    """
    if min(scaled.shape) < 3:
        return 0.0
    across = scaled[:, :-2] - 2 * scaled[:, 1:-1] + scaled[:, 2:]
    residual = across[:-2] - 2 * across[1:-1] + across[2:]
    size = np.abs(residual, out=residual)
    median, share = float(np.median(size)), 1.0
    if median == 0 and size.any():
        # Sparse photons, few levels, or a background cut off at 0: where anything differs, it differs by this much.
        median, share = float(np.median(size[size > 0])), np.count_nonzero(size) / size.size
    return math.sqrt(share) * median / (0.6745 * 6.0)  # 6: norm of the 3x3 kernel; 0.6745: median -> sd


def _sharpness(halved: Image, sd: float) -> tuple[float, float]:
    """Variance of the Laplacian and mean square of the gradient (Tenengrad), both over the variance of the image.

    On the halved image, smoothed by a Gaussian of 1 px there, so that white noise all but cancels.

    Source: Pertuz et al. 2013, doi:10.1016/j.patcog.2012.11.011, operators LAP4 and GRA6; the smoothing is ours.
    """
    if min(halved.shape) < 4:
        return 0.0, 0.0
    smooth = ndimage.gaussian_filter(halved, 1.0, mode="nearest")
    middle, up, down = smooth[1:-1, 1:-1], smooth[:-2, 1:-1], smooth[2:, 1:-1]
    left, right = smooth[1:-1, :-2], smooth[1:-1, 2:]
    laplacian = up + down + left + right - 4 * middle
    gradient = float(np.mean(np.square(down - up) + np.square(right - left), dtype=np.float64)) / 4
    return float(laplacian.var(dtype=np.float64)) / sd**2, gradient / sd**2


def _unevenness(quartered: Image, contrast: float) -> float:
    """How far the background rises over the field: highest less lowest of a quadratic surface, over the contrast.

    The surface is fitted to the dark tenth of each cell of a coarse grid; cells that stand above it, where cells of
    the culture leave no background bare, are left out and the fit repeated: a crowded corner or middle does not count,
    a whole crowded side does. 0 for fields under 32 pixels.
    """
    n = BACKGROUND_GRID
    height, width = (size // n for size in quartered.shape)
    if min(height, width) < 1 or contrast <= 0:
        return 0.0
    tiles = quartered[: n * height, : n * width].reshape(n, height, n, width).swapaxes(1, 2).reshape(n * n, -1)
    dark = np.sort(tiles, axis=1)[:, tiles.shape[1] // 10].astype(np.float64)
    y, x = (axis.ravel() for axis in np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij"))
    terms = np.stack([np.ones(n * n), y, x, y * y, x * x, x * y], axis=1)
    is_bare = np.ones(n * n, bool)
    for _ in range(4):
        surface = terms @ np.linalg.lstsq(terms[is_bare], dark[is_bare], rcond=None)[0]
        above = dark - surface
        kept = above <= 2 * 1.4826 * float(np.median(np.abs(above)))
        if kept.sum() < n * n // 2 or (kept == is_bare).all():
            break
        is_bare = kept
    return float(surface.max() - surface.min()) / contrast


def _count_objects(quartered: Image, floor: float, typical: float, noise_sd: float) -> int:
    """Bright blobs of the size that stands out most in this channel: nuclei, where the channel shows nuclei.

    Peaks of a difference of Gaussians at the scale where it varies most, above a tenth of the typical lit level and
    above the noise. On 61 simulated fields of 384 px it correlated 0.7 with the true number of cells (ratio 1.1).

    Source: Lindeberg 1998, doi:10.1023/A:1008045108935, with one scale for the whole field.
    """
    if min(quartered.shape) < 8 or typical <= 0:
        return 0
    lit = np.maximum(quartered - np.float32(floor), 0)
    blurred = [ndimage.gaussian_filter(lit, sigma, mode="nearest", truncate=3.0) for sigma in BLOB_SIGMAS]
    differences = [fine - coarse for fine, coarse in itertools.pairwise(blurred)]
    scale = int(np.argmax([float(difference.var()) for difference in differences]))
    difference = differences[scale]
    noise = noise_sd / 4 * 0.28 / BLOB_SIGMAS[scale]  # 4: sixteen pixels averaged; 0.28: gain of a Gaussian of 1 px
    peaks = difference == ndimage.maximum_filter(difference, 3 if scale < 2 else 5, mode="nearest")
    return int((peaks & (difference > max(0.1 * typical, NOISE_SDS * noise))).sum())


def _saturated_share(scaled: Image) -> float:
    """Pixels piled up at the channel's own top, beyond what the levels just below it hold.

    The top is the channel's largest value, not the type's: 12-bit cameras clip at 4095 in 16-bit files. A level just
    below is the mean of those in the last 1/64 of the range, or the next one down where an 8-bit file has none there.
    """
    upper = scaled[scaled > 1 - 1 / 64]
    at_top = int((upper == 1).sum())
    levels = np.unique(upper)
    if len(levels) > 1:
        below = (len(upper) - at_top) / (len(levels) - 1)
    else:
        below = int((scaled == scaled[scaled < 1].max()).sum())
    return max(0.0, at_top - below) / scaled.size


@lru_cache(maxsize=8)
def _rings(height: int, width: int) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float32]]:
    """Ring of each rfft2 coefficient (0 = outside the band), log frequency of each ring, and the Hann window."""
    frequency = np.hypot(fft.fftfreq(height)[:, None], fft.rfftfreq(width)[None, :])
    edges = np.geomspace(max(4 / min(height, width), 1 / 64), 0.5, 25) if min(height, width) >= 16 else np.zeros(0)
    ring = np.searchsorted(edges, frequency.ravel(), side="right")
    ring[ring == len(edges)] = 0
    centres = np.log(np.sqrt(edges[:-1] * edges[1:])) if len(edges) else np.zeros(0)
    window = np.outer(np.hanning(height + 2)[1:-1], np.hanning(width + 2)[1:-1]).astype(np.float32)
    return ring.astype(np.intp), centres, window


def _focus_slope(scaled: Image) -> float:
    """Slope of log power on log frequency between 1/64 and 1/2 cycles per pixel, over what stands above the noise.

    The noise floor is the power at the highest frequencies; the fit ends where the signal sinks into it. 0 for images
    under 16 pixels, and where nothing stands above the floor: an empty image is not out of focus.

    Source: Field and Brady 1997; as a quality metric, Bray et al. 2012, doi:10.1177/1087057111420292.
    The floor is ours.
    """
    ring, log_frequency, window = _rings(*scaled.shape)
    if not len(log_frequency):
        return 0.0
    spectrum = fft.rfft2((scaled - scaled.mean()) * window)
    power = (spectrum.real**2 + spectrum.imag**2).ravel()
    n_rings = len(log_frequency)
    counts = np.bincount(ring, minlength=n_rings + 1)[1 : n_rings + 1]
    totals = np.bincount(ring, weights=power, minlength=n_rings + 1)[1 : n_rings + 1]
    usable = (counts > 0) & (totals > 0)
    log_frequency, power = log_frequency[usable], totals[usable] / counts[usable]
    if len(power) < 6:
        return 0.0
    floor = float(power[-2:].mean())
    sunk = np.flatnonzero(power < 2 * floor)
    end = int(sunk[0]) if len(sunk) else len(power)
    if end == 0:
        return 0.0
    end = max(end, 3)
    signal = np.log(np.maximum(power[:end] - floor, 0.05 * floor))
    return float(np.polyfit(log_frequency[:end], signal, 1)[0])


def _brightest_share(scaled: Image, mask: NDArray[np.bool_], background: float) -> float:
    """Share of the foreground signal in the one connected region that holds most of what is above half of the maximum.

    Cells reach that level in many places; a fibre or a clump of dye many times as bright as the cells stands alone.
    """
    total = float(scaled[mask].sum(dtype=np.float64)) - background * np.count_nonzero(mask)
    bright = mask & (scaled > (1 + background) / 2)
    regions, n_regions = ndimage.label(bright, structure=np.ones((3, 3)))
    if n_regions == 0 or total <= 0:
        return 0.0
    held = np.bincount(regions[bright], weights=scaled[bright] - np.float32(background))[1:]
    return float(np.clip(held.max() / total, 0.0, 1.0))
