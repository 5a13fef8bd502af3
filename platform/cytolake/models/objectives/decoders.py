"""Decoders of the masked autoencoder: from the encoder's visible tokens to the pixels of the hidden ones.

Shapes: B crops, N patches of a channel, T tokens of all crops in runs of equal length (see `runs`), V of them visible
and H hidden, P pixels of a token, D the encoder's width, E the decoder's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cytolake.models.config import ModelConfig
from cytolake.models.encoder import Patches
from cytolake.models.masking import Mask
from cytolake.models.objectives.config import MaeConfig
from cytolake.models.runs import join_runs, longer, split_runs
from cytolake.models.transformer import SequentialBlock, attend, grid_positions, initialise

_MLP_RATIO = 4  # He et al. 2022
_CROSS_ATTENTION_HEADS = 8  # Kraus et al. 2024


class Decoder(nn.Module):
    """Base of both decoders: input layer, tokens of hidden patches, and output layer to pixels."""

    positions: Tensor

    def __init__(self, model: ModelConfig, config: MaeConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.entry = nn.Linear(model.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", grid_positions(model.crop_size // model.patch_size, width), persistent=False)
        # 0 is an unknown stain; the tokens of `mae_vit` hold all stains.
        self.channel_embedding = None if model.is_fused else nn.Embedding(len(model.channels) + 1, width)
        fused = len(model.channels) if model.is_fused else 1
        self.pixels = nn.Linear(width, fused * model.patch_size**2)

    def forward(self, encoded_ED: Tensor, mask: Mask, patches: Patches) -> Tensor:
        """(H, P) predicted pixels of the hidden tokens, in the order of `mask.hidden`.

        Args:
            encoded_ED: (V + B, D) the encoder's final tokens, each crop's cls token before its visible tokens.
            mask: Where the visible tokens belong, and where the hidden ones are.
            patches: The runs and channels of all tokens; the pixels are not read.
        """
        raise NotImplementedError

    def _initialise(self) -> None:
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.channel_embedding is not None:
            nn.init.normal_(self.channel_embedding.weight, std=0.2)

    def _all_tokens(self, encoded_ED: Tensor, mask: Mask, patches: Patches) -> tuple[list[Tensor], Tensor]:
        """(n, 1, E) cls tokens of each run, and (T, E) tokens of all patches with position and channel."""
        entered = split_runs(self.entry(encoded_ED), longer(mask.runs, 1))
        visible = join_runs(stack[:, 1:] for stack in entered)
        tokens = self.mask_token.to(visible.dtype).expand(len(patches.pixels), -1).index_copy(0, mask.visible, visible)
        positions = self.positions
        if len(positions) != patches.side**2:
            positions = grid_positions(patches.side, positions.shape[1]).to(positions.device)
        tokens = tokens + positions.repeat(len(tokens) // len(positions), 1)
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(patches.channel_index)
        return [stack[:, :1] for stack in entered], tokens


class SharedDecoder(Decoder):
    """One light transformer over all tokens of a crop. He et al. 2022, arXiv 2111.06377."""

    def __init__(self, model: ModelConfig, config: MaeConfig) -> None:
        super().__init__(model, config)
        width = config.decoder_width
        self.blocks = nn.ModuleList(
            SequentialBlock(width, config.decoder_heads, _MLP_RATIO * width, qk_norm=False)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialise()

    def forward(self, encoded_ED: Tensor, mask: Mask, patches: Patches) -> Tensor:
        cls_tokens, tokens = self._all_tokens(encoded_ED, mask, patches)
        with_cls = longer(patches.runs, 1)
        tokens = join_runs(
            torch.cat([cls.to(tokens.dtype), own], dim=1)
            for cls, own in zip(cls_tokens, split_runs(tokens, patches.runs), strict=True)
        )
        for block in self.blocks:
            tokens = block(tokens, with_cls)
        predicted: Tensor = self.pixels(self.norm(tokens.index_select(0, _places_after_cls(mask))))
        return predicted


class PerChannelDecoder(Decoder):
    """A light transformer for each stain, after one cross-attention to all channels of the crop.

    Every token first attends to all patch tokens of its crop, with weights that all stains share, and passes a shared
    MLP; then the tokens of each stain go through blocks of their own, one channel of one crop at a time. As published,
    nothing is added around the cross-attention. Source: Kraus et al. 2024, arXiv 2404.10242, section 3.4.
    """

    def __init__(self, model: ModelConfig, config: MaeConfig) -> None:
        super().__init__(model, config)
        width = config.decoder_width
        self._heads = _CROSS_ATTENTION_HEADS
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.context_norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP_RATIO * width), nn.GELU(), nn.Linear(_MLP_RATIO * width, width))
        self.of_channel = nn.ModuleList(
            nn.ModuleList(
                SequentialBlock(width, config.decoder_heads, _MLP_RATIO * width, qk_norm=False)
                for _ in range(config.decoder_depth)
            )
            for _ in range(len(model.channels) + 1)
        )
        self._initialise()

    def forward(self, encoded_ED: Tensor, mask: Mask, patches: Patches) -> Tensor:
        assert patches.channel_index is not None
        _, tokens = self._all_tokens(encoded_ED, mask, patches)
        query = self.query(self.query_norm(tokens)).unflatten(-1, (self._heads, -1))
        key, value = self.key_value(self.context_norm(tokens)).unflatten(-1, (2, self._heads, -1)).unbind(1)
        tokens = self.attention_out(attend(query, key, value, patches.runs))
        tokens = tokens + self.mlp(self.mlp_norm(tokens))
        n_patches = patches.side**2
        streams_XNE = tokens.unflatten(0, (-1, n_patches))  # one row for each channel of each crop
        stain_X = patches.channel_index[::n_patches]
        rows, decoded = [], []
        for stain, blocks in enumerate(self.of_channel):
            own = (stain_X == stain).nonzero()[:, 0]
            stack = streams_XNE[own].flatten(0, 1)
            assert isinstance(blocks, nn.ModuleList)
            for block in blocks:
                stack = block(stack, ((len(own), n_patches),))
            rows.append(own)
            decoded.append(stack.unflatten(0, (-1, n_patches)))
        in_order = torch.cat(decoded)[torch.cat(rows).argsort()]
        predicted: Tensor = self.pixels(in_order.flatten(0, 1).index_select(0, mask.hidden))
        return predicted


def _places_after_cls(mask: Mask) -> Tensor:
    """(H,) places of the hidden tokens in a row where each crop has its cls token first."""
    places, crop = [], 0
    for stack_nH in split_runs(mask.hidden, mask.hidden_runs):
        n_before = torch.arange(crop + 1, crop + 1 + len(stack_nH), device=stack_nH.device)
        places.append((stack_nH + n_before[:, None]).flatten())
        crop += len(stack_nH)
    return torch.cat(places)


def build_decoder(model: ModelConfig, config: MaeConfig) -> Decoder:
    """The decoder that `MaeConfig.decoder` names.

    Raises:
        ValueError: A decoder for each channel, and an encoder whose tokens hold all channels.
    """
    if config.decoder == "per_channel":
        if model.is_fused:
            raise ValueError(
                "objective.mae.decoder is per_channel, but the tokens of mae_vit hold all channels. "
                "Take decoder=shared, or architecture ca_mae_vit or chada_vit."
            )
        return PerChannelDecoder(model, config)
    return SharedDecoder(model, config)
