"""Simulated artefacts, added to the image of a clean site with a severity from 0 (unchanged) to 1 (useless).

For tests, for figures of a detector, and as training examples where labelled ones are few. The strengths are those of a
microscope's typical failures; what a step takes away of the camera's grain is put back, so that no image is betrayed by
being too clean. The simulated screen has artefacts of its own (`simulated_imaging`): those act on the stain, before the
optics; these act on counts, of any screen.

Letters: C channels, H height and W width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, signal

Pixels = NDArray[Any]
Floats = NDArray[np.float64]

ARTEFACT_KINDS: Final = (
    "defocus",
    "saturation",
    "debris",
    "noise",
    "autofluorescence",
    "empty",
    "illumination_gradient",
    "tile_shift",
    "dead_channel",
    "channel_swap",
)
"""At severity s, where p99 and mean are counts above the channel's darkest pixels (its 0.1st percentile):

- `defocus`: Gaussian or disk of sd 10 s px.
- `saturation`: gain, until a share 0.3 s of the pixels reaches the top of the camera's range.
- `debris`: 1 to 5 fibres and blobs, 5 s times p99 at their brightest, in all channels.
- `noise`: Poisson at 10^(3 - 2 s) photons for p99, and a read noise of 2 photons.
- `autofluorescence`: a smooth field (DCT-II, the lowest 4 x 4 waves) of sd 2 s times the mean.
- `empty`: signal fades to the darkest patch of background; at 1 there is only that and camera noise.
- `illumination_gradient`: light falls across the site, to 1 - 0.8 s at the far side.
- `tile_shift`: what lies beyond a seam is displaced along it by a tenth of the edge times s.
- `dead_channel`: light is lost; at 1 there are only the darkest counts and camera noise.
- `channel_swap`: two channels mix; 0.5 is their mean, 1 has them exchanged.
"""

PHOTONS_AT_P99: Final = 1e3
READ_NOISE_PHOTONS: Final = 2.0
DEBRIS_PIECES: Final = 5
LOW_WAVES: Final = 4
_ONE_CHANNEL: Final = ("saturation", "noise", "autofluorescence", "dead_channel")
_CAMERA_BITS: Final = (8, 10, 12, 14, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Levels:
    """Levels of a channel."""

    dark: float
    """0.1st percentile: camera offset, and glow that is everywhere."""
    p99: float
    """Above `dark`."""
    mean: float
    """Above `dark`."""
    noise_sd: float


def add_artefact(
    pixels: Pixels,
    kind: str,
    severity: float,
    seed: int,
    channels: Sequence[int] | None = None,
    *,
    ceiling: float | None = None,
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Spoil the image of a site.

    The same seed places the same debris, seam or field at every severity.

    Args:
        pixels: (C, H, W) raw counts of any real type.
        kind: One of `ARTEFACT_KINDS`.
        severity: 0..1; 0 returns the pixels as they are.
        seed: Decides all that is random; 0 or more.
        channels: Which channels suffer. None: one drawn channel for saturation, noise, autofluorescence and
            dead_channel, two drawn ones for channel_swap, all of them otherwise.
        ceiling: Count at which the camera saturates. None: the smallest of 8, 10, 12, 14 and 16 bits that holds the
            image, or the image's own maximum where pixels are floats.

    Returns:
        (C, H, W) of the same type, a copy; and (C,) True where a channel was spoilt.

    Raises:
        ValueError: A kind, severity, shape or channel that is none; a swap that is not of two channels.
    """
    _check(pixels, kind, severity, seed)
    rng = np.random.default_rng([seed, ARTEFACT_KINDS.index(kind)])
    chosen = _channels(rng, kind, len(pixels), channels)
    affected = np.zeros(len(pixels), dtype=bool)
    if severity == 0:
        return pixels.copy(), affected
    affected[chosen] = True
    spoilt = pixels.copy()
    if kind == "channel_swap":
        first, second = (pixels[c].astype(np.float64) for c in chosen)
        for c, (own, other) in zip(chosen, ((first, second), (second, first)), strict=True):
            lost = np.sqrt(max(0.0, 1 - (1 - severity) ** 2 - severity**2))
            grain = rng.standard_normal(own.shape) * lost * _noise_sd(own)
            spoilt[c] = _as_counts((1 - severity) * own + severity * other + grain, pixels.dtype, None)
        return spoilt, affected
    tint = np.exp(0.3 * rng.standard_normal(len(pixels)))  # debris does not glow alike in all channels
    shared = _shared(rng, kind, severity, seed, pixels.shape[1:])
    for c in chosen:
        image = pixels[c].astype(np.float64)
        top = _ceiling(pixels[c]) if ceiling is None else ceiling
        limit = top if kind == "saturation" else None
        spoilt[c] = _as_counts(
            _spoil(rng, image, kind, severity, shared, float(tint[c]), top, _levels(image)), pixels.dtype, limit
        )
    return spoilt, affected


