"""MoCo v3: from one view of a crop, predict a slow teacher's projection of its other view, and of no other crop.

Source: Chen et al. 2021, arXiv 2104.02057, algorithm 1.

Shapes: B crops of this worker, A crops of all workers, Z projected width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import MoCoV3Config
from cytolake.models.objectives.heads import freeze_final_shift, mlp, pooled_features, without_autocast
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.objectives.teacher import Teacher, momentum_at
from cytolake.models.workers import gather_rows


class MoCoV3(Objective):
    """Online encoder, projector and predictor, with a teacher of encoder and projector; the online encoder is kept."""

    def __init__(self, model: ModelConfig, config: MoCoV3Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = new_encoder(model)
        freeze_final_shift(self.encoder)
        hidden, projected = config.hidden_width, config.projected_width
        inner = (hidden,) * (config.projector_layers - 1)
        self.projector = mlp((model.vector_width, *inner, projected), normalised=True, normalises_output=True)
        self.predictor = mlp((projected, hidden, projected), normalised=True, normalises_output=True)
        self.teacher = Teacher(self.encoder, self.projector)

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch.

        Returns:
            Scalar `loss`: `minibatch_loss` from each view to the other, summed.

        Raises:
            ValueError: Another number of views than 2, or a single crop.
        """
        self.check_views(views, compares_crops=True)
        pooling, temperature = self.config.pooling, self.config.temperature
        queries = [
            self.predictor(self.projector(pooled_features(self.encoder, view.crops, pooling))).float() for view in views
        ]
        with torch.no_grad():
            keys = [
                self.teacher.head(pooled_features(self.teacher.encoder, view.crops, pooling)).float() for view in views
            ]
        first = minibatch_loss(queries[0], keys[1], temperature)
        return {"loss": first + minibatch_loss(queries[1], keys[0], temperature)}

    def after_step(self, share_done: float) -> None:
        self.teacher.follow(self.encoder, self.projector, momentum_at(share_done, self.config.momentum))


def minibatch_loss(query_BZ: Tensor, key_BZ: Tensor, temperature: float) -> Tensor:
    """InfoNCE times 2 * temperature, scalar: each query must find its own key among the keys of all workers' crops.

    No gradient reaches the keys. The factor makes gradients depend less on the temperature.

    Source: Chen et al. 2021, algorithm 1.
    """
    query_BZ = functional.normalize(query_BZ, dim=-1)
    key_AZ, first_row = gather_rows(functional.normalize(key_BZ.detach(), dim=-1))
    own = torch.arange(len(query_BZ), device=query_BZ.device) + first_row
    with without_autocast(query_BZ):
        return 2 * temperature * functional.cross_entropy(query_BZ @ key_AZ.T / temperature, own)
