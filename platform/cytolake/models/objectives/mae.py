"""The masked autoencoder: hide most tokens of a crop, reconstruct their pixels.

Shapes: B crops, L tokens of the largest, T tokens of all crops in runs of equal length (see `runs`), V of them visible,
H of them hidden, P pixels of a token, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from cytolake.models.config import ModelConfig
from cytolake.models.encoder import Patches, VisionTransformer, cls_and_mean
from cytolake.models.masking import Mask, draw_mask
from cytolake.models.objectives.config import MaeConfig
from cytolake.models.objectives.contrast import Projection, contrastive_loss
from cytolake.models.objectives.decoders import build_decoder
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.runs import Runs, longer, split_runs, to_device


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Standardised pictures to look at, (B, C, S, S) float32 each, in the order of the model's channels."""

    original: Tensor
    masked: Tensor
    """`original` with hidden patches set to 0, the mean."""
    reconstructed: Tensor
    """Prediction where a patch was hidden, `original` elsewhere."""


class MaskedAutoencoder(Objective):
    """Encoder and decoder, and the loss of the reconstruction."""

    encoder: VisionTransformer
    compiled_for_one_shape: ClassVar = ("distances",)

    def __init__(self, model: ModelConfig, config: MaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = VisionTransformer(model)
        self.decoder = build_decoder(model, config)
        self.projection = Projection(model.width) if config.contrastive_weight > 0 else None

    @property
    def n_views(self) -> int:
        """A second view of every crop enters the contrastive term only."""
        return 1 if self.projection is None else 2

    def forward(self, views: Sequence[View]) -> dict[str, Tensor]:
        """Losses of one minibatch.

        Returns:
            Scalars `loss` = (1 - a) * mse + a * fourier with a = `fourier_weight`, `mse` and `fourier`, all over hidden
            tokens; a mean over a crop's tokens, then over crops, so that crops with many channels do not outweigh
            others and the mean over workers with equally many crops is the loss of the whole minibatch. Where
            `contrastive_weight` is above 0, `contrast` is there too, and `loss` has it added.

        Raises:
            ValueError: Another number of views than `n_views`.
        """
        self.check_views(views)
        losses, first_BD = self._masked_losses(views[0])
        if self.projection is None:
            return losses
        *_, second_BD = self._encode(views[1])
        contrast = contrastive_loss(self.projection(first_BD), self.projection(second_BD))
        return {**losses, "loss": losses["loss"] + self.config.contrastive_weight * contrast, "contrast": contrast}

    def _masked_losses(self, view: View) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of the reconstruction, and (B, D) the mean of each crop's visible tokens."""
        encoded, mask, patches, pooled_BD = self._encode(view)
        return self._losses(self.decoder(encoded, mask, patches), mask, patches), pooled_BD

    def _losses(self, predicted_HP: Tensor, mask: Mask, patches: Patches) -> dict[str, Tensor]:
        basis = fourier_basis(self.encoder.config.patch_size, predicted_HP.device)
        mse_H, fourier_H = self.distances(predicted_HP, patches.pixels.index_select(0, mask.hidden), *basis)
        mse, fourier = (_mean_over_crops(each_H, mask.hidden_runs) for each_H in (mse_H, fourier_H))
        weight = self.config.fourier_weight
        return {"loss": (1 - weight) * mse + weight * fourier, "mse": mse, "fourier": fourier}

    def distances(
        self, predicted_HP: Tensor, target_HP: Tensor, basis_QF: Tensor, weight_F: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(H,) mean squared difference, and (H,) Fourier distance, 0 where its weight is 0, of each hidden token."""
        mse_H = (predicted_HP.float() - target_HP).square().mean(dim=-1)
        if self.config.fourier_weight == 0:
            return mse_H, torch.zeros_like(mse_H)
        return mse_H, fourier_distance(predicted_HP.float(), target_HP, basis_QF, weight_F)

    @torch.no_grad()
    def reconstruct(self, view: View) -> Reconstruction:
        """Reconstruction of the crops with the same masks as `forward`."""
        encoded, mask, patches, _ = self._encode(view)
        predicted, pixels = self.decoder(encoded, mask, patches), patches.pixels
        return Reconstruction(
            self._picture(pixels, patches),
            self._picture(pixels.index_fill(0, mask.hidden, 0), patches),
            self._picture(pixels.index_copy(0, mask.hidden, predicted.float()), patches),
        )

    def _encode(self, view: View) -> tuple[Tensor, Mask, Patches, Tensor]:
        """(V + B, D) final tokens of visible patches, their mask, all patches, (B, D) the visible mean of each crop."""
        if view.noise is None:
            raise ValueError("a masked autoencoder needs random numbers for its masks: give the view some noise.")
        patches = self.encoder.patches(view.crops)
        noise_BL = to_device(view.noise, patches.order.device)[patches.order]
        mask = draw_mask(noise_BL, patches.runs, self.config.mask_ratio)
        *_, encoded = self.encoder.run_blocks(self.encoder.embed(patches, mask.visible), mask.runs)
        tokens = self.encoder.norm(encoded)
        mean_BD = cls_and_mean(tokens, longer(mask.runs, 1))[1]
        return tokens, mask, patches, patches.in_minibatch_order(mean_BD)

    def _picture(self, pixels_TP: Tensor, patches: Patches) -> Tensor:
        """(T, P) -> (B, C, S, S), 0 in channels that a crop has not."""
        side, size = patches.side, self.encoder.config.patch_size
        crops = []
        for stack in split_runs(pixels_TP, patches.runs):
            if self.encoder.config.is_fused:
                stack = stack.view(*stack.shape[:2], -1, size * size).transpose(1, 2).flatten(1, 2)
            pixels = stack.reshape(len(stack), -1, side, side, size, size).transpose(3, 4)  # B C row y column x
            crops.append(pixels.flatten(4, 5).flatten(2, 3))
        n_channels = max(stack.shape[1] for stack in crops)
        padded = [functional.pad(stack, (0, 0, 0, 0, 0, n_channels - stack.shape[1])) for stack in crops]
        return patches.in_minibatch_order(torch.cat(padded))


def fourier_distance(predicted_TP: Tensor, target_TP: Tensor, basis_QF: Tensor, weight_F: Tensor) -> Tensor:
    """(T,) mean absolute difference between the Fourier magnitudes of two patches, over frequencies and channels.

    `basis_QF` and `weight_F` are those of `fourier_basis`.

    Source: Kraus et al. 2024, arXiv 2404.10242, section 3.3, taken for each patch and channel; unnormalised transform,
    so that a unit-variance patch has magnitudes near `patch_size`. The published code takes it over a view of the token
    tensor that is one patch of one channel only for channel-agnostic tokens of 16 x 16 pixels in crops of 256;
    elsewhere its slices mix pixels, channels and hidden with visible tokens. That is a fault, and is not repeated here.
    """
    # In fp32, as magnitudes near 0 are differences of large sums.
    with torch.autocast(predicted_TP.device.type, enabled=False):
        predicted, target = (_magnitudes(pixels, basis_QF) for pixels in (predicted_TP, target_TP))
        return ((predicted - target).abs() * weight_F).sum(dim=-1).mean(dim=-1)


def _magnitudes(pixels_TP: Tensor, basis_QF: Tensor) -> Tensor:
    """(T, C, F) of the patches of each channel. A product of matrices: FFTs of a few pixels are slow on a GPU."""
    n_tokens, n_pixels = pixels_TP.shape
    pixels_TCQ = pixels_TP.view(n_tokens, n_pixels // len(basis_QF), len(basis_QF))
    real, imaginary = torch.chunk(pixels_TCQ @ basis_QF, 2, dim=-1)
    # The tiny number, far below rounding, keeps the gradient of a magnitude of 0 at 0 rather than NaN.
    return torch.sqrt(real.square() + imaginary.square() + 1e-30)


@lru_cache(maxsize=16)
def fourier_basis(patch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(Q, 2 F) cosines and sines of the 2-D transform of a patch of Q pixels, and (F,) each one's share in a mean.

    F frequencies: the half that a real patch can have on its own. The others are their mirror images and have the same
    magnitudes, so a frequency that has a mirror image counts twice.
    """
    n = torch.arange(patch_size, dtype=torch.float64)
    column = n[: patch_size // 2 + 1]
    turns = n[:, None, None, None] * n[:, None] + n[None, :, None, None] * column  # pixel y, x; frequency v, u
    angle = (2 * torch.pi / patch_size * turns).flatten(2).flatten(0, 1)
    is_single = (column == 0) | (2 * column == patch_size)
    weight = (2.0 - is_single.double()).repeat(patch_size) / patch_size**2
    with torch.inference_mode(False):  # the cached basis must serve training too
        basis = torch.cat([angle.cos(), -angle.sin()], dim=1).float()
        return to_device(basis, device), to_device(weight.float(), device)


def _mean_over_crops(value_H: Tensor, runs: Runs) -> Tensor:
    """A mean over each crop's tokens, 0 for a crop of none, then over crops."""
    of_crop = [stack.sum(dim=1) / max(1, stack.shape[1]) for stack in split_runs(value_H, runs)]
    return torch.cat(of_crop).mean()
