"""VICReg: two views of a crop agree, every feature varies between crops, and features are uncorrelated.

Source: Bardes et al. 2022, arXiv 2105.04906, in the form of its algorithm 1, which takes means over features where the
equations have sums.

Shapes: B crops of this worker, A crops of all workers, Z projected width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import VicRegConfig
from cytolake.models.objectives.heads import without_autocast
from cytolake.models.objectives.pair import PairObjective
from cytolake.models.workers import gather_rows

_EPSILON = 1e-4  # Bardes et al. 2022, equation 2


class VicReg(PairObjective):
    """Losses: `invariance`, `variance`, `covariance`, and `loss`, their sum with the weights of the config."""

    def __init__(self, model: ModelConfig, config: VicRegConfig) -> None:
        widths = (config.hidden_width, config.hidden_width, config.projected_width)
        # A difference of views, variances and covariances: none of them sees a shift of all projections.
        super().__init__(model, config.pooling, widths, normalised=True, is_shift_lost=True)
        self.config = config

    def losses(self, first_BZ: Tensor, second_BZ: Tensor) -> dict[str, Tensor]:
        views_AZ = [gather_rows(view_BZ)[0] for view_BZ in (first_BZ, second_BZ)]
        parts = {
            "invariance": functional.mse_loss(first_BZ, second_BZ),
            "variance": torch.stack([missing_spread(view_AZ) for view_AZ in views_AZ]).sum(),
            "covariance": torch.stack([redundancy(view_AZ) for view_AZ in views_AZ]).sum(),
        }
        weights = (self.config.invariance_weight, self.config.variance_weight, self.config.covariance_weight)
        total = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)]).sum()
        return {"loss": total, **parts}


def missing_spread(view_AZ: Tensor) -> Tensor:
    """How far the features' standard deviations over crops are below 1, a mean over features; 0 is none."""
    sd_Z = (view_AZ.var(dim=0) + _EPSILON).sqrt()
    return functional.relu(1 - sd_Z).mean()


def redundancy(view_AZ: Tensor) -> Tensor:
    """Squared covariances of every two features over crops, summed, divided by the number of features."""
    centred_AZ = view_AZ - view_AZ.mean(dim=0)
    with without_autocast(view_AZ):
        covariance_ZZ = centred_AZ.T @ centred_AZ / (len(view_AZ) - 1)
    squared_ZZ = covariance_ZZ.square()
    return (squared_ZZ.sum() - squared_ZZ.diagonal().sum()) / view_AZ.shape[1]
