"""The work of one crop in a ResNet: convolutions, and the numbers kept for the backward pass.

Read off the layers themselves on torch's meta device, which computes shapes and no numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cytolake.models.config import ModelConfig
from cytolake.models.crops import CropBatch
from cytolake.models.resnet import ResNet


@dataclass(frozen=True, slots=True)
class Convolution:
    """One layer as a matrix product: `places` rows of `inputs`, each to `outputs`."""

    places: int
    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class ResNetWork:
    """One crop through the network."""

    convolutions: tuple[Convolution, ...]
    """The first one first, whose input needs no gradient."""
    kept: int
    """Numbers kept in the type of products: inputs of convolutions and norms, outputs of activations, each once."""


@lru_cache(maxsize=32)
def resnet_work(config: ModelConfig, size: int) -> ResNetWork:
    """Of a crop of `size` px.

    Raises:
        ValueError: Not a ResNet.
    """
    if not config.is_convolutional:
        raise ValueError(f"work of a resnet: found a {config.architecture}, expected a config of a resnet.")
    with torch.device("meta"):
        encoder = ResNet(config).eval()
        pixels = torch.empty(1, len(config.channels), size, size)
    convolutions: list[Convolution] = []
    kept: dict[int, Tensor] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            places = output.shape[-2] * output.shape[-1]
            convolutions.append(Convolution(places, module.in_channels * height * width, module.out_channels))
        if isinstance(module, nn.ReLU | nn.MaxPool2d):
            kept[id(output)] = output
        kept[id(inputs[0])] = inputs[0]

    for module in encoder.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d):
            module.register_forward_hook(look)
    channels = torch.arange(1, len(config.channels) + 1)[None]
    for _ in encoder.maps(CropBatch(pixels, channels, (len(config.channels),))):
        pass
    return ResNetWork(tuple(convolutions), sum(tensor.numel() for tensor in kept.values()))
