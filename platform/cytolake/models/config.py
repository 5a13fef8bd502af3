"""What an encoder and its masked autoencoder look like."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Architecture = Literal["mae_vit", "chada_vit"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One vision transformer with its masked-autoencoder decoder. Defaults are ViT-Ti/8 for crops of 64 px."""

    architecture: Architecture = "chada_vit"
    """`mae_vit`: all stains enter one token for each patch (He et al. 2022; Kraus et al. 2024). `chada_vit`: one token
    for each channel and patch, any number of channels (Bourriez et al. 2024)."""
    channels: tuple[str, ...] = ()
    """`mae_vit`: the input stains, in order; every crop must have exactly these. `chada_vit`: the channel vocabulary; a
    stain's identity is its position + 1, and 0 is an unknown stain."""
    crop_size: int = 64
    """Side of a crop in pixels."""
    patch_size: int = 8
    """Side of a patch in pixels; divides `crop_size`."""
    width: int = 192
    """Features of one token, D. A multiple of 4 (sin-cos positions) and of `heads`."""
    depth: int = 12
    """Transformer blocks of the encoder."""
    heads: int = 3
    """Attention heads of the encoder. The weights fit any number of heads, so a checkpoint carries it."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, in units of its width."""
    drop_path: float = 0.0
    """Chance to skip a block in training, growing linearly from 0 at the first block to this at the last."""
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4
    mask_ratio: float = 0.75
    """Share of a crop's tokens hidden from the encoder. He et al. 2022, fig. 5."""
    fourier_weight: float = 0.01
    """Weight a of the Fourier loss: (1 - a) * mse + a * fourier. Kraus et al. 2024."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive term between two views of a crop, added to the loss; 0 is a plain masked autoencoder.
    Mishra et al. 2022."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(
                f"model architecture {self.architecture!r} is not known: "
                f"choose one of {', '.join(get_args(Architecture))}."
            )
        if self.architecture == "mae_vit" and not self.channels:
            raise ValueError(
                "mae_vit needs its input stains: found channels=(), expected at least one name such as ('DNA',). "
                "Name them in the recipe, or take chada_vit, which accepts any channels."
            )
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"model channels are not unique: {', '.join(self.channels)}. Name each stain once.")
        for name in (
            "crop_size",
            "patch_size",
            "width",
            "depth",
            "heads",
            "decoder_width",
            "decoder_depth",
            "decoder_heads",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}: expected 1 or more.")
        if self.crop_size % self.patch_size:
            raise ValueError(
                f"crops of {self.crop_size} px do not divide into patches of {self.patch_size} px. "
                "Choose a patch_size that divides crop_size."
            )
        for width, heads, where in ((self.width, self.heads, ""), (self.decoder_width, self.decoder_heads, "decoder_")):
            if width % heads or width % 4:
                raise ValueError(f"model {where}width {width} must be a multiple of 4 and of {where}heads ({heads}).")
        for name in ("mask_ratio", "fourier_weight", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}: expected 0 <= {name} < 1.")
        if self.contrastive_weight < 0:
            raise ValueError(f"model contrastive_weight is {self.contrastive_weight}: expected 0 or more.")
        if self.mask_ratio == 0:
            raise ValueError("model mask_ratio is 0: nothing would be hidden, so there is nothing to learn.")
        if self.mlp_ratio <= 0:
            raise ValueError(f"model mlp_ratio is {self.mlp_ratio}: expected more than 0.")

    @property
    def n_patches(self) -> int:
        """Patches of one channel, N."""
        return (self.crop_size // self.patch_size) ** 2

    def channel_indices(self, names: Sequence[str]) -> tuple[int, ...]:
        """Identities of a crop's channels for this model: position in `channels` + 1, or 0 for a stain not in it.

        Raises:
            ValueError: The architecture is `mae_vit` and the names are not exactly its stains (the order is free).
        """
        if self.architecture == "mae_vit" and sorted(names) != sorted(self.channels):
            raise wrong_channels(self.channels, names)
        place = {name: i + 1 for i, name in enumerate(self.channels)}
        return tuple(place.get(name, 0) for name in names)

    def to_json(self) -> str:
        """All fields as JSON with sorted keys: equal configs give equal text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Raises ValueError or TypeError where the text is not a config of this version."""
        fields = json.loads(text)
        fields["channels"] = tuple(fields["channels"])
        return cls(**fields)


def wrong_channels(wanted: Sequence[str], found: Sequence[str], crop: str = "crop") -> ValueError:
    """The error for a crop that a fixed-channel model cannot take."""
    return ValueError(
        f"{crop} has channels {', '.join(found) or 'none'}; this mae_vit wants exactly {', '.join(wanted)}. "
        "Keep only crops with these channels in catalog/curation/, or use a chada_vit, which takes any channels."
    )
