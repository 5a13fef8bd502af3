"""Heads between an encoder and a loss, which are discarded after training.

Batch normalisation is part of the published heads of BYOL, VICReg, Barlow Twins, MoCo v3 and SimSiam, so it is here
too, with the statistics of all workers' crops: the output of a head then does not depend on the number of workers. It
keeps no running averages, which only an evaluation of the head would need, so its weights are all its state. The heads
of SimCLR, as its equation has it, of DINO and of MoCo v2 have none.

Shapes: B crops of this worker, D width of the encoder, H hidden width, Z projected width, K prototypes.
"""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.crops import CropBatch
from cytolake.models.encoder import Encoder, VisionTransformer
from cytolake.models.objectives.config import Pooling
from cytolake.models.transformer import initialise
from cytolake.models.workers import mean_over_workers

_EPSILON = 1e-5  # of variances, as torch's own batch normalisation has it


class MinibatchNorm(nn.Module):
    """Batch normalisation by the crops of all workers, in training and in evaluation alike.

    Source: Ioffe & Szegedy 2015, arXiv 1502.03167; over all workers as SimCLR and BYOL have it.
    """

    def __init__(self, width: int, *, has_gain: bool = True) -> None:
        """Without `has_gain` it does not scale and shift what it normalised, and has no weights."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if has_gain else None
        self.bias = nn.Parameter(torch.zeros(width)) if has_gain else None

    def forward(self, values_BH: Tensor) -> Tensor:
        """(B, H) with mean 0 and variance 1 over the crops of all workers, scaled and shifted, in the input's type."""
        values = values_BH.float()
        centred = values - mean_over_workers(values.mean(dim=0))
        variance = mean_over_workers(centred.square().mean(dim=0))
        normed = centred * (variance + _EPSILON).rsqrt()
        if self.weight is not None and self.bias is not None:
            normed = normed * self.weight + self.bias
        return normed.to(values_BH.dtype)


def mlp(
    widths: tuple[int, ...], *, normalised: bool, is_shift_lost: bool = False, normalises_output: bool = False
) -> nn.Sequential:
    """Linear layers of these widths, input first, with a ReLU between, after a `MinibatchNorm` where `normalised`.

    With `normalises_output` one without gain follows the last layer too, as in MoCo v3 and SimSiam.

    A bias that has no gradient stays 0, where an optimiser that divides by the gradient's size would move it by
    rounding errors: each one before a `MinibatchNorm`, which takes the mean away, and the last one where
    `is_shift_lost`: what follows does not change when one vector is added to the outputs of all crops and views.
    """
    layers: list[nn.Module] = []
    for entry, out in itertools.pairwise(widths):
        layers += [nn.Linear(entry, out), *([MinibatchNorm(out)] if normalised else []), nn.ReLU()]
    n_after_last_linear = 2 if normalised else 1
    layers = layers[:-n_after_last_linear]
    if normalises_output:
        layers[-1] = nn.Linear(widths[-2], widths[-1], bias=False)  # a bias would be subtracted again
        layers.append(MinibatchNorm(widths[-1], has_gain=False))
    head = nn.Sequential(*layers)
    initialise(head)
    linear = [part for part in head if isinstance(part, nn.Linear)]
    for i, part in enumerate(linear):
        if normalised if i + 1 < len(linear) else is_shift_lost:
            part.bias.requires_grad_(False)
    return head


class PrototypeHead(nn.Module):
    """The head of DINO: an MLP to a unit vector, and its cosines with K prototypes.

    Source: Caron et al. 2021, arXiv 2104.14294, section 3.1 and appendix C, with prototypes of length 1.
    """

    def __init__(self, width: int, hidden_width: int, bottleneck_width: int, n_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_width),
            nn.GELU(),
            nn.Linear(hidden_width, hidden_width),
            nn.GELU(),
            nn.Linear(hidden_width, bottleneck_width),
        )
        self.prototypes = nn.Parameter(torch.empty(n_prototypes, bottleneck_width))
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.prototypes)  # directions only: their lengths do not count

    def forward(self, pooled_BD: Tensor, is_frozen: Tensor) -> Tensor:
        """(B, K) float32 cosines in [-1, 1].

        Args:
            pooled_BD: (B, D).
            is_frozen: Scalar bool; True gives the prototypes a gradient of 0. A tensor, for which no GPU has to wait.
        """
        unit_BZ = functional.normalize(self.mlp(pooled_BD).float(), dim=-1)
        prototypes_KZ = torch.where(is_frozen, self.prototypes.detach(), self.prototypes)
        with without_autocast(pooled_BD):
            return unit_BZ @ functional.normalize(prototypes_KZ.float(), dim=-1).T


def freeze_final_shift(encoder: Encoder) -> None:
    """Keep the bias of a vision transformer's last norm at 0, under a head whose first layer a `MinibatchNorm` follows.

    It shifts the features of all crops alike, which that norm takes away: see `mlp` for what would move it.
    """
    if isinstance(
        encoder, VisionTransformer
    ):  # the last norms of a ResNet stand before a ReLU, so theirs has a gradient
        encoder.norm.bias.requires_grad_(False)


def pooled_features(encoder: Encoder, crops: CropBatch, pooling: Pooling) -> Tensor:
    """(B, D) one vector for each crop, with gradients."""
    return encoder.final_vectors(crops, pooling)


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """Products of float32 tensors stay float32: bf16 cosines have 3 digits, and a loss divides them by 0.04 to 0.2."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device):  # `meta`, on which only shapes are computed
        return nullcontext()
    return torch.autocast(device, enabled=False)
