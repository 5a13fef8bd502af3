"""Choice of the sharpest plane of a focus series, by agreement of five measures over the whole series.

One measure alone is misled by something: by camera noise (differences of neighbouring pixels), by one bright speck that
is sharp elsewhere (sums over the field), by the total of light (variance). Four of the five are sums over tiles of
smoothed images, less what camera noise adds, in which the brightest tenth of the tiles counts no more than the next
tile. A plane of nothing but white noise has no focus.

Shapes: P planes, T tiles, M measures, E energies, H by W pixels.

Sources: Brenner et al. 1976, doi:10.1177/24.1.1254907; normalised variance (Groen et al. 1985,
doi:10.1002/cyto.990060202), Tenengrad and variance of the Laplacian as in Pertuz et al. 2013,
doi:10.1016/j.patcog.2012.11.011; the ratio of fine to coarse structure after Bray et al. 2012,
doi:10.1177/1087057111420292. Noise, tiles and vote are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MEASURES = ("brenner", "normalised_variance", "tenengrad", "laplacian_variance", "band_ratio")
TILE_PX, TILES_MAX = 32, 8
"""A side has at most so many tiles, none smaller than this."""
SHARE_IN_FULL = 0.1
"""Share of the tiles that count no more than the tile after them: a speck and its halo fill a few."""
SIGMAS_PX = (2.0, 4.0, 6.0, 12.0)
"""Of Gaussians: gradients are of the first, fine structure is between the first two, coarse between the last two."""


@dataclass(frozen=True, slots=True)
class PlaneFocus:
    """Focus measures of one plane of one channel."""

    brenner: float
    """Of the whole plane."""
    level: float
    """Mean of the plane, counts."""
    energies: NDArray[np.float32]
    """(E, T), mean squares in each tile less those of camera noise: of the image, its gradient, its Laplacian, its fine
    and its coarse structure."""


@dataclass(frozen=True, slots=True)
class FocusChoice:
    """The plane chosen for a series."""

    plane: int
    of_measures: tuple[int, ...]
    """The plane that each of `MEASURES` would choose alone."""

    @property
    def is_unanimous(self) -> bool:
        """All measures choose one plane."""
        return len(set(self.of_measures)) == 1


def measure_focus(plane_HW: np.ndarray) -> PlaneFocus:
    """Measure one plane: 5 numbers are kept for each of at most 64 tiles. What is not finite counts as 0."""
    image = plane_HW.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # floats can be infinite
        numbers = (focus_of(image), float(image.mean(dtype=np.float64)))
        brenner, level = (float(np.nan_to_num(number, posinf=0.0)) for number in numbers)
        return PlaneFocus(brenner, level, np.nan_to_num(_energies(image), posinf=0.0, neginf=0.0))


def focus_of(plane_HW: np.ndarray) -> float:
    """How sharp a plane is: the mean squared difference of pixels two apart, in both directions. 0 is flat.

    Source: Brenner et al. 1976, doi:10.1177/24.1.1254907.
    """
    plane_HW = plane_HW.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # floats can be infinite
        down, across = plane_HW[2:] - plane_HW[:-2], plane_HW[:, 2:] - plane_HW[:, :-2]
        return float(sum(np.mean(np.square(step), dtype=np.float64) for step in (down, across) if step.size))


def sharpest_plane(series: Sequence[Sequence[PlaneFocus]]) -> FocusChoice:
    """The plane with the best median rank over the measures; of equal ones that with the best mean rank.

    Args:
        series: For each channel its P planes, in order. Each channel counts alike in each measure, however bright.

    Raises:
        ValueError: No channel, or channels of different numbers of planes.
    """
    if not series or len({len(planes) for planes in series}) != 1 or not series[0]:
        raise ValueError(
            f"channels of {[len(planes) for planes in series]} planes, expected as many in each, 1 or more."
        )
    scores_MP = np.sum([_scores(planes) for planes in series], axis=0)
    ranks_MP = np.argsort(np.argsort(-scores_MP, axis=1, kind="stable"), axis=1, kind="stable")
    order = np.lexsort((ranks_MP.mean(axis=0), np.median(ranks_MP, axis=0)))
    return FocusChoice(int(order[0]), tuple(scores_MP.argmax(axis=1).tolist()))


def _scores(planes: Sequence[PlaneFocus]) -> Floats:
    """(M, P) of one channel; each row sums to 1 or to 0."""
    level_P = np.asarray([plane.level for plane in planes])
    energies_PET = np.stack([plane.energies for plane in planes]).astype(np.float64)
    largest_ET = np.sort(energies_PET.max(axis=0), axis=1)[:, ::-1]
    cap_E1 = largest_ET[:, [int(SHARE_IN_FULL * largest_ET.shape[1])]]
    capped_EP = np.maximum(np.minimum(energies_PET, cap_E1).sum(axis=2), 0).T
    variance_P, gradient_P, laplacian_P, fine_P, coarse_P = capped_EP
    scores_MP = np.stack(
        [
            np.asarray([plane.brenner for plane in planes]),
            variance_P / np.maximum(np.abs(level_P), 1e-6),
            gradient_P,
            _ratio(laplacian_P, variance_P),
            _ratio(fine_P, coarse_P),
        ]
    )
    totals_M1 = scores_MP.sum(axis=1, keepdims=True)
    is_known_M1 = (totals_M1 > 0) & np.isfinite(totals_M1)
    shares_MP: Floats = np.divide(scores_MP, totals_M1, out=np.zeros_like(scores_MP), where=is_known_M1)
    return shares_MP


def _ratio(detail_P: Floats, contrast_P: Floats) -> Floats:
    """Detail over contrast; a plane of next to no contrast, where noise is all there is, has at least a tenth of it."""
    return detail_P / np.maximum(contrast_P, max(0.1 * float(contrast_P.max()), 1e-6))


def _energies(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(E, T)"""
    from scipy import ndimage

    first, second, third, last = (ndimage.gaussian_filter(image, sigma, mode="nearest") for sigma in SIGMAS_PX)
    parts = [*(_differences(first)), ndimage.laplace(first, mode="nearest"), first - second, third - last]
    down, across, laplacian, fine, coarse = (_tile_means(np.square(part)) for part in parts)
    variance = np.maximum(
        _tile_means(np.square(image - image.mean())) - np.square(_tile_means(image - image.mean())), 0
    )
    noise_E = _noise_variance(image) * _noise_gains()
    return np.asarray(np.stack([variance, down + across, laplacian, fine, coarse]) - noise_E[:, None], np.float32)