def _check(pixels: Pixels, kind: str, severity: float, seed: int) -> None:
    if kind not in ARTEFACT_KINDS:
        raise ValueError(f"artefact kind {kind!r}: expected one of {', '.join(ARTEFACT_KINDS)}.")
    if not 0 <= severity <= 1:
        raise ValueError(f"artefact {kind}: severity {severity}, expected 0 (untouched) to 1 (useless).")
    if seed < 0:
        raise ValueError(f"artefact {kind}: seed {seed}, expected 0 or more.")
    if pixels.ndim != 3 or 0 in pixels.shape or min(pixels.shape[1:]) < 16:
        raise ValueError(
            f"artefact {kind}: a site of shape {pixels.shape}, expected (channels, height, width) of at least 16 x 16 "
            "pixels."
        )


def _channels(rng: np.random.Generator, kind: str, n: int, wanted: Sequence[int] | None) -> list[int]:
    if wanted is not None:
        chosen = [int(c) for c in wanted]
        if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= c < n for c in chosen):
            raise ValueError(
                f"artefact {kind}: channels {chosen or 'none'} of a site with {n}; expected different ones, "
                f"0 to {n - 1}."
            )
    elif kind == "channel_swap":
        chosen = sorted(int(c) for c in rng.permutation(n)[:2])
    else:
        chosen = [int(rng.integers(n))] if kind in _ONE_CHANNEL else list(range(n))
    if kind == "channel_swap" and len(chosen) != 2:
        raise ValueError(f"artefact channel_swap: {len(chosen)} of {n} channels, expected two to exchange.")
    return chosen


def _shared(rng: np.random.Generator, kind: str, severity: float, seed: int, shape: tuple[int, ...]) -> Floats:
    """Random fields that all channels of the site share."""
    height, width = shape
    if kind == "debris":
        n_pieces = int(np.ceil(DEBRIS_PIECES * severity))
        pieces = [_piece(np.random.default_rng([seed, 99, i]), height, width) for i in range(n_pieces)]
        return np.asarray(np.max(pieces, axis=0))
    if kind == "illumination_gradient":
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.add.outer(np.sin(angle) * np.linspace(-1, 1, height), np.cos(angle) * np.linspace(-1, 1, width))
        return np.asarray((ramp - ramp.min()) / np.ptp(ramp))
    if kind == "tile_shift":  # across rows or columns, where the seam is (share of the edge), which way
        return np.array([rng.integers(2), rng.uniform(0.25, 0.75), rng.choice([-1, 1])])
    if kind == "defocus":  # Gaussian or disk
        return np.array([rng.integers(2)])
    return np.zeros(0)


def _spoil(
    rng: np.random.Generator,
    image: Floats,
    kind: str,
    severity: float,
    shared: Floats,
    tint: float,
    top: float,
    levels: _Levels,
) -> Floats:
    above = image - levels.dark
    if kind == "defocus":
        blurred, kept = _defocus(image, 10 * severity, is_disk=bool(shared[0]))
        return np.asarray(blurred + rng.standard_normal(image.shape) * levels.noise_sd * np.sqrt(max(0.0, 1 - kept)))
    if kind == "saturation":
        level = float(np.quantile(image, 1 - 0.3 * severity)) - levels.dark
        gain = max(1.0, (top - levels.dark) / level) if level > 0 else 1.0
        return np.asarray(np.minimum(levels.dark + gain * above, top))
    if kind == "debris":
        return image + 5 * severity * tint * levels.p99 * shared
    if kind == "noise":
        if levels.p99 <= 0:
            return image
        photons_per_count = PHOTONS_AT_P99 * 10 ** (-2 * severity) / levels.p99
        photons = rng.poisson(np.maximum(above, 0) * photons_per_count)
        grain = rng.standard_normal(image.shape) * READ_NOISE_PHOTONS
        return np.asarray(levels.dark + np.minimum(above, 0) + (photons + grain) / photons_per_count)
    if kind == "autofluorescence":
        waves = np.zeros(image.shape)
        waves[:LOW_WAVES, :LOW_WAVES] = rng.standard_normal((LOW_WAVES, LOW_WAVES))
        waves[0, 0] = 0
        field = fft.idctn(waves, type=2, norm="ortho")
        field *= 2 * severity * levels.mean / field.std()
        return np.asarray(image + field - field.min())
    if kind == "empty":
        level, noise_sd = _darkest_patch(image)
        return _fade(rng, image, level, noise_sd, severity)
    if kind == "illumination_gradient":
        return levels.dark + above * (1 - 0.8 * severity * shared)
    if kind == "tile_shift":
        return _tile_shift(image, severity, shared)
    _, noise_sd = _darkest_patch(image)  # dead_channel
    return _fade(rng, image, levels.dark, noise_sd, severity)


