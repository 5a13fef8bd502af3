"""Your own screen: the base of the recipes that `cytolake init` writes."""

from __future__ import annotations

import dataclasses

from cytolake.curation.curate import CurateConfig
from cytolake.pipeline.config import PipelineConfig, ScreensConfig
from cytolake.recipes.demo import demo


def own_screen() -> PipelineConfig:
    """A screen of your own and a small MAE: `cytolake init FOLDER` writes what is particular to it."""
    small = demo().pretrain
    return PipelineConfig(
        name="own_screen",
        root="cytolake_own_screen",
        screens=ScreensConfig(),
        curate=CurateConfig(name="any_screen"),
        pretrain=dataclasses.replace(
            small,
            model=dataclasses.replace(small.model, channels=("DNA",)),
            steps=2000,
            checkpoint_every=200,
            evaluate_every=None,
        ),
    )
