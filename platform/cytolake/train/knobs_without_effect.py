"""Find augmentations that cannot change the input of an encoder: training with them has no effect.

An encoder that standardises its channels cannot see a gain or an offset, one that puts its stains into their own order
cannot see a shuffle, and DINO crops its views itself. No such rule is hard-coded: crops go through the training code
with and without the augmentation, and the outputs of a small encoder of the same kind are compared.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from cytolake.models import CropBatch, ModelConfig, build_encoder, collate
from cytolake.models.augment import KNOBS, NOTHING, AugmentConfig
from cytolake.models.objectives import ObjectiveConfig
from cytolake.packs.crop_batches import crop_batch
from cytolake.packs.pack import Pack
from cytolake.train.config import PretrainConfig, with_vocabulary
from cytolake.train.feed import changed_view

N_DRAWS = 256
"""Crops compared, each with its own draws: a change of one crop in fifty is missed 6 times in 1,000."""
_FIRST = 32
"""Most knobs show in the first few."""
_SIDE_PX = 32
"""Crops are cut to about this side: the effect of a knob does not depend on it, the time does."""
_N_REAL = 64
_TOLERANCE = 1e-3
"""Features have an sd of 1. Rounding of raw counts moves them by 1e-4 at most, in a channel of few counts' contrast on
a background of 50,000; a knob worth a training by more than 1e-2."""


def crops_to_compare(model: ModelConfig, pack: Pack | None = None) -> CropBatch:
    """Windows of a pack's crops, one of every set of channels among them; random ones where there is no pack yet."""
    most = min(_SIDE_PX, model.crop_size if pack is None else pack.crop_size)
    side = model.patch_size * max(1, most // model.patch_size)
    if pack is not None:
        spread = np.linspace(0, pack.n_crops - 1, min(_N_REAL, pack.n_crops)).round().astype(int).tolist()
        rows = sorted({*spread, *pack.first_of_each_channel_set()})
        start = (pack.crop_size - side) // 2
        whole = crop_batch(pack, np.asarray(rows, np.int64), model)
        window = whole.pixels[..., start : start + side, start : start + side]
        return dataclasses.replace(whole, pixels=window.contiguous())
    channels = model.channels if model.is_fused else model.channels[:3]
    random = np.random.default_rng(0)
    drawn = random.gamma(2, 300, (_N_REAL, len(channels), side, side)).astype(np.uint16)
    return collate(list(drawn), [model.channel_indices(channels)] * len(drawn))


def changes_input(
    model: ModelConfig,
    before: AugmentConfig,
    after: AugmentConfig,
    crops: CropBatch,
    objective: ObjectiveConfig | None = None,
) -> bool:
    """Whether a change of augmentations can change the input of an encoder.

    Compared are the class token and the mean token after one block of random weights, so that an order of tokens that
    the encoder ignores does not count, and, where a decoder knows the stain of each token, the stains.

    Args:
        model: Of the encoder; of `mae_vit` and `chada_vit` with its channels.
        before: One config of augmentations.
        after: The other.
        crops: Of `crops_to_compare`.
        objective: Whose views are made; None means one plain view.
    """
    small = build_encoder(
        dataclasses.replace(
            model, crop_size=crops.pixels.shape[-1], width=32, depth=1, heads=1, mlp_ratio=1.0, drop_path=0.0
        ),
        seed=0,
    ).eval()
    if not model.standardise:  # such a model is trained on [0, 1], where a code of channels is no trifle
        shares = crops.pixels / crops.pixels.max().clamp(min=1)
        crops = dataclasses.replace(crops, pixels=shares, full_scale=(1.0,) * len(crops))
    objective = objective or ObjectiveConfig()
    kinds = {objective.view_crop(view): view for view in range(objective.n_views)}
    decodes_stains = objective.masks_tokens and not model.is_fused

    def seen(config: AugmentConfig, batch: CropBatch, draws: np.ndarray, view: int) -> list[Tensor]:
        crops = changed_view(batch, config, objective, seed=0, epochs=0, sample_index=draws, view=view)
        tokens = [small.final_vectors(crops, pooling).float() for pooling in small.config.poolings]
        stains = crops.channel_index.sort(dim=1, descending=True).values
        return [*tokens, stains.float()] if decodes_stains else tokens

    with torch.no_grad():
        for first, last in ((0, _FIRST), (_FIRST, N_DRAWS)):
            draws = np.arange(first, last)
            batch = _picked(crops, draws % len(crops))
            for view in kinds.values():
                pairs = zip(seen(before, batch, draws, view), seen(after, batch, draws, view), strict=True)
                if any(one.shape != other.shape or _differ(one, other) for one, other in pairs):
                    return True
    return False


def knobs_without_effect(config: PretrainConfig, pack: Pack | None = None) -> dict[str, str]:
    """Knobs of a training that are on and do not change the input of its encoder, and why."""
    config = with_vocabulary(config)
    crops = crops_to_compare(config.model, pack)
    found = {}
    for name in KNOBS:
        off = dataclasses.replace(config.augment, **{name: getattr(NOTHING, name)})
        if off != config.augment and not changes_input(config.model, off, config.augment, crops, config.objective):
            found[name] = why_without_effect(name, config.model, config.objective)
    return found


def why_without_effect(knob: str, model: ModelConfig, objective: ObjectiveConfig | None = None) -> str:
    """Explanation for a knob that has no effect by `changes_input`."""
    why = "as a comparison of crops with and without it shows"
    if model.standardise and knob in ("gain", "offset"):
        why = "each channel of a crop is standardised"
    elif knob == "channel_shuffle":
        why = f"{model.architecture} does not depend on the order of the channels"
    elif knob == "crop_scale" and objective is not None and objective.name == "dino":
        why = "dino sets the crop scale of its views itself"
    elif knob == "identity_drop":
        why = f"{model.architecture} does not use the stain of a channel"
    return f"changes nothing that the encoder gets: {why}"


def _picked(crops: CropBatch, places: np.ndarray) -> CropBatch:
    picked = torch.from_numpy(places)
    return CropBatch(
        crops.pixels[picked],
        crops.channel_index[picked],
        tuple(crops.n_channels[place] for place in places.tolist()),
        tuple(crops.full_scale[place] for place in places.tolist()) if crops.full_scale else (),
    )


def _differ(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() > _TOLERANCE).any())
