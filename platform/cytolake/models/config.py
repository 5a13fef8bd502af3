"""What an encoder looks like."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Architecture = Literal["mae_vit", "ca_mae_vit", "chada_vit"]
BlockKind = Literal["sequential", "parallel", "post_norm"]
ChannelCode = Literal["stain", "order"]
InputScaling = Literal["standardise", "unit_range", "as_is"]
Positions = Literal["sin_cos", "learned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One vision transformer. Defaults are ViT-Ti/8 for crops of 64 px; the published sizes are in `sizes`."""

    architecture: Architecture = "chada_vit"
    """`mae_vit`: all stains enter one token for each patch (He et al. 2022; Kraus et al. 2024). `ca_mae_vit`: one token
    for each channel and patch, and no token knows its stain (channel-agnostic MAE, Kraus et al. 2024). `chada_vit`: one
    token for each channel and patch, which knows its channel, any number of channels (Bourriez et al. 2024)."""
    channels: tuple[str, ...] = ()
    """`mae_vit`: the input stains, in order; every crop must have exactly these. Else the channel vocabulary; a stain's
    identity is its position + 1, and 0 is an unknown stain."""
    channel_code: ChannelCode = "stain"
    """How a token of `chada_vit` knows its channel: by the stain's identity in `channels`, or by the channel's place in
    the crop, as published."""
    max_channels: int = 10
    """Most channels of a crop where `channel_code` is `order`."""
    crop_size: int = 64
    """Side in pixels of the crops it is trained on. It takes any crop whose side is a multiple of `patch_size`."""
    patch_size: int = 8
    """Side of a patch in pixels; divides `crop_size`."""
    width: int = 192
    """Features of one token, D. A multiple of 4 (sin-cos positions) and of `heads`."""
    depth: int = 12
    """Transformer blocks."""
    heads: int = 3
    """Attention heads. The weights fit any number of heads, so a checkpoint carries it."""
    mlp_ratio: float = 4.0
    """Hidden width of a block's MLP, in units of its width."""
    block: BlockKind = "sequential"
    """`sequential`: attention, then MLP, each after its own norm (Dosovitskiy et al. 2021). `parallel`: both read one
    norm and are added at once (Dehghani et al. 2023; Kraus et al. 2024). `post_norm`: as ChAda-ViT was published."""
    layer_scale: float = 0.0
    """First gain of what a block adds, learned for each feature; 0 means no gain. Touvron et al. 2021."""
    drop_path: float = 0.0
    """Chance to skip a block in training, growing linearly from 0 at the first block to this at the last."""
    positions: Positions = "sin_cos"
    """`sin_cos`: fixed, for crops of any size. `learned`: as ChAda-ViT was published, interpolated for other sizes."""
    input_scaling: InputScaling = "standardise"
    """What is made of raw counts before the first layer. `standardise`: each channel of each crop gets mean 0 and
    standard deviation 1, see `noise_floor`. `unit_range`: counts are divided by the largest one of their source's pixel
    type, 255 for 8 bits and 65,535 for 16, as ChAda-ViT was published. `as_is`: nothing, and anything but fractions in
    [0, 1] is refused: encoders that were saved with `standardise=False` before scalings had names."""
    noise_floor: float = 0.0
    """Counts that are added, in squares, to the standard deviation of a channel where `input_scaling` is `standardise`:
    a channel of sd s is divided by sqrt(s^2 + noise_floor^2). A count of fractions in [0, 1] is 1 / 255. 0 gives every
    channel that is not constant unit variance, its noise too. See decisions/0012."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("architecture", Architecture),
            ("block", BlockKind),
            ("channel_code", ChannelCode),
            ("input_scaling", InputScaling),
            ("positions", Positions),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"model {name} {getattr(self, name)!r} is not known: choose one of {', '.join(get_args(kind))}."
                )
        if self.is_fused and not self.channels:
            raise ValueError(
                "mae_vit needs its input stains: found channels=(), expected at least one name such as ('DNA',). "
                "Name them in the recipe, or take chada_vit, which accepts any channels."
            )
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"model channels are not unique: {', '.join(self.channels)}. Name each stain once.")
        for name in ("crop_size", "patch_size", "width", "depth", "heads", "max_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}: expected 1 or more.")
        if self.crop_size % self.patch_size:
            raise ValueError(
                f"crops of {self.crop_size} px do not divide into patches of {self.patch_size} px. "
                "Choose a patch_size that divides crop_size."
            )
        check_width(self.width, self.heads, "model width", "heads")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"model drop_path is {self.drop_path}: expected 0 <= drop_path < 1.")
        if self.noise_floor < 0 or (self.noise_floor > 0 and self.input_scaling != "standardise"):
            raise ValueError(
                f"model noise_floor is {self.noise_floor}, input_scaling {self.input_scaling!r}: expected 0 or more "
                "counts, and 0 unless input_scaling is standardise."
            )
        if self.mlp_ratio <= 0 or self.layer_scale < 0:
            raise ValueError(
                f"model mlp_ratio is {self.mlp_ratio}, layer_scale {self.layer_scale}: expected more than 0, and 0 or "
                "more."
            )

    @property
    def is_fused(self) -> bool:
        """All channels of a patch are one token."""
        return self.architecture == "mae_vit"

    @property
    def standardise(self) -> bool:
        """Each channel of each crop gets mean 0 and unit standard deviation, or less where there is a noise floor."""
        return self.input_scaling == "standardise"

    @property
    def needs_counts(self) -> bool:
        """Crops must come in counts of their source: a linear change of a channel changes what the encoder sees."""
        return not self.standardise or self.noise_floor > 0

    @property
    def n_patches(self) -> int:
        """Patches of one channel of a crop of `crop_size`, N."""
        return (self.crop_size // self.patch_size) ** 2

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    def n_tokens(self, n_channels: int) -> int:
        """Patch tokens of a crop of `crop_size` with so many channels."""
        return self.n_patches * (1 if self.is_fused else n_channels)

    def channel_indices(self, names: Sequence[str]) -> tuple[int, ...]:
        """Identities of a crop's channels for this model: position in `channels` + 1, or 0 for a stain not in it.

        Raises:
            ValueError: The architecture is `mae_vit` and the names are not exactly its stains (the order is free), or
                more channels than a `chada_vit` that counts them has room for.
        """
        if self.is_fused and sorted(names) != sorted(self.channels):
            raise wrong_channels(self.channels, names)
        self.check_number_of_channels(len(names))
        place = {name: i + 1 for i, name in enumerate(self.channels)}
        return tuple(place.get(name, 0) for name in names)

    def check_number_of_channels(self, n_channels: int) -> None:
        """Raises ValueError where a `chada_vit` that counts channels has no room for so many."""
        if self.architecture == "chada_vit" and self.channel_code == "order" and n_channels > self.max_channels:
            raise ValueError(
                f"a crop has {n_channels} channels; this chada_vit with channel_code=order was built for at most "
                f"{self.max_channels}. Raise model.max_channels and train again, or take channel_code=stain, which has "
                "no limit."
            )

    def to_json(self) -> str:
        """All fields as JSON with sorted keys: equal configs give equal text.

        A scaling that earlier versions had is written as they wrote it: ids of models and runs are hashes of this text.
        """
        return json.dumps(self.fields(), sort_keys=True)

    def fields(self) -> dict[str, Any]:
        """Name and value of what `to_json` writes."""
        fields = dataclasses.asdict(self)
        if self.noise_floor == 0 and self.input_scaling != "unit_range":
            del fields["noise_floor"], fields["input_scaling"]
            fields["standardise"] = self.standardise
        return fields

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Raises ValueError or TypeError where the text is not a config of this version."""
        fields = json.loads(text)
        fields["channels"] = tuple(fields["channels"])
        if "standardise" in fields:
            fields["input_scaling"] = "standardise" if fields.pop("standardise") else "as_is"
        return cls(**{"noise_floor": 0.0, **fields})


def check_width(width: int, heads: int, what: str, heads_name: str) -> None:
    """Raises ValueError for a width that sin-cos positions or the heads cannot share."""
    if width % heads or width % 4:
        raise ValueError(f"{what} {width} must be a multiple of 4 and of {heads_name} ({heads}).")


def wrong_channels(wanted: Sequence[str], found: Sequence[str], crop: str = "crop") -> ValueError:
    """The error for a crop that a fixed-channel model cannot take."""
    return ValueError(
        f"{crop} has channels {', '.join(found) or 'none'}; this mae_vit wants exactly {', '.join(wanted)}. "
        "Keep only crops with these channels in catalog/curation/, or use a chada_vit, which takes any channels."
    )
