"""The encoder: crops to tokens to one vector for each block.

Shapes: B crops, C channels, S side of a crop in pixels, N patches of a channel, P pixels of a token, L tokens of a
crop, T tokens of all crops in runs of equal length (see `runs`), D width. `mae_vit` has L = N tokens of
P = C * patch_size**2 pixels; `chada_vit` has L = C * N tokens of P = patch_size**2 pixels, channel by channel.
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
from cytolake.models.runs import Runs, by_length, join_runs, longer, split_runs
from cytolake.models.transformer import Block, grid_positions, initialise

POOLINGS = ("mean", "cls")


@dataclass(frozen=True, slots=True)
class Patches:
    """Standardised crops cut into the pixels of each token."""

    pixels: Tensor
    """(T, P) float32, standardised intensities; channel, row, column within a token."""
    channel_index: Tensor | None
    """(T,) long, identity of a token's channel; None for `mae_vit`, whose tokens hold all channels."""
    runs: Runs
    """Crops of equal channel counts, side by side."""
    order: Tensor
    """(B,) long, which crop of the minibatch is at each place in the runs."""

    def in_minibatch_order(self, of_crop_BX: Tensor) -> Tensor:
        """Rows of crops in the order of the runs, put back into the order of the minibatch."""
        return of_crop_BX[self.order.argsort()] if len(self.runs) > 1 else of_crop_BX


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

    def forward(self, batch: CropBatch) -> tuple[Tensor, Runs]:
        """Final tokens (T + B, D) of all crops in runs, each crop's cls token before its patch tokens, and the runs."""
        patches = self.patches(batch)
        *_, tokens = self.run_blocks(self.embed(patches), patches.runs)
        final: Tensor = self.norm(tokens)
        return final, longer(patches.runs, 1)

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
            mean, cls = [], []
            for tokens in self.run_blocks(self.embed(patches), patches.runs):
                normed = functional.layer_norm(tokens.float(), (self.config.width,), eps=1e-6)
                first_BD, mean_BD = cls_and_mean(normed, longer(patches.runs, 1))
                cls.append(patches.in_minibatch_order(first_BD))
                mean.append(patches.in_minibatch_order(mean_BD))
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
        if self.config.architecture == "mae_vit":
            order_BC = self._order_of_channels(batch)
            channels = batch.pixels.take_along_dim(order_BC[:, :, None, None], dim=1)
            pixels = self._cut(channels).transpose(1, 2).flatten(2)  # (B, N, C * size * size)
            crops = torch.arange(len(batch), device=pixels.device)
            runs = ((len(batch), self.config.n_patches),)
            return Patches(pixels.flatten(0, 1), None, runs, crops)
        self._check_identities(batch)
        places, crops_of_count = by_length(batch.n_channels)
        order = torch.tensor(places, device=batch.pixels.device)
        cut, identities = [], []
        first = 0
        for n, n_channels in crops_of_count:
            rows = order[first : first + n]
            cut.append(self._cut(batch.pixels[rows, :n_channels]).flatten(0, 2))
            identities.append(batch.channel_index[rows, :n_channels].flatten())
            first += n
        n_patches = self.config.n_patches
        return Patches(
            torch.cat(cut),
            torch.cat(identities).repeat_interleave(n_patches),
            tuple((n, n_channels * n_patches) for n, n_channels in crops_of_count),
            order,
        )

    def embed(self, patches: Patches) -> Tensor:
        """(T, D) patch tokens with position and channel identity, before the first block and without cls."""
        tokens: Tensor = self.patch_embedding(patches.pixels)
        tokens = tokens + self.positions.repeat(len(tokens) // len(self.positions), 1)
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(patches.channel_index)
        return tokens

    def run_blocks(self, tokens_TD: Tensor, runs: Runs) -> Iterator[Tensor]:
        """(T + B, D) after each block in turn, each crop's cls token before its patch tokens (T, D) of `embed`."""
        tokens = join_runs(
            torch.cat([self.cls_token.expand(len(stack), 1, -1).to(stack.dtype), stack], dim=1)
            for stack in split_runs(tokens_TD, runs)
        )
        for block in self.blocks:
            tokens = block(tokens, longer(runs, 1))
            yield tokens

    def _cut(self, pixels: Tensor) -> Tensor:
        """(B, C, S, S) raw counts to (B, C, N, size * size) standardised patches."""
        side, size = self.config.crop_size // self.config.patch_size, self.config.patch_size
        pixels = standardise(pixels).view(*pixels.shape[:2], side, size, side, size)  # B C row y column x
        return pixels.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def _order_of_channels(self, batch: CropBatch) -> Tensor:
        """(B, C) where in each crop the model's stains are, in the model's order."""
        wanted = torch.arange(1, len(self.config.channels) + 1, device=batch.channel_index.device)
        order_BC = batch.channel_index.argsort(dim=1)
        found_BC = batch.channel_index.take_along_dim(order_BC, dim=1)
        if {*batch.n_channels} != {len(wanted)} or not bool((found_BC == wanted).all()):
            for i, (indices, n_channels) in enumerate(zip(batch.channel_index.tolist(), batch.n_channels, strict=True)):
                real = indices[:n_channels]
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


def cls_and_mean(tokens_TD: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """(B, D) the first token of each crop, and (B, D) the mean of its others, in the order of the runs."""
    stacks = split_runs(tokens_TD, runs)
    return torch.cat([stack[:, 0] for stack in stacks]), torch.cat([stack[:, 1:].mean(dim=1) for stack in stacks])
