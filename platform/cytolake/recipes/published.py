"""Published encoders, trained as published on your own screens, on GPU nodes.

Masked autoencoders: Kraus et al. 2024, arXiv 2404.10242, and Kenyon-Dean et al. 2024, arXiv 2411.02572: Lion, peak
learning rate 1e-4 up to ViT-B and 3e-5 above, decay 0.05, betas 0.9 and 0.95, one cycle with 10 % warm-up, decoder of 8
blocks of width 512, Fourier weight 0.01. Minibatch and epochs are published of G/8, L/8 and the channel-agnostic S/16;
the others' are ours. ChAda-ViT: Bourriez et al. 2024, arXiv 2311.15264.

`cytolake pretrain --recipe NAME --dry-run` prints what a run needs. With fewer GPUs than a recipe has workers, set
`pretrain.workers`, and take a smaller `pretrain.minibatch_size` or `pretrain.recompute=true` if it does not fit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.models import ModelConfig, published_size
from cytolake.models.augment import AugmentConfig
from cytolake.models.crops import REFERENCE_NOISE_FLOOR
from cytolake.models.objectives import DinoConfig, MaeConfig, ObjectiveConfig
from cytolake.pipeline.config import PipelineConfig, ScreensConfig
from cytolake.screens.sources import ScreenSource
from cytolake.train.config import PretrainConfig

_STAINS = ("DNA", "ER", "RNA", "AGP", "Mito")  # Cell Painting; the published encoders have actin and Golgi apart
_MAE = MaeConfig(decoder_width=512, decoder_depth=8, decoder_heads=16)


def mae_vit_s16() -> PipelineConfig:
    """MAE ViT-S/16 on crops of 256 px of five-stain plates: an OME-Zarr screen under screens.root."""
    return _mae_vit("s16", learning_rate=1e-4, epochs=100, minibatch_size=1024)


def mae_vit_b16() -> PipelineConfig:
    """MAE ViT-B/16 on five-stain plates, 8 GPUs."""
    return _mae_vit("b16", learning_rate=1e-4, epochs=100, minibatch_size=2048, workers=8, compile=True)


def mae_vit_b8() -> PipelineConfig:
    """MAE ViT-B/8 on five-stain plates, 16 GPUs."""
    return _mae_vit("b8", learning_rate=1e-4, epochs=100, minibatch_size=2048, workers=16, compile=True)


def mae_vit_l16() -> PipelineConfig:
    """MAE ViT-L/16 on five-stain plates, 64 GPUs."""
    return _mae_vit("l16", learning_rate=3e-5, epochs=500, minibatch_size=16384, workers=64, compile=True)


def mae_vit_l8() -> PipelineConfig:
    """MAE ViT-L/8 on five-stain plates, 128 GPUs, as MAE-L/8 of Kenyon-Dean et al. 2024."""
    return _mae_vit("l8", learning_rate=3e-5, epochs=500, minibatch_size=16384, workers=128, compile=True)


def mae_vit_g8() -> PipelineConfig:
    """MAE ViT-G/8, 1.84 billion parameters, on five-stain plates, 256 GPUs, as MAE-G/8 of Kenyon-Dean et al. 2024."""
    return _mae_vit(
        "g8", learning_rate=3e-5, epochs=500, minibatch_size=8192, workers=256, compile=True, parallel="fsdp"
    )


def ca_mae_s16() -> PipelineConfig:
    """Channel-agnostic MAE ViT-S/16 with a decoder for each stain, 16 GPUs: one model for any stains."""
    model = dataclasses.replace(published_size("s16", "ca_mae_vit", _STAINS), noise_floor=REFERENCE_NOISE_FLOOR)
    mae = dataclasses.replace(_MAE, decoder="per_channel")
    return _config(
        "ca_mae_s16", model, mae, learning_rate=1e-4, epochs=100, minibatch_size=2048, workers=16, compile=True
    )


def chada_vit_s16() -> PipelineConfig:
    """Channel-adaptive ViT-S/16, trained as an MAE, on crops of 256 px: plates of any stains, mixed."""
    config = _config("chada_vit_s16", published_size("s16", "chada_vit"), _MAE, minibatch_size=256, epochs=100)
    # AdamW at 1.5e-4 for 256 crops: He et al. 2022, table 8. No run of this size with Lion is published.
    changed = dataclasses.replace(config.pretrain, optimiser="adamw", learning_rate=1.5e-4)
    return dataclasses.replace(config, pretrain=changed)


def chada_vit_moyen() -> PipelineConfig:
    """ChAda-ViT "moyen" of its authors, 192 wide, trained with DINO: any stains, up to 10 in a crop.

    Its pretraining config was not published. From its code and paper: blocks, heads, channel and position tokens, crops
    of 224 px, prototypes, temperatures, teacher momentum and warm-up, 400 epochs. Where they give none, DINO's own
    (Caron et al. 2021): learning rate 5e-4 for 256 crops, decay 0.04. Not as published: it standardises each channel,
    since packs hold raw counts, and the published scaling to [0, 1] knows their largest. So of its augmentations,
    shifts and gains of each channel would change nothing; blur, flips and crops are left.
    """
    model = ModelConfig(
        architecture="chada_vit",
        channel_code="order",
        max_channels=10,
        crop_size=224,
        patch_size=16,
        width=192,
        depth=12,
        heads=2,
        mlp_ratio=2048 / 192,
        block="post_norm",
        positions="learned",
    )
    minibatch_size = 512
    config = _config("chada_vit_moyen", model, _MAE)
    return dataclasses.replace(
        config,
        pretrain=PretrainConfig(
            model=model,
            objective=ObjectiveConfig(name="dino", dino=DinoConfig(local_size=96, n_prototypes=65536)),
            augment=AugmentConfig(blur_sigma_px=2.0, blur_probability=0.5),
            optimiser="adamw",
            betas=(0.9, 0.999),
            learning_rate=5e-4 * minibatch_size / 256,
            weight_decay=0.04,
            minibatch_size=minibatch_size,
            epochs=400,
            workers=8,
        ),
    )


def _mae_vit(size: str, **pretrain: Any) -> PipelineConfig:
    model = dataclasses.replace(published_size(size, "mae_vit", _STAINS), noise_floor=REFERENCE_NOISE_FLOOR)
    return _config(f"mae_vit_{size}", model, _MAE, **pretrain)


def _config(name: str, model: ModelConfig, mae: MaeConfig, **pretrain: Any) -> PipelineConfig:
    return PipelineConfig(
        name=name,
        screens=ScreensConfig(root="screens", sources=(ScreenSource(screen="screen", path="."),)),
        ingest=IngestConfig(crop_size=model.crop_size),
        pretrain=PretrainConfig(
            model=model,
            objective=ObjectiveConfig(mae=mae),
            **{"optimiser": "lion", "betas": (0.9, 0.95), "weight_decay": 0.05, "warmup_share": 0.1, **pretrain},
        ),
    )
