"""Random masks: which tokens of a crop the encoder sees.

Shapes: B crops, L tokens of a crop, T tokens of all crops in runs of equal length (see `runs`), V of them visible
and H hidden.
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
    hidden: Tensor
    """(H,) long, places of the tokens to be reconstructed, crop after crop."""
    hidden_runs: Runs
    """Of the hidden tokens."""

    @property
    def is_hidden(self) -> Tensor:
        """(T,) bool, True for the tokens to be reconstructed."""
        is_hidden = torch.ones(len(self.visible) + len(self.hidden), dtype=torch.bool, device=self.visible.device)
        return is_hidden.index_fill_(0, self.visible, False)


def masking_noise(
    seed: int, epoch: int | np.ndarray, sample_index: Sequence[int] | np.ndarray, n_tokens: int, *, view: int = 0
) -> Tensor:
    """(B, n_tokens) float64 in [0, 1): a crop's row depends on (seed, epoch, its global sample index, view) alone.

    A crop's noise does not depend on the rest of its minibatch: more tokens only append to the row.
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
    visible, hidden, visible_runs, hidden_runs = [], [], [], []
    crop = token = 0
    for n, length in runs:
        # The 1e-6 keeps 10 tokens at ratio 0.9 at 1 and not at int(0.9999...) = 0.
        n_visible = max(1, int(length * (1 - mask_ratio) + 1e-6))
        order_nL = noise_BL[crop : crop + n, :length].argsort(dim=1, stable=True)
        places_nL = order_nL + token + length * torch.arange(n, device=order_nL.device)[:, None]
        visible.append(places_nL[:, :n_visible].flatten())
        hidden.append(places_nL[:, n_visible:].flatten())
        visible_runs.append((n, n_visible))
        hidden_runs.append((n, length - n_visible))
        crop, token = crop + n, token + n * length
    return Mask(torch.cat(visible), tuple(visible_runs), torch.cat(hidden), tuple(hidden_runs))
