"""Which tokens of a crop the encoder sees.

Shapes: B crops, L tokens of a crop, T tokens of all crops in runs of equal length (see `runs`), V of them visible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cytolake.models.runs import Runs
from cytolake.models.seeding import sample_bits, uniform

_MASKING = 1  # purpose of `sample_bits`: odd ones, a view each; flips and turns have the even ones


@dataclass(frozen=True, slots=True)
class Mask:
    """A random choice of visible tokens."""

    visible: Tensor
    """(V,) long, places of the visible tokens in the row of all tokens, crop after crop."""
    runs: Runs
    """Of the visible tokens."""
    is_hidden: Tensor
    """(T,) bool, True for the tokens to be reconstructed."""


def masking_noise(
    seed: int, epoch: int, sample_index: Sequence[int] | np.ndarray, n_tokens: int, *, view: int = 0
) -> Tensor:
    """(B, n_tokens) float64 in [0, 1): a crop's row depends on (seed, epoch, its global sample index, view) alone.

    A crop keeps its noise whatever shares its minibatch: more tokens only append to the row.
    """
    return torch.from_numpy(uniform(sample_bits(seed, epoch, sample_index, _MASKING + 2 * view), n_tokens))


def draw_mask(noise_BL: Tensor, runs: Runs, mask_ratio: float) -> Mask:
    """Keep int(L * (1 - mask_ratio)) of each crop's L tokens, at least 1: those with the least noise.

    Args:
        noise_BL: (B, at least L) random numbers of the crops in the order of the runs, see `masking_noise`.
        runs: Of all tokens.
        mask_ratio: Share of tokens to hide, in (0, 1).

    Source: He et al. 2022, arXiv 2111.06377, section 3.
    """
    visible, is_hidden, visible_runs = [], [], []
    crop = token = 0
    for n, length in runs:
        # The 1e-6 keeps 10 tokens at ratio 0.9 at 1 and not at int(0.9999...) = 0.
        n_visible = max(1, int(length * (1 - mask_ratio) + 1e-6))
        order_nL = noise_BL[crop : crop + n, :length].argsort(dim=1, stable=True)
        starts = token + length * torch.arange(n, device=order_nL.device)[:, None]
        visible.append((order_nL[:, :n_visible] + starts).flatten())
        hidden = torch.ones(n, length, dtype=torch.bool, device=order_nL.device)
        is_hidden.append(hidden.scatter_(1, order_nL[:, :n_visible], False).flatten())
        visible_runs.append((n, n_visible))
        crop, token = crop + n, token + n * length
    return Mask(torch.cat(visible), tuple(visible_runs), torch.cat(is_hidden))
