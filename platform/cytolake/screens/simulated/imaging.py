"""The microscope of the simulated screen: staining, optics, camera, and artefacts of a field.

Batch effects change how the same cells look; artefacts affect single fields. Neither depends on the treatment.

Letters in names of arrays: C channels, Y and X pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]

ARTEFACTS: Final = ("blur", "saturation", "debris", "empty", "noise", "autofluorescence")
CAMERA_MAX: Final = 65535

_COUNTS_PER_STAIN: Final = 900.0
_PHOTONS_PER_COUNT: Final = 0.03


@dataclass(frozen=True, kw_only=True, slots=True)
class Microscope:
    """How one plate was stained and imaged; one value for each channel unless said otherwise."""

    gain: Floats
    """Counts for each unit of stain, relative to the typical microscope."""
    gamma: Floats
    """Exponent of the stain's response; 1 is linear."""
    background: Floats
    """Glow of medium and plastic, counts before the camera's offset."""
    blur_px: Floats
    """Standard deviation of the point spread function."""
    bleed: Floats
    """(C, C), share of the stain in column seen in row's channel; the diagonal is 1."""
    shade: Floats
    """(C, 3), illumination: how much the field's corner loses, and the brightest point's y and x (-1..1)."""
    offset: float
    """Camera offset, counts, the same for all channels."""
    read_noise: float
    """Counts, standard deviation, the same for all channels."""


def draw_microscope(
    batch_rng: np.random.Generator, plate_rng: np.random.Generator, n_channels: int, strength: float
) -> Microscope:
    """Draw the staining and optics of a plate: mostly its batch's, with a smaller plate-to-plate part.

    Args:
        batch_rng: A fresh generator with the seed of the batch: plates of a batch share what it gives.
        plate_rng: A generator of the plate.
        n_channels: Channels of the plate.
        strength: 0 makes all plates alike; 1 is a realistic screen.
    """

    def vary(batch_sd: float, plate_sd: float, shape: int | tuple[int, ...] = n_channels) -> Floats:
        of_batch, of_plate = batch_rng.standard_normal(shape), plate_rng.standard_normal(shape)
        return np.asarray(strength * (batch_sd * of_batch + plate_sd * of_plate), np.float32)

    neighbours = np.eye(n_channels, k=1) + np.eye(n_channels, k=-1)
    bleed = np.eye(n_channels) + 0.06 * neighbours * np.exp(vary(0.6, 0.15, (n_channels, n_channels)))
    shade = vary(0.3, 0.05, (n_channels, 3))
    shade[:, 0] = np.clip(0.15 + 0.3 * np.abs(shade[:, 0]), 0, 0.5)
    return Microscope(
        gain=np.exp(vary(0.35, 0.2)),
        gamma=np.clip(np.exp(vary(0.13, 0.05)), 0.6, 1.6),
        background=200 * np.exp(vary(0.6, 0.3)),
        blur_px=np.clip(1.4 * np.exp(vary(0.25, 0.10)), 0.3, 3.0),
        bleed=bleed.astype(np.float32),
        shade=shade,
        offset=float(100 + 25 * vary(1.0, 0.1, 1)[0]),
        read_noise=float(14 * np.exp(vary(0.3, 0.05, 1)[0])),
    )


