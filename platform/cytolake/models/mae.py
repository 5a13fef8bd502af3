"""The masked autoencoder: hide most tokens of a crop, reconstruct their pixels.

Shapes: B crops, L tokens, V visible tokens, P pixels of a token, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cytolake.models.config import ModelConfig
from cytolake.models.contrast import Projection, contrastive_loss
from cytolake.models.crops import CropBatch
from cytolake.models.encoder import Encoder, Patches
from cytolake.models.masking import Mask, draw_mask
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

    def forward(self, encoded_BVD: Tensor, mask: Mask, patches: Patches) -> Tensor:
        """(B, L, P) predicted pixels of every token.

        Args:
            encoded_BVD: (B, 1 + V, D) the encoder's final tokens, cls first.
            mask: Where the visible tokens belong.
            patches: Which tokens are real and what their channels are; the pixels are not read.
        """
        entered = self.entry(encoded_BVD)
        n_tokens = patches.is_token.shape[1]
        place_BVD = mask.visible[:, :, None].expand(-1, -1, entered.shape[-1])
        # A crop with fewer visible tokens than V has hidden tokens at the end of its list: they get the mask token.
        hidden = self.mask_token.to(entered.dtype)
        visible = torch.where(mask.is_visible[:, :, None], entered[:, 1:], hidden)
        tokens = hidden.expand(len(entered), n_tokens, -1).scatter(1, place_BVD, visible)
        tokens = tokens + self.positions.repeat(n_tokens // len(self.positions), 1)
        if self.channel_embedding is not None:
            tokens = tokens + self.channel_embedding(patches.channel_index)
        tokens = torch.cat([entered[:, :1].to(tokens.dtype), tokens], dim=1)
        is_key = functional.pad(patches.is_token, (1, 0), value=True) if patches.padded else None
        for block in self.blocks:
            tokens = block(tokens, is_key)
        predicted: Tensor = self.pixels(self.norm(tokens[:, 1:]))
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
        mse_BL = (predicted.float() - patches.pixels).square().mean(dim=-1)
        mse = _mean_over_hidden(mse_BL, mask.is_hidden)
        weight = self.config.fourier_weight
        if weight == 0:
            return {"loss": mse, "mse": mse, "fourier": torch.zeros_like(mse)}, pooled_BD
        fourier_BL = fourier_distance(predicted.float(), patches.pixels, self.config.patch_size)
        fourier = _mean_over_hidden(fourier_BL, mask.is_hidden)
        return {"loss": (1 - weight) * mse + weight * fourier, "mse": mse, "fourier": fourier}, pooled_BD

    @torch.no_grad()
    def reconstruct(self, batch: CropBatch, noise_BL: Tensor) -> Reconstruction:
        """What the model makes of the crops with the same masks as `forward`."""
        predicted, mask, patches = self._predict(batch, noise_BL)
        hidden = mask.is_hidden[:, :, None]
        pixels = patches.pixels
        return Reconstruction(
            self._picture(pixels),
            self._picture(pixels.masked_fill(hidden, 0)),
            self._picture(torch.where(hidden, predicted.float(), pixels)),
        )

    def _predict(self, batch: CropBatch, noise_BL: Tensor) -> tuple[Tensor, Mask, Patches]:
        encoded, mask, patches, _ = self._encode(batch, noise_BL)
        return self.decoder(encoded, mask, patches), mask, patches

    def _encode(self, batch: CropBatch, noise_BL: Tensor) -> tuple[Tensor, Mask, Patches, Tensor]:
        """(B, 1 + V, D) final tokens of visible patches, their mask, all patches, (B, D) the visible mean."""
        patches = self.encoder.patches(batch)
        noise_BL = noise_BL[:, : patches.is_token.shape[1]].to(patches.is_token.device)
        mask = draw_mask(noise_BL, patches.is_token, self.config.mask_ratio)
        tokens_BVD = self.encoder.embed(patches).take_along_dim(mask.visible[:, :, None], dim=1)
        *_, encoded = self.encoder.run_blocks(tokens_BVD, mask.is_visible if patches.padded else None)
        tokens = self.encoder.norm(encoded)
        weight_BV = mask.is_visible / mask.is_visible.sum(dim=1, keepdim=True)
        return tokens, mask, patches, (tokens[:, 1:] * weight_BV[:, :, None]).sum(dim=1)

    def _picture(self, pixels_BLP: Tensor) -> Tensor:
        """(B, L, P) -> (B, C, S, S)."""
        config = self.config
        side, size = config.crop_size // config.patch_size, config.patch_size
        n_crops = len(pixels_BLP)
        if config.architecture == "mae_vit":
            pixels_BLP = pixels_BLP.reshape(n_crops, side * side, -1, size * size).transpose(1, 2)
        pixels = pixels_BLP.reshape(n_crops, -1, side, side, size, size).transpose(3, 4)  # B C row y column x
        picture: Tensor = pixels.reshape(n_crops, -1, config.crop_size, config.crop_size)
        return picture


def fourier_distance(predicted_BLP: Tensor, target_BLP: Tensor, patch_size: int) -> Tensor:
    """(B, L) mean absolute difference between the Fourier magnitudes of two patches, over frequencies and channels.

    Source: Kraus et al. 2024, arXiv 2404.10242, section 3.3, taken for each patch and channel; unnormalised transform,
    so that a unit-variance patch has magnitudes near `patch_size`.
    """
    shape = (*predicted_BLP.shape[:2], -1, patch_size, patch_size)
    predicted = torch.fft.fft2(predicted_BLP.reshape(shape)).abs()
    target = torch.fft.fft2(target_BLP.reshape(shape)).abs()
    distance_BL: Tensor = (predicted - target).abs().mean(dim=(-3, -2, -1))
    return distance_BL


def build_model(config: ModelConfig, seed: int) -> MaskedAutoencoder:
    """A new model on the CPU. Its weights are a function of (config, seed): `build_model(config, seed).encoder` is the
    untrained twin of any run with that config and seed. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedAutoencoder(config)


def _mean_over_hidden(value_BL: Tensor, is_hidden_BL: Tensor) -> Tensor:
    per_crop = (value_BL * is_hidden_BL).sum(dim=1) / is_hidden_BL.sum(dim=1).clamp_min(1)
    return per_crop.mean()
