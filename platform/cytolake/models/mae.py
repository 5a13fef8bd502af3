"""The masked autoencoder: hide most tokens of a crop, reconstruct their pixels.

Shapes: B crops, L tokens of the largest, T tokens of all crops in runs of equal length (see `runs`), V of them visible,
P pixels of a token, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.config import ModelConfig
from cytolake.models.contrast import Projection, contrastive_loss
from cytolake.models.crops import CropBatch
from cytolake.models.encoder import Encoder, Patches, cls_and_mean
from cytolake.models.masking import Mask, draw_mask
from cytolake.models.runs import join_runs, longer, split_runs
from cytolake.models.transformer import Block, grid_positions, initialise


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Standardised pictures for people, (B, C, S, S) float32 each, in the order of the model's channels."""

    original: Tensor
    masked: Tensor
    """`original` with hidden patches set to 0, the mean."""
    reconstructed: Tensor
    """Prediction where a patch was hidden, `original` elsewhere."""


class Decoder(nn.Module):
    """One light transformer for all tokens; it knows a token's position and, for `chada_vit`, its channel."""

    positions: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder_width
        fused = len(config.channels) if config.architecture == "mae_vit" else 1
        self.entry = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer(
            "positions", grid_positions(config.crop_size // config.patch_size, width), persistent=False
        )
        self.channel_embedding = (
            nn.Embedding(len(config.channels) + 1, width) if config.architecture == "chada_vit" else None
        )
        self.blocks = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixels = nn.Linear(width, fused * config.patch_size**2)
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.channel_embedding is not None:
            nn.init.normal_(self.channel_embedding.weight, std=0.2)

    def forward(self, encoded_ED: Tensor, mask: Mask, patches: Patches) -> Tensor:
        """(T, P) predicted pixels of every token.

        Args:
            encoded_ED: (V + B, D) the encoder's final tokens, each crop's cls token before its visible tokens.
            mask: Where the visible tokens belong.
            patches: The runs and channels of all tokens; the pixels are not read.
        """
        entered = split_runs(self.entry(encoded_ED), longer(mask.runs, 1))
        visible = join_runs(stack[:, 1:] for stack in entered)
        tokens = self.mask_token.to(visible.dtype).expand(len(patches.pixels), -1).index_copy(0, mask.visible, visible)
        tokens = tokens + self.positions.repeat(len(tokens) // len(self.positions), 1)
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(patches.channel_index)
        runs = longer(patches.runs, 1)
        tokens = join_runs(
            torch.cat([stack[:, :1].to(tokens.dtype), own], dim=1)
            for stack, own in zip(entered, split_runs(tokens, patches.runs), strict=True)
        )
        for block in self.blocks:
            tokens = block(tokens, runs)
        own = join_runs(stack[:, 1:] for stack in split_runs(tokens, runs))
        predicted: Tensor = self.pixels(self.norm(own))
        return predicted


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder with the loss that trains them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.projection = Projection(config.width) if config.contrastive_weight > 0 else None

    def forward(
        self,
        batch: CropBatch,
        noise_BL: Tensor,
        second_batch: CropBatch | None = None,
        second_noise_BL: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one minibatch.

        Args:
            batch: B crops.
            noise_BL: (B, at least L) random numbers that choose the hidden tokens, see `masking_noise`.
            second_batch: The same crops turned another way, where `contrastive_weight` is above 0. They enter the
                contrastive term only.
            second_noise_BL: Other random numbers, for the second view.

        Returns:
            Scalars `loss` = (1 - a) * mse + a * fourier with a = `fourier_weight`, `mse` and `fourier`, all over hidden
            tokens; a mean over a crop's tokens, then over crops, so that crops with many channels do not outweigh
            others and the mean over workers with equally many crops is the loss of the whole minibatch. Where
            `contrastive_weight` is above 0, `contrast` is there too, and `loss` has it added.

        Raises:
            ValueError: The second view is missing.
        """
        if self.projection is None:
            return self._masked_losses(batch, noise_BL)[0]
        if second_batch is None or second_noise_BL is None:
            raise ValueError("contrastive_weight is above 0: the model needs a second view of every crop.")
        losses, first_BD = self._masked_losses(batch, noise_BL)
        *_, second_BD = self._encode(second_batch, second_noise_BL)
        contrast = contrastive_loss(self.projection(first_BD), self.projection(second_BD))
        return {**losses, "loss": losses["loss"] + self.config.contrastive_weight * contrast, "contrast": contrast}

    def _masked_losses(self, batch: CropBatch, noise_BL: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the reconstruction, and (B, D) the mean of each crop's visible tokens."""
        encoded, mask, patches, pooled_BD = self._encode(batch, noise_BL)
        predicted = self.decoder(encoded, mask, patches)
        mse_T = (predicted.float() - patches.pixels).square().mean(dim=-1)
        mse = _mean_over_hidden(mse_T, mask, patches)
        weight = self.config.fourier_weight
        if weight == 0:
            return {"loss": mse, "mse": mse, "fourier": torch.zeros_like(mse)}, pooled_BD
        fourier_T = fourier_distance(predicted.float(), patches.pixels, self.config.patch_size)
        fourier = _mean_over_hidden(fourier_T, mask, patches)
        return {"loss": (1 - weight) * mse + weight * fourier, "mse": mse, "fourier": fourier}, pooled_BD

    @torch.no_grad()
    def reconstruct(self, batch: CropBatch, noise_BL: Tensor) -> Reconstruction:
        """What the model makes of the crops with the same masks as `forward`."""
        predicted, mask, patches = self._predict(batch, noise_BL)
        hidden, pixels = mask.is_hidden[:, None], patches.pixels
        return Reconstruction(
            self._picture(pixels, patches),
            self._picture(pixels.masked_fill(hidden, 0), patches),
            self._picture(torch.where(hidden, predicted.float(), pixels), patches),
        )

    def _predict(self, batch: CropBatch, noise_BL: Tensor) -> tuple[Tensor, Mask, Patches]:
        encoded, mask, patches, _ = self._encode(batch, noise_BL)
        return self.decoder(encoded, mask, patches), mask, patches

    def _encode(self, batch: CropBatch, noise_BL: Tensor) -> tuple[Tensor, Mask, Patches, Tensor]:
        """(V + B, D) final tokens of visible patches, their mask, all patches, (B, D) the visible mean of each crop."""
        patches = self.encoder.patches(batch)
        mask = draw_mask(noise_BL.to(patches.order.device)[patches.order], patches.runs, self.config.mask_ratio)
        *_, encoded = self.encoder.run_blocks(self.encoder.embed(patches)[mask.visible], mask.runs)
        tokens = self.encoder.norm(encoded)
        mean_BD = cls_and_mean(tokens, longer(mask.runs, 1))[1]
        return tokens, mask, patches, patches.in_minibatch_order(mean_BD)

    def _picture(self, pixels_TP: Tensor, patches: Patches) -> Tensor:
        """(T, P) -> (B, C, S, S), 0 in channels that a crop has not."""
        config = self.config
        side, size = config.crop_size // config.patch_size, config.patch_size
        crops = []
        for stack in split_runs(pixels_TP, patches.runs):
            if config.architecture == "mae_vit":
                stack = stack.view(*stack.shape[:2], -1, size * size).transpose(1, 2).flatten(1, 2)
            pixels = stack.reshape(len(stack), -1, side, side, size, size).transpose(3, 4)  # B C row y column x
            crops.append(pixels.flatten(4, 5).flatten(2, 3))
        n_channels = max(stack.shape[1] for stack in crops)
        padded = [functional.pad(stack, (0, 0, 0, 0, 0, n_channels - stack.shape[1])) for stack in crops]
        return patches.in_minibatch_order(torch.cat(padded))


def fourier_distance(predicted_TP: Tensor, target_TP: Tensor, patch_size: int) -> Tensor:
    """(T,) mean absolute difference between the Fourier magnitudes of two patches, over frequencies and channels.

    Source: Kraus et al. 2024, arXiv 2404.10242, section 3.3, taken for each patch and channel; unnormalised transform,
    so that a unit-variance patch has magnitudes near `patch_size`.
    """
    shape = (len(predicted_TP), -1, patch_size, patch_size)
    predicted = torch.fft.fft2(predicted_TP.reshape(shape)).abs()
    target = torch.fft.fft2(target_TP.reshape(shape)).abs()
    distance_T: Tensor = (predicted - target).abs().mean(dim=(-3, -2, -1))
    return distance_T


def build_model(config: ModelConfig, seed: int) -> MaskedAutoencoder:
    """A new model on the CPU. Its weights are a function of (config, seed): `build_model(config, seed).encoder` is the
    untrained twin of any run with that config and seed. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(config)


def _mean_over_hidden(value_T: Tensor, mask: Mask, patches: Patches) -> Tensor:
    """A mean over each crop's hidden tokens, then over crops."""
    hidden = zip(split_runs(value_T, patches.runs), split_runs(mask.is_hidden, patches.runs), strict=True)
    of_crop = [(value * is_hidden).sum(dim=1) / is_hidden.sum(dim=1).clamp_min(1) for value, is_hidden in hidden]
    return torch.cat(of_crop).mean()
