"""Packed ChAda-ViT against the published form, which pads every crop to 10 channels: forward and backward.

Both have the same weights and the same crops, of 1 to 6 channels in the shares of the recipe `real_screens`; the loss
reads every real token. Their outputs and gradients are compared first. The figure is the padded form's time over the
packed one's. It is also set against the ratio of their floating-point operations (products of matrices, by formula):
the share that is reached shows the cost of packing next to its saving.

Bourriez et al. 2024, arXiv 2311.15264, pad all images of a minibatch to 10 channels, mask the padding as keys of
attention, and compute every other layer on it. `padded_tokens` does so, and is the oracle of a test.

Shapes: B crops, C channels after padding, L = C * N tokens, D width.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models import CropBatch, ModelConfig, VisionTransformer, build_encoder, collate, standardise
from cytolake.models.runs import to_device
from cytolake.models.transformer import Block

BAR, SHARE_BAR = 4.0, 0.8
PADDED_TO = 10
CROPS_OF_REAL_SCREENS = {1: 1248, 2: 160, 3: 194, 6: 64}
"""Channels: crops of 128 x 128 pixels that the recipe makes of the six public screens."""
N_CROPS = 24
ROUNDS = 5
MODEL = ModelConfig(
    architecture="chada_vit",
    channels=tuple(f"stain {i}" for i in range(PADDED_TO)),
    crop_size=128,
    patch_size=16,
    width=384,
    depth=12,
    heads=6,
)


def padded_tokens(encoder: VisionTransformer, batch: CropBatch, n_channels: int) -> Tensor:
    """(B, 1 + L, D) final tokens of a `chada_vit`, cls first; those of padded channels mean nothing."""
    config = encoder.config
    device = batch.pixels.device
    missing = n_channels - batch.pixels.shape[1]
    pixels = standardise(functional.pad(batch.pixels, (0, 0, 0, 0, 0, missing)))
    identity = to_device(functional.pad(batch.channel_index, (0, missing)), device)
    side, size = config.crop_size // config.patch_size, config.patch_size
    patches = pixels.view(*pixels.shape[:2], side, size, side, size).transpose(3, 4).flatten(4).flatten(1, 3)
    tokens = encoder.patch_embedding(patches) + encoder.positions.repeat(n_channels, 1)
    assert encoder.channel_embedding is not None
    tokens = tokens + encoder.channel_embedding(identity.repeat_interleave(config.n_patches, dim=1))
    tokens = torch.cat([encoder.cls_token.expand(len(batch), 1, -1), tokens], dim=1)
    stack = tokens.shape[:2]
    n_real = to_device(1 + config.n_patches * torch.tensor(batch.n_channels), device)
    is_key = (torch.arange(stack[1], device=device)[None, :] < n_real[:, None])[:, None, None, :]
    row = tokens.flatten(0, 1)
    for block in encoder.blocks:
        assert isinstance(block, Block)
        *entered, other = block.before(row)
        query, key, value = (each.unflatten(0, stack).transpose(1, 2) for each in entered)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=is_key)
        row = block.after(row, mixed.transpose(1, 2).flatten(2).flatten(0, 1), other, None)
    final: Tensor = encoder.norm(row).unflatten(0, stack)
    return final


def real_mix(n_crops: int, seed: int) -> list[int]:
    """Channel counts of a minibatch, drawn in the shares of the real screens."""
    counts = np.array(list(CROPS_OF_REAL_SCREENS.values()), float)
    drawn = np.random.default_rng(seed).choice(list(CROPS_OF_REAL_SCREENS), size=n_crops, p=counts / counts.sum())
    return [int(n) for n in drawn]


def flops(n_channels: Sequence[int], config: ModelConfig) -> float:
    """Operations of the encoder's matrix products on crops of so many channels, forward."""
    n_tokens = [n * config.n_patches for n in n_channels]
    width, pixels = config.width, config.patch_size**2
    each_token = 2 * (4 * width**2 + 2 * int(width * config.mlp_ratio) * width)
    return sum(
        n * 2 * pixels * width + config.depth * ((1 + n) * each_token + 4 * (1 + n) ** 2 * width) for n in n_tokens
    )


