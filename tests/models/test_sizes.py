"""The published encoder sizes."""

from __future__ import annotations

import pytest

from cytolake.models import SIZES, published_size

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito", "WGA")


def test_the_largest_has_the_published_shape():
    largest = published_size("g8", channels=STAINS)
    shape = (largest.depth, largest.width, largest.heads, largest.mlp_width, largest.patch_size)
    assert shape == (48, 1664, 16, 8192, 8)
    assert (largest.block, largest.layer_scale, largest.drop_path) == ("parallel", 1e-4, 0.6)
    assert largest.n_patches == 1024


def test_a_size_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=f"choose one of {', '.join(SIZES)}"):
        published_size("xxl")
