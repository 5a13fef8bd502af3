"""BYOL: from one view of a crop, predict a slow teacher's projection of the other view.

Source: Grill et al. 2020, arXiv 2006.07733.

Shapes: B crops of this worker, A crops of all workers, Z projected width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import ByolConfig
from cytolake.models.objectives.heads import freeze_final_shift, mlp, pooled_features
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.objectives.teacher import Teacher, momentum_at
from cytolake.models.workers import gather_rows


class Byol(Objective):
    """Online encoder, projector and predictor, with a teacher of encoder and projector; the online encoder is kept."""

    def __init__(self, model: ModelConfig, config: ByolConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = new_encoder(model)
        freeze_final_shift(self.encoder)
        widths = (config.hidden_width, config.projected_width)
        # The predictor's own normalisation takes a shift of the projections away again.
        self.projector = mlp((model.vector_width, *widths), normalised=True, is_shift_lost=True)
        self.predictor = mlp((config.projected_width, *widths), normalised=True)
        self.teacher = Teacher(self.encoder, self.projector)

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch.

        Returns:
            Scalars `loss`, see `prediction_loss`, from each view to the other, summed: in [0, 8], 4 where predictions
            are independent of their targets; and `spread` of the targets, see there: 0 is a collapse, in which the loss
            is low too.

        Raises:
            ValueError: Another number of views than 2, or a single crop.
        """
        self.check_views(views, compares_crops=True)
        pooling = self.config.pooling
        predicted = [
            self.predictor(self.projector(pooled_features(self.encoder, view.crops, pooling))) for view in views
        ]
        with torch.no_grad():
            targets = [self.teacher.head(pooled_features(self.teacher.encoder, view.crops, pooling)) for view in views]
            spreads = torch.stack([spread(gather_rows(target_BZ)[0]) for target_BZ in targets])
        loss = prediction_loss(predicted[0], targets[1]) + prediction_loss(predicted[1], targets[0])
        return {"loss": loss, "spread": spreads.mean()}

    def after_step(self, share_done: float) -> None:
        self.teacher.follow(self.encoder, self.projector, momentum_at(share_done, self.config.momentum))


def prediction_loss(predicted_BZ: Tensor, target_BZ: Tensor) -> Tensor:
    """2 - 2 * cosine of prediction and target, a mean over crops: squared distance of unit vectors, in [0, 4].

    Source: Grill et al. 2020, equation 2.
    """
    return (2 - 2 * functional.cosine_similarity(predicted_BZ.float(), target_BZ.float(), dim=-1)).mean()


def spread(rows_AZ: Tensor) -> Tensor:
    """How far unit vectors are scattered: 1 in all directions alike, 0 where all are one vector, the collapse."""
    unit_AZ = functional.normalize(rows_AZ.float(), dim=-1)
    return unit_AZ.var(dim=0, correction=0).sum().sqrt()
