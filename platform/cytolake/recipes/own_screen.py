"""A screen of one's own: what `cytolake init` builds on."""

from __future__ import annotations

from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.catalog.curation.curate import CurateConfig
from cytolake.line.config import Line, ScreensConfig
from cytolake.models import ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.train.config import PretrainConfig


def own_screen() -> Line:
    """A screen of your own and a small MAE: `cytolake init FOLDER` writes what is particular to it."""
    return Line(
        name="own_screen",
        root="cytolake_own_screen",
        screens=ScreensConfig(),
        curate=CurateConfig(name="any_screen"),
        pretrain=PretrainConfig(
            model=ModelConfig(
                architecture="mae_vit", channels=("DNA",), crop_size=64, patch_size=8, width=128, depth=4, heads=4
            ),
            objective=ObjectiveConfig(
                mae=MaeConfig(
                    decoder_width=64,
                    decoder_depth=1,
                    decoder_heads=4,
                    mask_ratio=0.5,
                    fourier_weight=0.0,
                    contrastive_weight=0.3,  # see platform/decisions/0003
                )
            ),
            second_view="well",
            steps=2000,
            minibatch_size=64,
            learning_rate=1e-3,
            checkpoint_every=200,
        ),
        probe=ProbeConfig(),
    )
