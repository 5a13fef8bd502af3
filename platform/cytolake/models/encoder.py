"""The encoder, which maps a crop to one vector for each block, and the vision transformer.

Shapes: B crops, C channels, S side of a crop in pixels, N patches of a channel, P pixels of a token, L tokens of a
crop, T tokens of all crops in runs of equal length (see `runs`), D width. `mae_vit` has L = N tokens of
P = C * patch_size**2 pixels; `ca_mae_vit` and `chada_vit` have L = C * N tokens of P = patch_size**2 pixels, channel by
channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from cytolake.models.config import POOLINGS, ModelConfig, wrong_channels
from cytolake.models.crops import CropBatch, floor_of, scaled, standardise
from cytolake.models.runs import Runs, by_length, join_runs, longer, split_runs, to_device
from cytolake.models.transformer import build_block, grid_positions, initialise

CHANNEL_MEAN = "channel_mean"
"""The mean of each channel's patch tokens, channel after channel: width C * D; see `has_channel_mean`."""


OfBlocks: TypeAlias = "Tensor | tuple[Tensor, ...]"
"""(B, D) of each block in turn, whose D may differ; one tensor (n_blocks, B, D) where it is the same."""


class Encoder(nn.Module):
    """Interface of every encoder, for any kind of layers. Made by `build.new_encoder`."""

    config: ModelConfig
    recomputes: bool = False
    """Recompute the activations of a block in the backward pass: less memory, a third more time."""

    @property
    def n_blocks(self) -> int:
        raise NotImplementedError

    def final_vectors(self, batch: CropBatch, pooling: str) -> Tensor:
        """(B, D) one vector of each crop from the last layer, with gradients; `pooling` is one of `config.poolings`."""
        raise NotImplementedError

    def pooled_blocks(self, batch: CropBatch, poolings: Sequence[str] | None = None) -> Mapping[str, OfBlocks]:
        """Frozen features: the pooled output of every block by pooling, from one pass, without gradients.

        Args:
            batch: Raw crops.
            poolings: Which; None means `config.poolings`.
        """
        raise NotImplementedError

    def trim(self, n_blocks: int) -> Encoder:
        """A copy with the first `n_blocks` blocks: for the features of block n_blocks - 1 at the cost of those blocks
        alone.

        Raises:
            ValueError: Not 1 <= n_blocks <= self.n_blocks.
        """
        if not 1 <= n_blocks <= self.n_blocks:
            raise ValueError(
                f"cannot keep {n_blocks} blocks of an encoder with {self.n_blocks}: expected 1 to {self.n_blocks}."
            )
        return self._trimmed(n_blocks)

    def _trimmed(self, n_blocks: int) -> Encoder:
        raise NotImplementedError

    def _intensities(self, pixels: Tensor, floor: Tensor | None) -> Tensor:
        """Scaled counts as the first layer takes them, float32; `floor` is (B, 1, 1, 1), see `standardise`."""
        return standardise(pixels, floor) if self.config.standardise else pixels.float()

    def _fused_channels(self, batch: CropBatch, counts: Tensor) -> Tensor:
        """(B, C, S, S) counts of crops that must have exactly the model's stains, in the model's order."""
        order_BC = self._order_of_channels(batch)
        if order_BC is None:
            return counts
        return counts.take_along_dim(to_device(order_BC, counts.device)[:, :, None, None], dim=1)

    def _order_of_channels(self, batch: CropBatch) -> Tensor | None:
        """(B, C) where in each crop the model's stains are, in the model's order; None where all have that order."""
        wanted = torch.arange(1, len(self.config.channels) + 1)
        order_BC = batch.channel_index.argsort(dim=1)
        found_BC = batch.channel_index.take_along_dim(order_BC, dim=1)
        if {*batch.n_channels} != {len(wanted)} or not bool((found_BC == wanted).all()):
            for i, (indices, n_channels) in enumerate(zip(batch.channel_index.tolist(), batch.n_channels, strict=True)):
                real = indices[:n_channels]
                if sorted(real) != wanted.tolist():
                    raise wrong_channels(self.config, self._names(real), f"crop {i} of the minibatch")
        return None if torch.equal(found_BC, batch.channel_index) else order_BC

    def _names(self, indices: list[int]) -> list[str]:
        names = dict(enumerate(self.config.channels, start=1))
        return [names.get(index, "unknown" if index == 0 else f"identity {index}") for index in indices]


