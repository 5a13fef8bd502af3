"""SimCLR: a view of a crop should find its other view among the views of all crops.

Source: Chen et al. 2020, arXiv 2002.05709.

Shapes: B crops of this worker, A crops of all workers, Z projected width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import SimClrConfig
from cytolake.models.objectives.heads import without_autocast
from cytolake.models.objectives.pair import PairObjective
from cytolake.models.workers import gather_rows


class SimClr(PairObjective):
    """Losses: `loss` alone, see `nt_xent`."""

    def __init__(self, model: ModelConfig, config: SimClrConfig) -> None:
        widths = (config.hidden_width, config.projected_width)
        super().__init__(model, config.pooling, widths, normalised=False, is_shift_lost=False)
        self.config = config

    def losses(self, first_BZ: Tensor, second_BZ: Tensor) -> dict[str, Tensor]:
        return {"loss": nt_xent(first_BZ, second_BZ, self.config.temperature)}


def nt_xent(first_BZ: Tensor, second_BZ: Tensor, temperature: float) -> Tensor:
    """The normalised, temperature-scaled cross-entropy of two views, scalar.

    Each of the 2 A views of a minibatch must find its crop's other view among the 2 A - 2 views of other crops, by
    cosines. The mean over workers, with equally many crops each, is the loss of the whole minibatch.

    Args:
        first_BZ: (B, Z) float32 projections.
        second_BZ: (B, Z) of the same crops' other views.

    Source: Chen et al. 2020, equation 1 and algorithm 1.
    """
    first_BZ, second_BZ = functional.normalize(first_BZ, dim=-1), functional.normalize(second_BZ, dim=-1)
    first_AZ, first_row = gather_rows(first_BZ)
    second_AZ, _ = gather_rows(second_BZ)
    n_all = len(first_AZ)
    own = torch.arange(len(first_BZ), device=first_BZ.device) + first_row
    is_itself = functional.one_hot(own + n_all, 2 * n_all).bool()
    losses = []
    with without_autocast(first_BZ):
        for mine_BZ, same_AZ, other_AZ in ((first_BZ, first_AZ, second_AZ), (second_BZ, second_AZ, first_AZ)):
            cosine = mine_BZ @ torch.cat([other_AZ, same_AZ]).T
            losses.append(functional.cross_entropy((cosine / temperature).masked_fill(is_itself, -torch.inf), own))
    return (losses[0] + losses[1]) / 2
