"""ResNets as encoders: raw crops of fixed stains to one vector for each stage.

Shapes: B crops, C channels, S side of a crop in pixels, D features of a stage.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.config import ModelConfig
from cytolake.models.crops import CropBatch, floor_of, scaled
from cytolake.models.encoder import Encoder
from cytolake.models.shared_norm import SharedBatchNorm2d

N_STAGES = 4


class ResNet(Encoder):
    """timm's ResNet without its classifier; blocks 0 to 3 are its stages, block 4 the pooled vector that is published.

    The vector of a stage is the mean over the places of its map, each place layer-normed first like the tokens of a
    vision transformer, so that stages have one scale and a few bright places do not dominate. Block 4 is the plain mean
    of the last map, as classifiers and heads take it.

    Batch normalisation takes its statistics from the crops of all workers in training, and running means of them
    otherwise; those are part of the state.

    Source: He et al. 2016, arXiv 1512.03385; stem for small images as Chen et al. 2020, arXiv 2002.05709, appendix B.9.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        import timm

        self.config = config
        self.net: Any = timm.create_model(
            config.resnet,
            pretrained=False,
            num_classes=0,
            in_chans=len(config.channels),
            norm_layer=SharedBatchNorm2d,
            zero_init_last=False,  # as torchvision, with which the study's networks were made
        )
        if config.stem == "small":
            self.net.conv1 = nn.Conv2d(len(config.channels), 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.net.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.net.maxpool = nn.Identity()
        self._n_blocks = N_STAGES + 1

    @property
    def n_blocks(self) -> int:
        return self._n_blocks

    def maps(self, batch: CropBatch) -> Iterator[Tensor]:
        """(B, D, S', S') of each stage in turn.

        Raises:
            ValueError: Crops of other stains than the model's, or without the range that `input_scaling` needs.
        """
        net = self.net
        counts, floor = scaled(batch, self.config.input_scaling), floor_of(batch, self.config.noise_floor)
        pixels = self._intensities(self._fused_channels(batch, counts), floor)
        features = net.maxpool(net.act1(net.bn1(net.conv1(pixels))))
        for stage in range(min(self._n_blocks, N_STAGES)):
            features = getattr(net, f"layer{stage + 1}")(features)
            yield features

    def final_vectors(self, batch: CropBatch, pooling: str) -> Tensor:
        self._check((pooling,))
        *_, last = self.maps(batch)
        return last.mean(dim=(2, 3))

    @torch.no_grad()
    def pooled_blocks(self, batch: CropBatch, poolings: Sequence[str] | None = None) -> dict[str, tuple[Tensor, ...]]:
        """Frozen features: one vector of every block, by the running statistics. See the class for what they are.

        Returns:
            `mean`: for each block (B, D) float32, D its own.

        Raises:
            ValueError: Another pooling than `mean`, or crops of other stains.
        """
        poolings = self.config.poolings if poolings is None else poolings
        self._check(poolings)
        was_training = self.training
        self.eval()
        try:
            vectors, last = [], None
            for last in self.maps(batch):
                places = last.flatten(2).transpose(1, 2).float()
                vectors.append(functional.layer_norm(places, places.shape[-1:], eps=1e-6).mean(dim=1))
            if self._n_blocks > N_STAGES and last is not None:
                vectors.append(last.float().mean(dim=(2, 3)))
        finally:
            self.train(was_training)
        return dict.fromkeys(poolings, tuple(vectors))

    def _trimmed(self, n_blocks: int) -> Encoder:
        trimmed = copy.deepcopy(self)
        trimmed._n_blocks = n_blocks
        for stage in range(n_blocks, N_STAGES):
            setattr(trimmed.net, f"layer{stage + 1}", nn.Identity())
        return trimmed

    def _check(self, poolings: Sequence[str]) -> None:
        if unknown := sorted(set(poolings) - set(self.config.poolings)):
            raise ValueError(
                f"no pooling {', '.join(unknown)} of a resnet, which has no tokens: "
                f"choose {' or '.join(self.config.poolings)}."
            )
