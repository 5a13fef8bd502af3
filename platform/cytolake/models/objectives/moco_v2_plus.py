"""MoCo v2+: a view of a crop should find its other view, as a slow teacher encodes it, among the keys of a queue.

Source: He et al. 2020, arXiv 1911.05722 (momentum encoder and queue); Chen et al. 2020, arXiv 2003.04297 (MLP head and
temperature of v2); Chen & He 2021, arXiv 2011.10566, section 5 and appendix C (the symmetric loss of "v2+").

The published code shuffles crops between GPUs, because statistics of a batch normalisation reveal which crops were
encoded together. The heads here have no batch normalisation, and that of a ResNet takes its statistics from the crops
of all workers, so there is nothing to shuffle.

Shapes: B crops of this worker, A crops of all workers, Z projected width, Q keys in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.objectives.config import MoCoV2PlusConfig
from cytolake.models.objectives.heads import mlp, pooled_features, without_autocast
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.objectives.teacher import Teacher, momentum_at
from cytolake.models.workers import gather_in_minibatch_order


class MoCoV2Plus(Objective):
    """Encoder and projector, their teacher, and a queue of the teacher's keys for each view; the encoder is kept.

    The queue is part of the state. It moves in `after_step`, by the keys of `forward` in training since the last step;
    computing a loss outside of training changes nothing. Keys enter in the order of the minibatch, so the queue does
    not depend on the number of workers.
    """

    queue: Tensor
    """(2, Q, Z) float32 keys of length 1, of the first and of the second view; at first random directions."""
    oldest: Tensor
    """Scalar, long: place of the key in the queue that is replaced next."""

    def __init__(self, model: ModelConfig, config: MoCoV2PlusConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = new_encoder(model)
        self.projector = mlp((model.vector_width, config.hidden_width, config.projected_width), normalised=False)
        self.teacher = Teacher(self.encoder, self.projector)
        keys = functional.normalize(torch.randn(2, config.queue_size, config.projected_width), dim=-1)
        self.register_buffer("queue", keys)
        self.register_buffer("oldest", torch.zeros((), dtype=torch.long))
        self._seen: list[Tensor] = []

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch.

        Returns:
            Scalar `loss`: the mean of `queue_loss` from each view to the other.

        Raises:
            ValueError: Another number of views than 2, or a single crop.
        """
        self.check_views(views, compares_crops=True)
        pooling, temperature = self.config.pooling, self.config.temperature
        queries = [
            functional.normalize(self.projector(pooled_features(self.encoder, view.crops, pooling)).float(), dim=-1)
            for view in views
        ]
        with torch.no_grad():
            keys = [
                functional.normalize(
                    self.teacher.head(pooled_features(self.teacher.encoder, view.crops, pooling)).float(), dim=-1
                )
                for view in views
            ]
            if self.training:
                self._seen.append(torch.stack([gather_in_minibatch_order(each) for each in keys]))
        first = queue_loss(queries[0], keys[1], self.queue[1], temperature)
        second = queue_loss(queries[1], keys[0], self.queue[0], temperature)
        return {"loss": (first + second) / 2}

    @torch.no_grad()
    def after_step(self, share_done: float) -> None:
        config = self.config
        momentum = momentum_at(share_done, config.momentum, config.last_momentum)
        self.teacher.follow(self.encoder, self.projector, momentum)
        for keys_2AZ in self._seen:
            newest = keys_2AZ[:, -config.queue_size :]
            places = (self.oldest + torch.arange(newest.shape[1], device=self.queue.device)) % config.queue_size
            self.queue.index_copy_(1, places, newest)
            self.oldest.add_(newest.shape[1]).remainder_(config.queue_size)
        self._seen.clear()


def queue_loss(query_BZ: Tensor, key_BZ: Tensor, queue_QZ: Tensor, temperature: float) -> Tensor:
    """InfoNCE, scalar: each query must find its own key among the keys of the queue. All vectors have length 1.

    Source: He et al. 2020, equation 1.
    """
    with without_autocast(query_BZ):
        own_B1 = (query_BZ * key_BZ).sum(dim=1, keepdim=True)
        logits = torch.cat([own_B1, query_BZ @ queue_QZ.T], dim=1) / temperature
        return functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