def _differences(image: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Central differences down and across."""
    from scipy import ndimage

    return ndimage.correlate1d(image, [-0.5, 0, 0.5], 0, mode="nearest"), ndimage.correlate1d(
        image, [-0.5, 0, 0.5], 1, mode="nearest"
    )


def _noise_variance(image: NDArray[np.float32]) -> float:
    """Of white noise, from the median size of a second difference in both directions (Immerkaer 1996)."""
    if min(image.shape) < 3:
        return 0.0
    across = image[:, :-2] - 2 * image[:, 1:-1] + image[:, 2:]
    residual = across[:-2] - 2 * across[1:-1] + across[2:]
    return float((np.median(np.abs(residual)) / (0.6745 * 6.0)) ** 2)  # 0.6745: median -> sd; 6: norm of the kernel


@cache
def _noise_gains() -> Floats:
    """(E,) mean square that each filter gives for white noise of variance 1: the sum of its squared weights."""
    from scipy import ndimage

    impulse = np.zeros((97, 97))
    impulse[48, 48] = 1
    first, second, third, last = (ndimage.gaussian_filter(impulse, sigma, mode="nearest") for sigma in SIGMAS_PX)
    parts = [*_differences(first), ndimage.laplace(first), first - second, third - last]
    down, across, laplacian, fine, coarse = (float(np.square(part).sum()) for part in parts)
    return np.asarray([1.0, down + across, laplacian, fine, coarse])


def _tile_means(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """(T,)"""
    rows, columns = (
        np.unique(np.linspace(0, n, min(TILES_MAX, max(1, n // TILE_PX)) + 1)[:-1].astype(int)) for n in image.shape
    )
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0, dtype=np.float64), columns, axis=1)
    heights, widths = np.diff([*rows, image.shape[0]]), np.diff([*columns, image.shape[1]])
    return np.asarray(sums / np.outer(heights, widths), np.float32).ravel()
