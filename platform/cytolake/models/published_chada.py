"""Load published ChAda-ViT weights into an encoder.

Source of the layout: Bourriez et al. 2024, arXiv 2311.15264, and its public code and weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cytolake.models.checkpoints import CheckpointError, put_weights, read_weights
from cytolake.models.config import ModelConfig
from cytolake.models.encoder import VisionTransformer

_OF_BLOCK = {
    "self_attn.in_proj_weight": "qkv.weight",
    "self_attn.in_proj_bias": "qkv.bias",
    "self_attn.out_proj.weight": "attention_out.weight",
    "self_attn.out_proj.bias": "attention_out.bias",
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "norm2.weight": "mlp_norm.weight",
    "norm2.bias": "mlp_norm.bias",
    "linear1.weight": "mlp.0.weight",
    "linear1.bias": "mlp.0.bias",
    "linear2.weight": "mlp.2.weight",
    "linear2.bias": "mlp.2.bias",
}


def load_published_chada(path: str | Path, *, heads: int) -> VisionTransformer:
    """Read a ChAda-ViT checkpoint of its authors' layout, in evaluation mode, on the CPU.

    Width, depth, patch size, crop size and number of channels are read off the weights. The number of heads is not in
    them: the authors' factory builds 2, their class by default 12; both accept the weights and give different features.
    So it is an argument, and is stored in every file that `save_encoder` writes of the result.

    The weights were trained on intensities in [0, 1] (the authors' augmentations clamp to it); the encoder divides
    counts by the range of their pixel type to get there, see `ModelConfig.input_scaling`. Tokens attend to the tokens
    that the crop has and to no padding, which gives the published outputs.

    Args:
        path: `.safetensors`, or a file of `torch.save` that holds nothing but tensors and plain values. Of a training
            checkpoint the student is read (names that begin with `backbone.`).
        heads: Attention heads that the checkpoint was trained with.

    Raises:
        CheckpointError: No such file, or not that layout.
    """
    path = Path(path)
    theirs = _read(path)
    for prefix in ("backbone.", "module."):
        if any(name.startswith(prefix) for name in theirs):
            theirs = {name.removeprefix(prefix): value for name, value in theirs.items() if name.startswith(prefix)}
    try:
        width, _, patch_size, _ = theirs["token_learner.proj.weight"].shape
        n_patches = theirs["pos_embed"].shape[2] - 1
        depth = 1 + max(int(name.split(".")[1]) for name in theirs if name.startswith("blocks."))
        config = ModelConfig(
            architecture="chada_vit",
            channel_code="order",
            max_channels=theirs["channel_token"].shape[1],
            crop_size=round(n_patches**0.5) * patch_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            mlp_ratio=len(theirs["blocks.0.linear1.bias"]) / width,
            block="post_norm",
            positions="learned",
            input_scaling="unit_range",
        )
        ours = {
            "patch_embedding.weight": theirs["token_learner.proj.weight"].flatten(1),
            "patch_embedding.bias": theirs["token_learner.proj.bias"],
            "positions": theirs["pos_embed"][0, 0, 1:],
            "cls_token": theirs["cls_token"][0, 0] + theirs["pos_embed"][0, 0, 0],  # they are only ever added
            "channel_embedding.weight": theirs["channel_token"][0, :, 0],
            "norm.weight": theirs["norm.weight"],
            "norm.bias": theirs["norm.bias"],
        }
        for block in range(depth):
            for name, our_name in _OF_BLOCK.items():
                ours[f"blocks.{block}.{our_name}"] = theirs[f"blocks.{block}.{name}"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a published ChAda-ViT: {error} is missing or unusable among {len(theirs)} weights (first "
            f"{', '.join(sorted(theirs)[:3]) or 'none'}). Expected the authors' own layout with token_learner, "
            "channel_token, pos_embed and blocks.*; for a cytolake encoder use load_encoder."
        ) from error
    encoder = VisionTransformer(config)
    put_weights(encoder, ours, path)
    return encoder.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors" or not path.is_file():
        return read_weights(path)[0]
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own
        raise CheckpointError(
            f"{path}: not a file of tensors that can be read safely ({type(error).__name__}). "
            "Expected a .safetensors file, or a torch file without Python objects: save its state_dict alone."
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
