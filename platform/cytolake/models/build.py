"""Build a new encoder of any architecture."""

from __future__ import annotations

import torch

from cytolake.models.config import ModelConfig
from cytolake.models.encoder import Encoder, VisionTransformer
from cytolake.models.resnet import ResNet


def new_encoder(config: ModelConfig) -> Encoder:
    """An encoder of the config's architecture; its weights come from the global random state."""
    return ResNet(config) if config.is_convolutional else VisionTransformer(config)


def build_encoder(config: ModelConfig, seed: int) -> Encoder:
    """A new encoder on the CPU. Its weights are a function of (config, seed): it is the untrained encoder of any run
    with that config and seed, for every objective. The global random state does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return new_encoder(config)
