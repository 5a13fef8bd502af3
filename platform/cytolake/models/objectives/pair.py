"""Objectives of two views of every crop with one encoder and one projector."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import Pooling
from cytolake.models.objectives.heads import freeze_final_shift, mlp, pooled_features
from cytolake.models.objectives.objective import Objective, View


class PairObjective(Objective):
    """Base of SimCLR, VICReg and Barlow Twins, which differ in the projector and in the loss of two projections."""

    def __init__(
        self,
        model: ModelConfig,
        pooling: Pooling,
        widths: tuple[int, ...],
        *,
        normalised: bool,
        is_shift_lost: bool,
    ) -> None:
        """`widths`, `normalised` and `is_shift_lost` are of the projector, see `mlp`."""
        super().__init__()
        self.encoder = new_encoder(model)
        if normalised:
            freeze_final_shift(self.encoder)
        self.projector = mlp((model.vector_width, *widths), normalised=normalised, is_shift_lost=is_shift_lost)
        self._pooling: Pooling = pooling

    def losses(self, first_BZ: Tensor, second_BZ: Tensor) -> dict[str, Tensor]:
        """Scalars of this worker's (B, Z) float32 projections of both views, `loss` among them."""
        raise NotImplementedError

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch, as `losses` has them.

        Raises:
            ValueError: Another number of views than 2, or a single crop.
        """
        self.check_views(views, compares_crops=True)
        first_BZ, second_BZ = (
            self.projector(pooled_features(self.encoder, view.crops, self._pooling)).float() for view in views
        )
        return self.losses(first_BZ, second_BZ)
