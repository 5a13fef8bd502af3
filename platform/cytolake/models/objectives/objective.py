"""Interface of self-supervised objectives: views of crops in, named losses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from cytolake.models.crops import CropBatch
from cytolake.models.encoder import Encoder
from cytolake.models.workers import check_several_crops


@dataclass(frozen=True, slots=True)
class View:
    """One view of every crop of a minibatch."""

    crops: CropBatch
    noise: Tensor | None = None
    """(B, at least L) random numbers that choose the tokens a masked autoencoder hides, see `masking_noise`; None for
    an objective that hides none."""


class Objective(nn.Module):
    """An encoder with its heads or decoder, which are discarded after training."""

    encoder: Encoder
    """The one that the optimiser trains."""

    @property
    def n_views(self) -> int:
        """Views of every crop that `forward` takes."""
        return 2

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Scalars of one minibatch: `loss`, to be minimised, and its parts by name.

        With the crops shared equally by several workers, the mean over workers is the loss of the whole minibatch.
        """
        raise NotImplementedError

    @property
    def final_encoder(self) -> Encoder:
        """The encoder that the run is for: a teacher's, where the method evaluates the teacher."""
        return self.encoder

    def after_step(self, share_done: float) -> None:
        """Called after every optimiser step with the share of all steps done, in (0, 1]: a teacher follows here."""

    def check_views(self, views: Sequence[View], *, compares_crops: bool = False) -> None:
        """Raises ValueError for another number of views than `n_views`, or a single crop where crops are compared."""
        if len(views) != self.n_views:
            raise ValueError(
                f"{len(views)} views of the crops: {type(self).__name__} takes {self.n_views}. "
                "Read minibatches with the objective's own n_views."
            )
        if compares_crops:
            check_several_crops(len(views[0].crops))
