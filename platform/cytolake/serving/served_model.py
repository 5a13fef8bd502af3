"""A registered model version in memory, ready to compute vectors: its encoder up to the block it is served from.

Shapes: B crops, C channels, S side of a crop in pixels, D width of the vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytolake.models import Encoder, collate, load_encoder
from cytolake.models.crops import check_ranges, range_of
from cytolake.models.precision import EncoderPrecision, multiply_in
from cytolake.tracking import ModelVersion


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """One model version in memory. Immutable: a newer version is another `ServedModel`."""

    card: ModelVersion
    encoder: Encoder
    """The blocks up to the served one, in evaluation mode."""
    device: str
    precision: EncoderPrecision = "fp32"
    """Precision of the matrix products."""

    def channel_indices(self, channels: Sequence[str]) -> tuple[int, ...]:
        """Indices of a crop's channels for this encoder.

        Raises:
            ValueError: An encoder of fixed stains and other stains than its own.
        """
        return self.encoder.config.channel_indices(channels)

    def check_pixels(self, image: NDArray[Any]) -> None:
        """Raise ValueError for intensities outside the range that this encoder's scaling takes."""
        check_ranges([range_of(image)], self.encoder.config.input_scaling)

    def tokens_of(self, n_channels: int) -> int:
        """Number of tokens of a crop of `n_channels` channels."""
        return 1 + self.encoder.config.n_tokens(n_channels)

    def embed(self, images: Sequence[NDArray[Any]], indices: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One forward pass: the vectors that the embedding job would write for the same pixels.

        In fp32 they agree to the last digits, in bf16 to a cosine of 0.999.

        Args:
            images: B crops, each (C, S, S), raw intensities of any scale; C may differ.
            indices: `channel_indices` of each crop.

        Returns:
            (B, D) float32.
        """
        with torch.inference_mode(), multiply_in(self.precision, self.device):
            batch = collate(images, indices).to(self.device)
            vectors_BD = self.encoder.pooled_blocks(batch, (self.card.pooling,))[self.card.pooling][self.card.block]
        return np.asarray(vectors_BD.float().cpu().numpy(), dtype=np.float32)


def load_served_model(card: ModelVersion, device: str, precision: EncoderPrecision = "fp32") -> ServedModel:
    """Load the encoder of a registered version.

    Args:
        card: Result of one `resolve_alias`. An alias that is resolved twice may name two versions.
        device: torch device; `auto` takes a GPU where there is one.

    Raises:
        CheckpointError: The files are damaged, or hold no encoder.
        ValueError: The card needs a feature that this version of cytolake cannot serve, or does not describe the
            encoder.
    """
    version = f"model {card.name} version {card.version}"
    if card.alignment != "none":
        raise ValueError(
            f"{version}: its vectors are aligned by {card.alignment!r} after pooling, which this service cannot "
            "compute. Promote the representation without alignment, or update cytolake here."
        )
    encoder = load_encoder(card.encoder_path)
    config = encoder.config
    if not 0 <= card.block < encoder.n_blocks or card.pooling not in config.poolings:
        raise ValueError(
            f"{version}: the card names block {card.block}, pooling {card.pooling!r}; the encoder has blocks 0 to "
            f"{encoder.n_blocks - 1} and pooling {' and '.join(config.poolings)}. Promote the representation again."
        )
    width = config.block_widths[card.block]
    if card.crop_size != config.crop_size or card.dim != width:
        raise ValueError(
            f"{version}: the card says crops of {card.crop_size} px and {card.dim} values, the encoder "
            f"{config.crop_size} px and {width}. Promote the representation again."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trimmed = encoder.trim(card.block + 1).to(device).eval()
    return ServedModel(card=card, encoder=trimmed, device=device, precision=precision)
