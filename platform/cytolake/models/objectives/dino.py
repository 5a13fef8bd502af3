"""DINO: a student that sees any view of a crop, large or small, agrees with a teacher that sees another, large one.

Source: Caron et al. 2021, arXiv 2104.14294.

Shapes: B crops of this worker, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.encoder import Encoder
from cytolake.models.objectives.config import N_GLOBAL_VIEWS, DinoConfig
from cytolake.models.objectives.heads import PrototypeHead, pooled_features
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.objectives.teacher import Teacher, momentum_at
from cytolake.models.workers import mean_over_workers


class Dino(Objective):
    """Student and teacher, each an encoder and a head; the teacher's encoder is kept.

    The centre of the teacher's outputs moves in `after_step`, by the outputs of `forward` in training since the last
    step; computing a loss outside of training changes nothing.
    """

    centre: Tensor
    """(K,) running mean of the teacher's outputs over crops and views, which keeps one prototype from winning all."""
    share_done: Tensor
    """Scalar, share of the run's steps done: decides the teacher's temperature and whether prototypes are frozen."""

    def __init__(self, model: ModelConfig, config: DinoConfig) -> None:
        """Raises ValueError for local views that do not divide into the model's patches."""
        super().__init__()
        if config.n_local_views > 0 and config.local_size % model.size_step:
            raise ValueError(
                f"objective.dino.local_size is {config.local_size} px: local views do not divide into patches of "
                f"{model.size_step} px. Take a multiple of model.patch_size."
            )
        self.config = config
        self.encoder = new_encoder(model)
        self.head = PrototypeHead(model.vector_width, config.hidden_width, config.bottleneck_width, config.n_prototypes)
        self.teacher = Teacher(self.encoder, self.head)
        self.register_buffer("centre", torch.zeros(config.n_prototypes))
        self.register_buffer("share_done", torch.zeros(()))
        self._seen: list[Tensor] = []

    @property
    def n_views(self) -> int:
        """Two large views, and the small ones."""
        return N_GLOBAL_VIEWS + self.config.n_local_views

    @property
    def final_encoder(self) -> Encoder:
        return self.teacher.encoder

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch, large views first.

        Returns:
            Scalars `loss`, see `agreement_loss`, and `entropy`, of the teacher's distribution over prototypes, a mean
            over crops: a constant 0 or log K, the maximum, is a collapse.

        Raises:
            ValueError: Another number of views than `n_views`.
        """
        self.check_views(views)
        pooling = self.config.pooling
        is_frozen = self.share_done < self.config.freeze_last_layer_share
        student = [self.head(pooled_features(self.encoder, view.crops, pooling), is_frozen) for view in views]
        with torch.no_grad():
            large = views[:N_GLOBAL_VIEWS]
            outputs = torch.stack(
                [
                    self.teacher.head(pooled_features(self.teacher.encoder, view.crops, pooling), is_frozen)
                    for view in large
                ]
            )
            log_targets = ((outputs - self.centre) / self._teacher_temperature()).log_softmax(dim=-1)
            targets = log_targets.exp()
            entropy = -(targets * log_targets).sum(dim=-1).mean()
            if self.training:
                self._seen.append(mean_over_workers(outputs.mean(dim=(0, 1))))
        loss = agreement_loss([each / self.config.student_temperature for each in student], list(targets))
        return {"loss": loss, "entropy": entropy}

    @torch.no_grad()
    def after_step(self, share_done: float) -> None:
        if self._seen:
            self.centre.lerp_(torch.stack(self._seen).mean(dim=0), 1 - self.config.centre_momentum)
            self._seen.clear()
        self.share_done.fill_(share_done)
        self.teacher.follow(self.encoder, self.head, momentum_at(share_done, self.config.momentum))

    def _teacher_temperature(self) -> Tensor:
        """Scalar, rising linearly to its last value. A tensor, for which no GPU has to wait."""
        config = self.config
        if config.warmup_share == 0:
            return torch.full_like(self.share_done, config.teacher_temperature)
        warm = (self.share_done / config.warmup_share).clamp(max=1)
        return config.first_teacher_temperature + warm * (config.teacher_temperature - config.first_teacher_temperature)


def agreement_loss(student: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Cross-entropy of a student's view and another view's target, a mean over crops and over such pairs of views.

    Args:
        student: (B, K) logits of each view, those that have a target first.
        targets: (B, K) distributions over prototypes of the first views.

    Source: Caron et al. 2021, equation 3.
    """
    log_student = [logits_BK.log_softmax(dim=-1) for logits_BK in student]
    pairs = [
        -(target_BK * log_BK).sum(dim=-1).mean()
        for q, target_BK in enumerate(targets)
        for v, log_BK in enumerate(log_student)
        if v != q
    ]
    return torch.stack(pairs).mean()
