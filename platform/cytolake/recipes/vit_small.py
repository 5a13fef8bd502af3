"""ViT-S/16 on five-stain Cell Painting screens of your own: what a first run on a GPU node looks like."""

from __future__ import annotations

import dataclasses

from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.line.config import Line, ScreensConfig
from cytolake.models import ModelConfig
from cytolake.screens.sources import ScreenSource
from cytolake.train.pretrain import PretrainConfig


def mae_vit_s16() -> Line:
    """MAE ViT-S/16 on crops of 256 px of five-stain plates: an OME-Zarr screen under screens.root."""
    return Line(
        name="mae_vit_s16",
        screens=ScreensConfig(root="screens", sources=(ScreenSource(screen="screen", path="."),)),
        ingest=IngestConfig(crop_size=256),
        pretrain=PretrainConfig(
            model=ModelConfig(
                architecture="mae_vit",
                channels=("DNA", "ER", "RNA", "AGP", "Mito"),
                crop_size=256,
                patch_size=16,
                width=384,
                depth=12,
                heads=6,
                drop_path=0.1,
                decoder_width=512,
                decoder_depth=8,
                decoder_heads=16,
            ),
            epochs=100,
            minibatch_size=1024,
            learning_rate=1.5e-4 * 1024 / 256,  # He et al. 2022, table 8: linear in the minibatch
        ),
    )


def chada_vit_s16() -> Line:
    """Channel-adaptive ViT-S/16 on crops of 256 px: plates of any stains, mixed, under screens.root."""
    line = mae_vit_s16()
    model = dataclasses.replace(line.pretrain.model, architecture="chada_vit", channels=())
    return dataclasses.replace(
        line,
        name="chada_vit_s16",
        pretrain=dataclasses.replace(line.pretrain, model=model, minibatch_size=256, learning_rate=1.5e-4),
    )
