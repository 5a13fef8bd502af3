"""Which tokens of a crop the encoder sees.

Shapes: B crops, L tokens of the largest crop, V visible tokens of the largest crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytolake.models.seeding import sample_bits, uniform

_MASKING = 1  # purpose of `sample_bits`: odd ones, a view each; flips and turns have the even ones


@dataclass(frozen=True, slots=True)
class Mask:
    """A random choice of visible tokens."""

    visible: Tensor
    """(B, V) long, indices of the visible tokens."""
    is_visible: Tensor
    """(B, V) bool, False where a crop has fewer visible tokens than the largest one."""
    is_hidden: Tensor
    """(B, L) bool, True for the tokens to be reconstructed; False for visible ones and for padding."""


def masking_noise(
    seed: int, epoch: int, sample_index: Sequence[int] | np.ndarray, n_tokens: int, *, view: int = 0
) -> Tensor:
    """(B, n_tokens) float64 in [0, 1): a crop's row depends on (seed, epoch, its global sample index, view) alone.

    A crop keeps its noise whatever shares its minibatch: more tokens only append to the row.
    """
    return torch.from_numpy(uniform(sample_bits(seed, epoch, sample_index, _MASKING + 2 * view), n_tokens))


def draw_mask(noise_BL: Tensor, is_token_BL: Tensor, mask_ratio: float) -> Mask:
    """Keep int(n * (1 - mask_ratio)) of each crop's n tokens, at least 1: those with the least noise.

    Args:
        noise_BL: (B, L) random numbers, see `masking_noise`.
        is_token_BL: (B, L) bool, False for padding.
        mask_ratio: Share of tokens to hide, in (0, 1).

    Source: He et al. 2022, arXiv 2111.06377, section 3.
    """
    order_BL = noise_BL.masked_fill(~is_token_BL, torch.inf).argsort(dim=1, stable=True)
    n_tokens_B = is_token_BL.sum(dim=1)
    # The 1e-6 keeps 10 tokens at ratio 0.9 at 1 and not at int(0.9999...) = 0.
    n_visible_B = (n_tokens_B * (1 - mask_ratio) + 1e-6).long().clamp_min(1)
    n_visible = int(n_visible_B.max())
    is_visible_BV = torch.arange(n_visible, device=order_BL.device)[None, :] < n_visible_B[:, None]
    rank_BL = order_BL.argsort(dim=1)
    is_hidden_BL = is_token_BL & (rank_BL >= n_visible_B[:, None])
    return Mask(order_BL[:, :n_visible], is_visible_BV, is_hidden_BL)