def _fade(rng: np.random.Generator, image: Floats, level: float, noise_sd: float, severity: float) -> Floats:
    grain = rng.standard_normal(image.shape) * noise_sd * np.sqrt(1 - (1 - severity) ** 2)
    return np.asarray((1 - severity) * image + severity * level + grain)


def _defocus(image: Floats, sigma: float, *, is_disk: bool) -> tuple[Floats, float]:
    """The blurred image, and the share of the variance of white noise that the blur leaves."""
    if not is_disk:
        reach = int(np.ceil(4 * sigma))
        point = np.zeros(2 * reach + 1)
        point[reach] = 1
        kernel = ndimage.gaussian_filter1d(point, sigma)
        return ndimage.gaussian_filter(image, sigma, mode="reflect"), float((kernel**2).sum() ** 2)
    radius = 2 * sigma  # a disk's sd along one axis is half its radius
    reach = min(int(np.ceil(radius)) + 1, min(image.shape) - 1)
    offsets = np.arange(-reach, reach + 1)
    disk = np.clip(radius + 0.5 - np.hypot(offsets[:, None], offsets[None, :]), 0, 1)
    disk /= disk.sum()
    padded = np.pad(image, reach, mode="reflect")
    return np.asarray(signal.fftconvolve(padded, disk, mode="valid")), float((disk**2).sum())


def _tile_shift(image: Floats, severity: float, seam: Floats) -> Floats:
    axis, place, way = int(seam[0]), float(seam[1]), int(seam[2])
    turned = image if axis == 0 else image.T
    shift = way * max(1, round(0.1 * severity * turned.shape[1]))
    start = round(place * len(turned))
    tile = np.pad(turned[start:], ((0, 0), (abs(shift), abs(shift))), mode="reflect")
    first = abs(shift) - shift
    shifted = np.concatenate([turned[:start], tile[:, first : first + turned.shape[1]]])
    return shifted if axis == 0 else shifted.T


def _piece(rng: np.random.Generator, height: int, width: int) -> Floats:
    """One fibre (a walk that slowly turns) or blob: (H, W), brightest 0.7 to 1."""
    edge = min(height, width)
    at = np.array([rng.uniform(0.1, 0.9) * height, rng.uniform(0.1, 0.9) * width])
    is_fibre, width_px, heading = rng.random() < 0.5, edge * rng.uniform(0.008, 0.016), rng.uniform(0, 2 * np.pi)
    drawn = np.zeros((height, width))
    if is_fibre:
        n_steps = int(edge * rng.uniform(0.15, 0.5))
        headings = heading + np.cumsum(rng.normal(0, 0.08, n_steps))
        walk = at[:, None] + np.cumsum([np.sin(headings), np.cos(headings)], axis=1)
        rows, columns = np.rint(walk).astype(int)
        is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        drawn[rows[is_inside], columns[is_inside]] = 1
    drawn[int(at[0]), int(at[1])] = 1
    blurred: Floats = ndimage.gaussian_filter(drawn, max(1.0, width_px if is_fibre else 3 * width_px))
    return np.asarray(blurred * rng.uniform(0.7, 1.0) / blurred.max())


def _levels(image: Floats) -> _Levels:
    dark, p99 = np.percentile(image, (0.1, 99))
    return _Levels(dark=float(dark), p99=float(p99 - dark), mean=float(image.mean() - dark), noise_sd=_noise_sd(image))


def _darkest_patch(image: Floats) -> tuple[float, float]:
    """Mean and noise sd of the darkest square of an eighth of the edge."""
    size = max(8, min(image.shape) // 8)
    means = ndimage.uniform_filter(image, size, mode="nearest")
    half = size // 2
    inner = means[half : len(means) - half, half : means.shape[1] - half]
    y, x = np.unravel_index(int(inner.argmin()), inner.shape)
    patch = image[y : y + size, x : x + size]
    return float(patch.mean()), _noise_sd(patch)


def _noise_sd(image: Floats) -> float:
    """Sd of white noise, from second differences that cancel planes and edges (Immerkaer 1996)."""
    across = image[:, :-2] - 2 * image[:, 1:-1] + image[:, 2:]
    residual = across[:-2] - 2 * across[1:-1] + across[2:]
    return float(np.median(np.abs(residual))) / (0.6745 * 6.0)  # 6: norm of the kernel; 0.6745: median -> sd


def _ceiling(channel: Pixels) -> float:
    highest = float(channel.max())
    if not np.issubdtype(channel.dtype, np.integer):
        return highest
    limit = float(np.iinfo(channel.dtype).max)
    tops = [2.0**bits - 1 for bits in _CAMERA_BITS]
    return next((top for top in tops if highest <= top <= limit), limit)


def _as_counts(image: Floats, dtype: np.dtype[Any], ceiling: float | None) -> Pixels:
    if ceiling is not None:
        image = np.minimum(image, ceiling)
    if np.issubdtype(dtype, np.integer):
        info = np.iinfo(dtype)
        image = np.clip(np.rint(image), info.min, info.max)
    return image.astype(dtype)
