"""Size of the objects in an image, on discs of known size."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cytolake.screens.images.object_size import object_diameter


def discs(diameter: float, seed: int = 0) -> np.ndarray:
    """Counts of one field with discs that cover about a tenth of it, on an offset with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:384, :384]
    field = np.zeros(y.shape)
    for _ in range(max(3, int(0.12 * y.size / (math.pi * diameter**2 / 4)))):
        top, left = rng.uniform(0, 384, 2)
        field = np.maximum(field, (y - top) ** 2 + (x - left) ** 2 < diameter**2 / 4)
    return (field * 1000 + rng.poisson(100, y.shape)).astype(np.uint16)


@pytest.mark.parametrize("diameter", [8, 16, 30, 50])
def test_the_diameter_is_that_of_the_discs(diameter):
    # neighbouring scales are 1.25 apart; discs overlap, which makes the largest ones seem larger
    assert object_diameter([discs(diameter, seed) for seed in (1, 2)]) == pytest.approx(diameter, rel=0.25)


def test_one_bright_speck_does_not_decide():
    image = discs(24)
    image[100:103, 100:103] = 60_000
    assert object_diameter([image]) == pytest.approx(24, rel=0.25)


def test_an_empty_image_has_no_size():
    assert math.isnan(object_diameter([np.full((64, 64), 7, np.uint16)]))
