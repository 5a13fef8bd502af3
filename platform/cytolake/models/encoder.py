"""The encoder: crops to tokens to one vector for each block.

Shapes: B crops, C channels, S side of a crop in pixels, N patches of a channel, P pixels of a token, L tokens, D width.
`mae_vit` has L = N tokens of P = C * patch_size**2 pixels; `chada_vit` has L = C * N tokens of P = patch_size**2
pixels, channel by channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.config import ModelConfig, wrong_channels
from cytolake.models.crops import CropBatch, standardise
from cytolake.models.transformer import Block, grid_positions, initialise

POOLINGS = ("mean", "cls")


@dataclass(frozen=True, slots=True)
class Patches:
    """Standardised crops cut into the pixels of each token."""

    pixels: Tensor
    """(B, L, P) float32, standardised intensities; channel, row, column within a token."""
    is_token: Tensor
    """(B, L) bool, False for the tokens of padded channels."""
    channel_index: Tensor | None
    """(B, L) long, identity of a token's channel; None for `mae_vit`, whose tokens hold all channels."""
    padded: bool
    """False when all tokens are real."""


class Encoder(nn.Module):
    """Vision transformer over raw crops; `config.architecture` chooses how channels become tokens.

    Source: He et al. 2022, arXiv 2111.06377 (`mae_vit`); Bourriez et al. 2024, arXiv 2311.15264 (`chada_vit`, here with
    channel embeddings by the stain's identity rather than by its place in the file).
    """

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        fused = len(config.channels) if config.architecture == "mae_vit" else 1
        self.patch_embedding = nn.Linear(fused * config.patch_size**2, config.width)
        self.register_buffer(
            "positions", grid_positions(config.crop_size // config.patch_size, config.width), persistent=False
        )
        self.cls_token = nn.Parameter(torch.zeros(config.width))
        self.channel_embedding = (
            nn.Embedding(len(config.channels) + 1, config.width) if config.architecture == "chada_vit" else None
        )
        skip = torch.linspace(0, config.drop_path, config.depth).tolist()
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio, rate) for rate in skip)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        initialise(self)
        nn.init.normal_(self.cls_token, std=0.02)
        if self.channel_embedding is not None:
            nn.init.normal_(self.channel_embedding.weight, std=0.2)  # sin-cos positions have an rms of 0.7

    @property
    def n_blocks(self) -> int:
        return len(self.blocks)

    def forward(self, batch: CropBatch) -> Tensor:
        """Final tokens: (B, 1 + L, D), the cls token first, then the patch tokens; tokens of padded channels are 0."""
        patches = self.patches(batch)
        is_real = functional.pad(patches.is_token, (1, 0), value=True)
        *_, tokens = self.run_blocks(self.embed(patches), patches.is_token if patches.padded else None)
        final: Tensor = self.norm(tokens) * is_real[:, :, None]
        return final

    @torch.no_grad()
    def pooled_blocks(self, batch: CropBatch) -> dict[str, Tensor]:
        """Frozen features: the pooled output of every block, from one pass, without drop-path and without gradients.

        Each token is layer-normed (no learned gain) before pooling, so that blocks have one scale and a few large
        tokens do not decide the mean. A crop's features do not depend on what else is in the minibatch.

        Returns:
            `mean`: (n_blocks, B, D) float32, mean over the crop's own patch tokens. `cls`: the same shape, cls token.
        """
        was_training = self.training
        if was_training:
            self.eval()
        try:
            patches = self.patches(batch)
            weight_BL = patches.is_token / patches.is_token.sum(dim=1, keepdim=True)
            mean, cls = [], []
            for tokens in self.run_blocks(self.embed(patches), patches.is_token if patches.padded else None):
                normed = functional.layer_norm(tokens.float(), (self.config.width,), eps=1e-6)
                cls.append(normed[:, 0])
                mean.append((normed[:, 1:] * weight_BL[:, :, None]).sum(dim=1))
        finally:
            if was_training:
                self.train()
        return {"mean": torch.stack(mean), "cls": torch.stack(cls)}

    def trim(self, n_blocks: int) -> Encoder:
        """A copy with the first `n_blocks` blocks: the features of block n_blocks - 1 at the price of those blocks.

        Raises:
            ValueError: Not 1 <= n_blocks <= self.n_blocks.
        """
        if not 1 <= n_blocks <= self.n_blocks:
            raise ValueError(
                f"cannot keep {n_blocks} blocks of an encoder with {self.n_blocks}: expected 1 to {self.n_blocks}."
            )
        trimmed = Encoder(dataclasses.replace(self.config, depth=n_blocks))
        trimmed.load_state_dict(
            {name: value for name, value in self.state_dict().items() if name in trimmed.state_dict()}, strict=True
        )
        return trimmed.to(self.cls_token.device).train(self.training)

    def patches(self, batch: CropBatch) -> Patches:
        """Standardise and cut.

        Raises:
            ValueError: Crops of another size, channels that a `mae_vit` was not built for, or an identity that a
                `chada_vit` does not have.
        """
        if batch.pixels.shape[-2:] != (self.config.crop_size,) * 2:
            raise ValueError(
                f"crops of {batch.pixels.shape[-2]} x {batch.pixels.shape[-1]} px; this model takes "
                f"{self.config.crop_size} x {self.config.crop_size} px. "
                "Cut crops of that size, or train a model of this one."
            )
        side, size = self.config.crop_size // self.config.patch_size, self.config.patch_size
        pixels = standardise(batch.pixels).view(*batch.pixels.shape[:2], side, size, side, size)  # B C row y column x
        pixels = pixels.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # (B, C, N, size * size)
        if self.config.architecture == "mae_vit":
            order_BC = self._order_of_channels(batch)
            pixels = pixels.take_along_dim(order_BC[:, :, None, None], dim=1)
            pixels_BLP = pixels.transpose(1, 2).flatten(2)
            return Patches(pixels_BLP, torch.ones_like(pixels_BLP[:, :, 0], dtype=torch.bool), None, padded=False)
        self._check_identities(batch)
        n_patches = side * side
        return Patches(
            pixels.flatten(1, 2),
            batch.is_channel.repeat_interleave(n_patches, dim=1),
            batch.channel_index.repeat_interleave(n_patches, dim=1),
            padded=batch.padded,
        )

    def embed(self, patches: Patches) -> Tensor:
        """(B, L, D) patch tokens with position and channel identity, before the first block and without cls."""
        tokens: Tensor = self.patch_embedding(patches.pixels)
        positions_LD = self.positions.repeat(tokens.shape[1] // len(self.positions), 1)
        tokens = tokens + positions_LD
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(patches.channel_index)
        return tokens

    def run_blocks(self, tokens_BLD: Tensor, is_token_BL: Tensor | None) -> Iterator[Tensor]:
        """(B, 1 + L, D) after each block in turn, cls first, for patch tokens of `embed`; None means no padding."""
        tokens = torch.cat([self.cls_token.expand(len(tokens_BLD), 1, -1).to(tokens_BLD.dtype), tokens_BLD], dim=1)
        is_key = None if is_token_BL is None else functional.pad(is_token_BL, (1, 0), value=True)
        for block in self.blocks:
            tokens = block(tokens, is_key)
            yield tokens

    def _order_of_channels(self, batch: CropBatch) -> Tensor:
        """(B, C) where in each crop the model's stains are, in the model's order."""
        wanted = torch.arange(1, len(self.config.channels) + 1, device=batch.channel_index.device)
        order_BC = batch.channel_index.argsort(dim=1)
        found_BC = batch.channel_index.take_along_dim(order_BC, dim=1)
        if found_BC.shape[1] != len(wanted) or not bool(batch.is_channel.all() & (found_BC == wanted).all()):
            for i, (indices, is_channel) in enumerate(
                zip(batch.channel_index.tolist(), batch.is_channel.tolist(), strict=True)
            ):
                real = [index for index, real in zip(indices, is_channel, strict=True) if real]
                if sorted(real) != wanted.tolist():
                    raise wrong_channels(self.config.channels, self._names(real), f"crop {i} of the minibatch")
        return order_BC

    def _check_identities(self, batch: CropBatch) -> None:
        assert self.channel_embedding is not None
        highest = len(self.config.channels)
        # A wrong index on a GPU ends the process without a message.
        if bool(((batch.channel_index < 0) | (batch.channel_index > highest)).any()):
            raise ValueError(
                f"channel identities from {int(batch.channel_index.min())} to {int(batch.channel_index.max())}; this "
                f"model knows 0 (unknown) to {highest}. "
                "Take them from the model's own ModelConfig.channel_indices(names)."
            )

    def _names(self, indices: list[int]) -> list[str]:
        names = dict(enumerate(self.config.channels, start=1))
        return [names.get(index, "unknown" if index == 0 else f"identity {index}") for index in indices]
