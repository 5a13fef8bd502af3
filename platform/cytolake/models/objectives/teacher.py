"""A teacher: a copy of the student that no gradient reaches, and that follows the student slowly."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from cytolake.models.encoder import Encoder


class Teacher(nn.Module):
    """An encoder and a head that are means of the student's over its last steps, most recent ones first.

    Its weights need no gradient and are part of the state. It never skips blocks, whatever the student does. Batch
    normalisation, where the encoder has it, takes its statistics from the crops in training, as published.
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder)
        self.head = copy.deepcopy(head)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode: drop-path would add noise to the student's targets."""
        super().train(False)
        for part in self.encoder.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.train(mode)
        return self

    @torch.no_grad()
    def follow(self, encoder: Encoder, head: nn.Module, momentum: float) -> None:
        """Every weight becomes momentum * its own + (1 - momentum) * the student's."""
        for own, student in ((self.encoder, encoder), (self.head, head)):
            for mine, new in zip(own.parameters(), student.parameters(), strict=True):
                mine.lerp_(new, 1 - momentum)


def momentum_at(share_done: float, first: float, last: float = 1.0) -> float:
    """From `first` at the beginning to `last` at the end of a run, along half a cosine.

    Source: Grill et al. 2020 (BYOL), arXiv 2006.07733, section 3.3; DINO and solo-learn have the same.
    """
    return last - (last - first) * (math.cos(math.pi * min(share_done, 1.0)) + 1) / 2
