"""Barlow Twins: each feature of one view correlates with itself in the other view, and with no other feature.

Source: Zbontar et al. 2021, arXiv 2103.03230.

Shapes: B crops of this worker, A crops of all workers, Z projected width.
"""

from __future__ import annotations

from torch import Tensor

from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import BarlowTwinsConfig
from cytolake.models.objectives.heads import without_autocast
from cytolake.models.objectives.pair import PairObjective
from cytolake.models.workers import gather_rows

_EPSILON = 1e-5  # of variances, as the batch normalisation of the authors' code has it


class BarlowTwins(PairObjective):
    """Losses: `on_diagonal`, `off_diagonal`, and `loss` = on_diagonal + off_diagonal_weight * off_diagonal."""

    def __init__(self, model: ModelConfig, config: BarlowTwinsConfig) -> None:
        widths = (config.hidden_width, config.hidden_width, config.projected_width)
        # Correlations do not see a shift of all projections.
        super().__init__(model, config.pooling, widths, normalised=True, is_shift_lost=True)
        self.config = config

    def losses(self, first_BZ: Tensor, second_BZ: Tensor) -> dict[str, Tensor]:
        correlation_ZZ = cross_correlation(gather_rows(first_BZ)[0], gather_rows(second_BZ)[0])
        diagonal_Z = correlation_ZZ.diagonal()
        on = (diagonal_Z - 1).square().sum()
        off = correlation_ZZ.square().sum() - diagonal_Z.square().sum()
        return {"loss": on + self.config.off_diagonal_weight * off, "on_diagonal": on, "off_diagonal": off}


def cross_correlation(first_AZ: Tensor, second_AZ: Tensor) -> Tensor:
    """(Z, Z) correlations over crops of the features of one view, in rows, with those of the other, in columns."""
    with without_autocast(first_AZ):
        return _standardised(first_AZ).T @ _standardised(second_AZ) / len(first_AZ)


def _standardised(view_AZ: Tensor) -> Tensor:
    """Each feature with mean 0 and variance 1 over crops; one that does not vary becomes 0."""
    centred_AZ = view_AZ - view_AZ.mean(dim=0)
    return centred_AZ * (centred_AZ.square().mean(dim=0) + _EPSILON).rsqrt()