@dataclass(frozen=True, slots=True)
class Patches:
    """Standardised crops cut into the pixels of each token."""

    pixels: Tensor
    """(T, P) float32, standardised intensities; channel, row, column within a token."""
    channel_index: Tensor | None
    """(T,) long, identity of a token's channel; None for `mae_vit`, whose tokens hold all channels."""
    channel_place: Tensor | None
    """(T,) long, place of a token's channel in its crop, from 0; None for `mae_vit`."""
    runs: Runs
    """Crops of equal channel counts, side by side."""
    order: Tensor
    """(B,) long, which crop of the minibatch is at each place in the runs."""
    side: int
    """Patches along a side of a crop."""

    def in_minibatch_order(self, of_crop_BX: Tensor) -> Tensor:
        """Rows of crops in the order of the runs, put back into the order of the minibatch."""
        return of_crop_BX[self.order.argsort()] if len(self.runs) > 1 else of_crop_BX


class VisionTransformer(Encoder):
    """Vision transformer over raw crops; `config.architecture` chooses how channels become tokens.

    Source: He et al. 2022, arXiv 2111.06377 (`mae_vit`); Kraus et al. 2024, arXiv 2404.10242 (`ca_mae_vit`);
    Bourriez et al. 2024, arXiv 2311.15264 (`chada_vit`; by default its channel embeddings are of the stain's identity
    rather than of its place in the file).
    """

    positions: Tensor
    compiled_for_one_shape: ClassVar = ("cut",)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        fused = len(config.channels) if config.is_fused else 1
        self.patch_embedding = nn.Linear(fused * config.patch_size**2, config.width)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(config.n_patches, config.width))
        else:
            positions = grid_positions(config.crop_size // config.patch_size, config.width)
            self.register_buffer("positions", positions, persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(config.width))
        self.channel_embedding = None
        if config.architecture == "chada_vit":
            n_codes = len(config.channels) + 1 if config.channel_code == "stain" else config.max_channels
            self.channel_embedding = nn.Embedding(n_codes, config.width)
        skip = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            build_block(
                config.block,
                config.width,
                config.heads,
                config.mlp_width,
                drop_path=rate,
                layer_scale=config.layer_scale,
            )
            for rate in skip
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        initialise(self)
        nn.init.normal_(self.cls_token, std=0.02)
        if config.positions == "learned":
            nn.init.trunc_normal_(self.positions, std=0.02)
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

    def features(self, batch: CropBatch) -> tuple[Tensor, Tensor]:
        """(B, D) the final cls token and (B, D) the mean of the final patch tokens of each crop, with gradients."""
        patches = self.patches(batch)
        *_, tokens = self.run_blocks(self.embed(patches), patches.runs)
        cls_BD, mean_BD = cls_and_mean(self.norm(tokens), longer(patches.runs, 1))
        return patches.in_minibatch_order(cls_BD), patches.in_minibatch_order(mean_BD)

    def final_vectors(self, batch: CropBatch, pooling: str) -> Tensor:
        cls_BD, mean_BD = self.features(batch)
        return cls_BD if pooling == "cls" else mean_BD

    @torch.no_grad()
    def pooled_blocks(self, batch: CropBatch, poolings: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Frozen features: the pooled output of every block, from one pass, without drop-path and without gradients.

        Each token is layer-normed (no learned gain) before pooling, so that blocks have one scale and a few large
        tokens do not decide the mean. A crop's features do not depend on what else is in the minibatch.

        Args:
            batch: Raw crops.
            poolings: Which; of `mean`, `cls` and `channel_mean`. None means the first two.

        Returns:
            `mean`: (n_blocks, B, D) float32, mean over the crop's own patch tokens. `cls`: the same shape, cls token.
            `channel_mean`: (n_blocks, B, C * D), mean over each channel's patch tokens, channels in the order of
            `config.channels`, whatever their order in the crop.

        Raises:
            ValueError: A pooling of another name, or `channel_mean` where it is not defined, see `has_channel_mean`.
        """
        poolings = POOLINGS if poolings is None else poolings
        if unknown := set(poolings) - {*POOLINGS, CHANNEL_MEAN}:
            raise ValueError(
                f"pooling {', '.join(sorted(unknown))} is not known: choose of {', '.join((*POOLINGS, CHANNEL_MEAN))}."
            )
        order_BC = self._vocabulary_order(batch) if CHANNEL_MEAN in poolings else None
        was_training = self.training
        if was_training:
            self.eval()
        try:
            patches = self.patches(batch)
            with_cls = longer(patches.runs, 1)
            pooled: dict[str, list[Tensor]] = {pooling: [] for pooling in poolings}
            for tokens in self.run_blocks(self.embed(patches), patches.runs):
                normed = functional.layer_norm(tokens.float(), (self.config.width,), eps=1e-6)
                first_BD, mean_BD = cls_and_mean(normed, with_cls)
                of_block = {"cls": first_BD, "mean": mean_BD}
                if order_BC is not None:
                    of_block[CHANNEL_MEAN] = channel_means(normed, with_cls, order_BC)
                for pooling, kept in pooled.items():
                    kept.append(patches.in_minibatch_order(of_block[pooling]))
        finally:
            if was_training:
                self.train()
        return {pooling: torch.stack(kept) for pooling, kept in pooled.items()}

    def _trimmed(self, n_blocks: int) -> Encoder:
        trimmed = VisionTransformer(dataclasses.replace(self.config, depth=n_blocks))
        trimmed.load_state_dict(
            {name: value for name, value in self.state_dict().items() if name in trimmed.state_dict()}, strict=True
        )
        return trimmed.to(self.cls_token.device).train(self.training)

    def patches(self, batch: CropBatch) -> Patches:
        """Scale and cut.

        Raises:
            ValueError: Crops without the range that `input_scaling` needs, crops that do not divide into patches,
                channels that a `mae_vit` was not built for, or an identity or number of channels that a `chada_vit`
                does not have.
        """
        height, width = batch.pixels.shape[-2:]
        if height != width or height % self.config.patch_size:
            raise ValueError(
                f"crops of {height} x {width} px; this model takes square crops whose side is a multiple of its "
                f"patch_size, {self.config.patch_size} px, and was trained on {self.config.crop_size} px. "
                "Cut crops of such a size."
            )
        side = width // self.config.patch_size
        device = batch.pixels.device
        counts, floor = scaled(batch, self.config.input_scaling), floor_of(batch, self.config.noise_floor)
        if self.config.is_fused:
            # (B, N, C * size * size)
            pixels = self.cut(self._fused_channels(batch, counts), floor).transpose(1, 2).flatten(2)
            crops = torch.arange(len(batch), device=device)
            return Patches(pixels.flatten(0, 1), None, None, ((len(batch), side**2),), crops, side)
        self._check_identities(batch)
        places, crops_of_count = by_length(batch.n_channels)
        order = torch.tensor(places)
        order_there = to_device(order, device)
        cut, identities, of_crop = [], [], []
        first = 0
        for n, n_channels in crops_of_count:
            which = order_there[first : first + n]
            floors = None if floor is None else floor[which]
            cut.append(self.cut(counts[which, :n_channels], floors).flatten(0, 2))
            identities.append(batch.channel_index[order[first : first + n], :n_channels].flatten())
            of_crop.append(torch.arange(n_channels).repeat(n))
            first += n
        return Patches(
            torch.cat(cut),
            to_device(torch.cat(identities), device).repeat_interleave(side**2),
            to_device(torch.cat(of_crop), device).repeat_interleave(side**2),
            tuple((n, n_channels * side**2) for n, n_channels in crops_of_count),
            order_there,
            side,
        )

    def cut(self, pixels: Tensor, floor: Tensor | None = None) -> Tensor:
        """(B, C, S, S) intensities to (B, C, N, size * size) patches, standardised where the config says so.

        `floor` is (B, 1, 1, 1), see `standardise`.
        """
        size = self.config.patch_size
        side = pixels.shape[-1] // size
        pixels = self._intensities(pixels, floor).reshape(*pixels.shape[:2], side, size, side, size)
        # B C row y column x
        return pixels.transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def embed(self, patches: Patches, places: Tensor | None = None) -> Tensor:
        """(T, D) patch tokens with position and channel identity, before the first block and without cls.

        With `places`, (V,) long: of the tokens at these places of the row alone.
        """
        n_patches = patches.side**2
        positions, code = self._positions(patches.side), patches.channel_place
        if self.config.channel_code == "stain":
            code = patches.channel_index
        if places is None:
            tokens: Tensor = self.patch_embedding(patches.pixels)
            tokens = tokens + positions.repeat(len(tokens) // n_patches, 1)
        else:
            tokens = self.patch_embedding(patches.pixels.index_select(0, places))
            tokens = tokens + positions.index_select(0, places % n_patches)
        if self.channel_embedding is not None:
            assert code is not None
            tokens = tokens + self.channel_embedding(code if places is None else code.index_select(0, places))
        return tokens

    def run_blocks(self, tokens_TD: Tensor, runs: Runs) -> Iterator[Tensor]:
        """(T + B, D) after each block in turn, each crop's cls token before its patch tokens (T, D) of `embed`."""
        tokens = join_runs(
            torch.cat([self.cls_token.expand(len(stack), 1, -1).to(stack.dtype), stack], dim=1)
            for stack in split_runs(tokens_TD, runs)
        )
        with_cls = longer(runs, 1)
        for block in self.blocks:
            if self.recomputes and torch.is_grad_enabled():
                tokens = cast(Tensor, checkpoint(block, tokens, with_cls, use_reentrant=False))
            else:
                tokens = block(tokens, with_cls)
            yield tokens

    def _positions(self, side: int) -> Tensor:
        """(side * side, D) position codes of crops of any size."""
        if side**2 == len(self.positions):
            return self.positions
        if self.config.positions == "sin_cos":
            return grid_positions(side, self.config.width).to(self.positions.device)
        trained = self.config.crop_size // self.config.patch_size
        grid_1Dyx = self.positions.T.view(1, -1, trained, trained)
        resized = functional.interpolate(grid_1Dyx, size=(side, side), mode="bicubic", align_corners=False)
        return resized[0].flatten(1).T

    def _vocabulary_order(self, batch: CropBatch) -> Tensor:
        """(B, C) where in each crop its channels are, in the order of the model's vocabulary."""
        order_BC = batch.channel_index.argsort(dim=1)
        identity_BC = batch.channel_index.take_along_dim(order_BC, dim=1)
        is_known = bool((identity_BC > 0).all()) and bool((identity_BC[:, 1:] > identity_BC[:, :-1]).all())
        if self.config.is_fused or not is_known or not bool((identity_BC == identity_BC[:1]).all()):
            found = sorted({", ".join(self._names(row)) for row in batch.channel_index.tolist()})
            raise ValueError(
                f"no {CHANNEL_MEAN} of this {self.config.architecture} for crops of channels {'; '.join(found[:3])}: "
                "it takes tokens of single channels, and the same known stains, each once, in every crop. "
                f"Take one of {', '.join(POOLINGS)}."
            )
        return to_device(order_BC, batch.pixels.device)

    def _check_identities(self, batch: CropBatch) -> None:
        self.config.check_number_of_channels(max(batch.n_channels))
        highest = len(self.config.channels)
        # A wrong index on a GPU would end the process without a message.
        if bool(((batch.channel_index < 0) | (batch.channel_index > highest)).any()):
            raise ValueError(
                f"channel identities from {int(batch.channel_index.min())} to {int(batch.channel_index.max())}; this "
                f"model knows 0 (unknown) to {highest}. "
                "Take them from the model's own ModelConfig.channel_indices(names)."
            )


def cls_and_mean(tokens_TD: Tensor, runs: Runs) -> tuple[Tensor, Tensor]:
    """(B, D) the first token of each crop, and (B, D) the mean of its others, in the order of the runs."""
    stacks = split_runs(tokens_TD, runs)
    return torch.cat([stack[:, 0] for stack in stacks]), torch.cat([stack[:, 1:].mean(dim=1) for stack in stacks])


def channel_means(tokens_TD: Tensor, runs: Runs, order_BC: Tensor) -> Tensor:
    """(B, C * D) the mean of each channel's tokens, without cls, channels in the order given for each crop."""
    (stack,) = split_runs(tokens_TD, runs)  # crops of equal channel counts are one run
    means_BCD = stack[:, 1:].reshape(len(stack), order_BC.shape[1], -1, stack.shape[-1]).mean(dim=2)
    return torch.take_along_dim(means_BCD, order_BC[:, :, None], dim=1).flatten(1)


def has_channel_mean(config: ModelConfig, channel_sets: Iterable[Sequence[str]]) -> bool:
    """Whether `channel_mean` is defined: each place of the vector must stand for the same stain in all crops.

    Args:
        config: Of the encoder. A fused `mae_vit` has none, because its tokens hold all channels.
        channel_sets: Stains of the crops, in any order; repeats do not matter.
    """
    sets = {tuple(sorted(names)) for names in channel_sets}
    if config.is_fused or len(sets) != 1:
        return False
    (names,) = sets
    return len(set(names)) == len(names) > 0 and set(names) <= set(config.channels)
