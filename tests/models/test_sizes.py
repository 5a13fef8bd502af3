"""The published encoder sizes."""

from __future__ import annotations

import pytest
import torch

from cytolake.models import SIZES, VisionTransformer, published_size

STAINS = ("DNA", "ER", "RNA", "AGP", "Mito", "WGA")


# Millions of parameters of the encoder for 6 stains: derived from the published depth, width and heads.
@pytest.mark.parametrize(
    ("size", "millions"), [("s16", 21.9), ("b16", 86.2), ("b8", 85.3), ("l16", 303.8), ("l8", 302.6), ("g8", 1841.7)]
)
def test_parameters_of_every_size(size, millions):
    with torch.device("meta"):
        encoder = VisionTransformer(published_size(size, channels=STAINS))
    assert sum(weight.numel() for weight in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.002)


def test_the_largest_has_the_published_shape():
    largest = published_size("g8", channels=STAINS)
    assert (largest.depth, largest.width, largest.heads, largest.mlp_width, largest.patch_size) == (
        48,
        1664,
        16,
        8192,
        8,
    )
    assert (largest.block, largest.layer_scale, largest.drop_path) == ("parallel", 1e-4, 0.6)
    assert largest.n_patches == 1024


def test_a_size_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=f"choose one of {', '.join(SIZES)}"):
        published_size("xxl")
