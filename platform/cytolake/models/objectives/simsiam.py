"""SimSiam: from one view of a crop, predict the projection of the other, without gradients; no teacher, no negatives.

Source: Chen & He 2021, arXiv 2011.10566.

Shapes: B crops of this worker, A crops of all workers, Z projected width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.objectives.byol import spread
from cytolake.models.objectives.config import SimSiamConfig
from cytolake.models.objectives.heads import freeze_final_shift, mlp, pooled_features
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.workers import gather_rows


class SimSiam(Objective):
    """Encoder, projector and predictor."""

    def __init__(self, model: ModelConfig, config: SimSiamConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = new_encoder(model)
        freeze_final_shift(self.encoder)
        hidden, projected = config.hidden_width, config.projected_width
        inner = (hidden,) * (config.projector_layers - 1)
        self.projector = mlp((model.vector_width, *inner, projected), normalised=True, normalises_output=True)
        self.predictor = mlp((projected, config.predictor_width, projected), normalised=True)

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch.

        Returns:
            Scalars `loss`, the mean of `negative_cosine` from each view to the other, in [-1, 1]; and `spread` of the
            projections, see there: 0 is a collapse, in which the loss is low too.

        Raises:
            ValueError: Another number of views than 2, or a single crop.
        """
        self.check_views(views, compares_crops=True)
        projected = [self.projector(pooled_features(self.encoder, view.crops, self.config.pooling)) for view in views]
        first, second = (self.predictor(each) for each in projected)
        loss = (negative_cosine(first, projected[1]) + negative_cosine(second, projected[0])) / 2
        with torch.no_grad():
            spreads = torch.stack([spread(gather_rows(each.detach())[0]) for each in projected])
        return {"loss": loss, "spread": spreads.mean()}


def negative_cosine(predicted_BZ: Tensor, target_BZ: Tensor) -> Tensor:
    """Minus the cosine of prediction and target, a mean over crops. No gradient reaches the target.

    Source: Chen & He 2021, equations 1 to 3.
    """
    return -functional.cosine_similarity(predicted_BZ.float(), target_BZ.detach().float(), dim=-1).mean()
