"""The encoder sizes of the masked autoencoders of Kraus et al. 2024 and Kenyon-Dean et al. 2024.

Source: arXiv 2404.10242, table 1, and arXiv 2411.02572, table A; blocks with attention and MLP in parallel, normalised
queries and keys, gains from 1e-4, and drop-path 0.1, 0.3 for L, 0.6 for G.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from cytolake.models.config import Architecture, ModelConfig

_SMALL: dict[str, Any] = {"width": 384, "depth": 12, "heads": 6, "drop_path": 0.1}
_BASE: dict[str, Any] = {"width": 768, "depth": 12, "heads": 12, "drop_path": 0.1}
_LARGE: dict[str, Any] = {"width": 1024, "depth": 24, "heads": 16, "drop_path": 0.3}
_GIGANTIC: dict[str, Any] = {"width": 1664, "depth": 48, "heads": 16, "mlp_ratio": 64 / 13, "drop_path": 0.6}

SIZES = MappingProxyType(
    {
        "s16": {**_SMALL, "patch_size": 16},
        "b16": {**_BASE, "patch_size": 16},
        "b8": {**_BASE, "patch_size": 8},
        "l16": {**_LARGE, "patch_size": 16},
        "l8": {**_LARGE, "patch_size": 8},
        "g8": {**_GIGANTIC, "patch_size": 8},
    }
)
"""Fields of `ModelConfig` by size: letter, and side of a patch in pixels."""


def published_size(
    size: str, architecture: Architecture = "mae_vit", channels: Sequence[str] = (), crop_size: int = 256
) -> ModelConfig:
    """An encoder of a published size, for crops of any stains.

    Raises:
        ValueError: No such size, or `mae_vit` without its stains.
    """
    if size not in SIZES:
        raise ValueError(f"no encoder size {size!r}: choose one of {', '.join(SIZES)}.")
    return ModelConfig(
        architecture=architecture,
        channels=tuple(channels),
        crop_size=crop_size,
        block="parallel",
        layer_scale=1e-4,
        **SIZES[size],
    )
