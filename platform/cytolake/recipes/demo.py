"""The demo: a simulated Cell Painting screen, a small masked autoencoder, minutes on two cores."""

from __future__ import annotations

from cytolake.line.config import Line, ScreensConfig
from cytolake.models import ModelConfig
from cytolake.screens.simulated import SimulatedScreen
from cytolake.train.pretrain import PretrainConfig


def demo() -> Line:
    """A simulated screen of four plates and a small MAE: the whole line in minutes on two cores."""
    return Line(
        name="demo",
        screens=ScreensConfig(simulate=SimulatedScreen()),
        pretrain=PretrainConfig(
            model=ModelConfig(
                architecture="mae_vit",
                channels=("DNA", "ER", "RNA", "AGP", "Mito"),
                crop_size=64,
                patch_size=8,
                width=192,
                depth=6,
                heads=3,
                decoder_width=96,
                decoder_depth=2,
                decoder_heads=3,
            ),
            epochs=20,
            minibatch_size=128,
        ),
    )
