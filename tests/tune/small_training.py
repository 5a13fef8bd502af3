"""A training of seconds, for what searches and studies trainings of the small screen."""

from __future__ import annotations

from tests.embed.small_screen import CHANNELS, SIZE

from cytolake.models import ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.train.config import PretrainConfig

SMALL_TRAINING = PretrainConfig(
    model=ModelConfig(
        architecture="mae_vit", channels=CHANNELS, crop_size=SIZE, patch_size=8, width=16, depth=2, heads=2
    ),
    objective=ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2)),
    steps=4,
    minibatch_size=8,
    workers=0,
    threads=1,
)