def image_field(
    rng: np.random.Generator,
    stain_CYX: Floats,
    microscope: Microscope,
    *,
    brightness: float = 1.0,
    artefact: str = "",
    severity: float = 0.0,
) -> NDArray[np.uint16]:
    """Take the picture of a field.

    Args:
        rng: Source of noise, focus jitter and the artefact's details.
        stain_CYX: (C, Y, X), amount of stain, from `simulated_cells.draw_field`.
        brightness: Factor on the signal, as an edge well may have.
        artefact: One of `ARTEFACTS`, or empty. `empty` is drawn by leaving the cells out: nothing is done here.
        severity: 0..1, from just visible to useless.

    Returns:
        (C, Y, X), counts.
    """
    n_channels, height, width = stain_CYX.shape
    signal = stain_CYX
    if artefact == "debris":
        signal = signal + _debris(rng, n_channels, height, width, severity)
    signal = np.tensordot(microscope.bleed, signal, axes=1)
    signal = np.maximum(signal, 0) ** microscope.gamma[:, None, None]
    signal = signal * (_COUNTS_PER_STAIN * brightness * microscope.gain)[:, None, None]
    signal = signal + microscope.background[:, None, None]
    if artefact == "autofluorescence":
        signal = signal + _autofluorescence(rng, n_channels, height, width, severity)
    focus = np.exp(0.08 * rng.standard_normal())
    defocus = 1.5 + 4.0 * severity if artefact == "blur" else 0.0
    for c in range(n_channels):
        sigma = float(np.hypot(focus * microscope.blur_px[c], defocus))
        signal[c] = ndimage.gaussian_filter(signal[c], sigma, mode="nearest", truncate=3.0)
    signal *= _illumination(microscope.shade, height, width)
    if artefact == "saturation":
        # An exposure set too long: the brightest 2 % (severity 0) to 30 % (severity 1) of the pixels reach the ceiling.
        for c in range(n_channels):
            signal[c] *= CAMERA_MAX / np.quantile(signal[c], 0.98 - 0.28 * severity)
    counts = _camera(rng, signal, microscope, noise=1 + 9 * severity if artefact == "noise" else 1.0)
    return np.clip(np.rint(counts), 0, CAMERA_MAX).astype(np.uint16)


def _illumination(shade_C3: Floats, height: int, width: int) -> Floats:
    y = np.linspace(-1, 1, height, dtype=np.float32)[None, :, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, None, :]
    loss, y0, x0 = (shade_C3[:, k, None, None] for k in range(3))
    return np.asarray(1 - loss * np.minimum(((y - y0) ** 2 + (x - x0) ** 2) / 2, 1.5), np.float32)


def _camera(rng: np.random.Generator, signal: Floats, microscope: Microscope, *, noise: float) -> Floats:
    """Shot noise as a normal of the Poisson's variance (signals are tens of photons and more), read noise, offset."""
    variance = signal / np.float32(_PHOTONS_PER_COUNT) + np.float32(microscope.read_noise**2)
    grain = rng.standard_normal(signal.shape, np.float32)
    return np.asarray(
        signal + np.float32(noise) * np.sqrt(variance) * grain + np.float32(microscope.offset), np.float32
    )


def _debris(rng: np.random.Generator, n_channels: int, height: int, width: int, severity: float) -> Floats:
    """Bright out-of-focus specks seen in every channel."""
    specks = np.zeros((height, width), np.float32)
    n = 1 + round(2 * severity)
    for y, x in zip(rng.integers(0, height, n), rng.integers(0, width, n), strict=True):
        length = 3 + round(12 * severity * rng.random())
        along = np.arange(length)
        angle = rng.uniform(0, np.pi)
        rows = np.clip(np.rint(y + along * np.sin(angle)).astype(int), 0, height - 1)
        columns = np.clip(np.rint(x + along * np.cos(angle)).astype(int), 0, width - 1)
        specks[rows, columns] += 1
    specks = ndimage.gaussian_filter(specks, 2.0 + 2.0 * severity)
    tint = (20 + 60 * severity) * np.exp(0.4 * rng.standard_normal(n_channels))
    return np.asarray(specks * tint[:, None, None] * 2, np.float32)


def _autofluorescence(rng: np.random.Generator, n_channels: int, height: int, width: int, severity: float) -> Floats:
    """A smooth cloud of fluorescent compound, strongest in one or two neighbouring channels, counts."""
    cloud = ndimage.gaussian_filter(rng.standard_normal((height, width), np.float32), 0.2 * height, mode="reflect")
    cloud = 1 + 0.3 * cloud / max(float(cloud.std()), 1e-6)
    centre = rng.integers(0, n_channels)
    tint = np.exp(-0.5 * ((np.arange(n_channels) - centre) / 0.8) ** 2) + 0.05
    level = _COUNTS_PER_STAIN * (1.0 + 7.0 * severity)
    return np.asarray(np.maximum(cloud, 0.1) * (level * tint)[:, None, None], np.float32)
