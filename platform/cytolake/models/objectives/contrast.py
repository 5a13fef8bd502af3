"""The contrastive term of a masked autoencoder: two views of a crop attract each other and repel all other crops.

A masked autoencoder alone learns the appearance of patches long before that of whole crops. Two views of a crop,
augmented and masked independently, share only the crop as a whole: its textures, shapes and arrangement.

Source: Mishra et al. 2022, "A simple, efficient and scalable contrastive masked autoencoder" (CAN), arXiv 2210.16870;
InfoNCE with cosine similarities as in Chen et al. 2020 (SimCLR), arXiv 2002.05709. Unlike the objective of SimCLR, it
compares a view with the other views of all crops, and not with views of its own kind.

Shapes: B crops of this worker, A crops of all workers, D width, Z projected width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.transformer import initialise
from cytolake.models.workers import gather_rows

TEMPERATURE = 0.2
PROJECTED_WIDTH = 64


class Projection(nn.Module):
    """Projects pooled tokens to the unit sphere on which views are compared. Used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, PROJECTED_WIDTH)
        initialise(self)

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """(B, Z) of length 1."""
        return functional.normalize(self.out(functional.gelu(self.hidden(pooled_BD))).float(), dim=-1)


def contrastive_loss(first_BZ: Tensor, second_BZ: Tensor) -> Tensor:
    """InfoNCE of two views, scalar: each crop's view must find its other view among those of all workers' crops.

    The mean over workers, with equally many crops each, is the loss of the whole minibatch in one process.

    Args:
        first_BZ: (B, Z) projections of length 1.
        second_BZ: (B, Z) of the same crops' other views.
    """
    first_AZ, first_row = gather_rows(first_BZ)
    second_AZ, _ = gather_rows(second_BZ)
    own = torch.arange(len(first_BZ), device=first_BZ.device) + first_row
    forth = functional.cross_entropy(first_BZ @ second_AZ.T / TEMPERATURE, own)
    back = functional.cross_entropy(second_BZ @ first_AZ.T / TEMPERATURE, own)
    return (forth + back) / 2