def packed_loss(encoder: VisionTransformer, batch: CropBatch) -> Tensor:
    """Mean over tokens of a number that depends on all of a token's final features."""
    tokens_TD, _ = encoder(batch)
    return _projected(tokens_TD).mean()


def padded_loss(encoder: VisionTransformer, batch: CropBatch) -> Tensor:
    """The same over the tokens that are no padding."""
    tokens_BLD = padded_tokens(encoder, batch, PADDED_TO)
    device = tokens_BLD.device
    n_real = 1 + encoder.config.n_patches * to_device(torch.tensor(batch.n_channels), device)
    is_real_BL = torch.arange(tokens_BLD.shape[1], device=device)[None, :] < n_real[:, None]
    return (_projected(tokens_BLD) * is_real_BL).sum() / is_real_BL.sum()


def _projected(tokens: Tensor) -> Tensor:
    """(..., D) -> (...), squared; the norm of a token would not do, as the encoder's last layer makes it 1."""
    direction_D = torch.linspace(-1, 1, tokens.shape[-1], device=tokens.device)
    return (tokens.float() * direction_D).sum(dim=-1).square()


def step(
    encoder: VisionTransformer, batch: CropBatch, loss_of: Callable[[VisionTransformer, CropBatch], Tensor]
) -> tuple[float, float]:
    """Loss and seconds of one forward and backward."""
    encoder.zero_grad()
    started = time.perf_counter()
    loss = loss_of(encoder, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), time.perf_counter() - started


def largest_gradient_difference(encoder: VisionTransformer, batch: CropBatch) -> float:
    """Of any weight, as a share of the largest gradient."""
    gradients = []
    for loss_of in (packed_loss, padded_loss):
        step(encoder, batch, loss_of)
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None])
    largest = max(float(gradient.abs().max()) for gradient in gradients[1])
    return max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True)) / largest


def main() -> int:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=120)
    encoder = build_encoder(MODEL, 0)
    rng = np.random.default_rng(0)
    batches = []
    for seed in range(ROUNDS):
        counts = real_mix(N_CROPS, seed)
        images = [rng.integers(100, 4000, (n, MODEL.crop_size, MODEL.crop_size)).astype(np.uint16) for n in counts]
        batches.append(collate(images, [tuple(range(1, n + 1)) for n in counts]))
    difference = largest_gradient_difference(encoder, batches[0])
    console.print(f"largest difference of a gradient: {difference:.1e} of the largest gradient")
    if difference > 1e-4:
        raise RuntimeError("the packed and the padded form differ: the timing would mean nothing")
    packed_s, padded_s, shares = [], [], []
    shown = Table("crops by channels", "packed s", "padded s", "ratio", "FLOP ratio", box=None)
    for batch in batches:
        packed, one = step(encoder, batch, packed_loss)
        padded, other = step(encoder, batch, padded_loss)
        if abs(packed - padded) > 1e-4 * abs(padded):
            raise RuntimeError(f"losses differ: packed {packed}, padded {padded}")
        fewer = flops([PADDED_TO] * len(batch), MODEL) / flops(batch.n_channels, MODEL)
        packed_s.append(one)
        padded_s.append(other)
        shares.append(other / one / fewer)
        mix = " ".join(f"{n}:{batch.n_channels.count(n)}" for n in sorted(set(batch.n_channels)))
        shown.add_row(mix, f"{one:.2f}", f"{other:.2f}", f"{other / one:.2f}", f"{fewer:.2f}")
    console.print(shown)
    figure = statistics.median(other / one for one, other in zip(packed_s, padded_s, strict=True))
    share = statistics.median(shares)
    is_ok = figure >= BAR and share >= SHARE_BAR
    print(
        f"chada: figure={figure:.2f} bar={BAR} flop_share={share:.2f} flop_share_bar={SHARE_BAR} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
