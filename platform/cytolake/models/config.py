"""Architecture of an encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from cytolake.models.stored_fields import ADDED_LATER, stored_fields

Architecture = Literal["mae_vit", "ca_mae_vit", "chada_vit", "resnet"]
ResNetKind = Literal["resnet18", "resnet34", "resnet50"]
Stem = Literal["small", "standard"]
BlockKind = Literal["sequential", "parallel", "post_norm"]
ChannelCode = Literal["stain", "order"]
InputScaling = Literal["standardise", "unit_range", "as_is"]
Positions = Literal["sin_cos", "learned"]

POOLINGS = ("mean", "cls")
"""Vectors of every crop: a mean over tokens or places of a map, and the cls token, which vision transformers have."""

_STAGE_WIDTHS = {"resnet18": 64, "resnet34": 64, "resnet50": 256}  # of the first stage; each has twice the last one's


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """One vision transformer, or one ResNet. Defaults are ViT-Ti/8 for crops of 64 px; the published sizes of vision
    transformers are in `sizes`. A `resnet` uses `channels`, `crop_size`, `resnet`, `stem`, `input_scaling` and
    `noise_floor`, and ignores the other fields."""

    architecture: Architecture = "chada_vit"
    """`mae_vit`: all stains enter one token for each patch (He et al. 2022; Kraus et al. 2024). `ca_mae_vit`: one token
    for each channel and patch, and no token knows its stain (channel-agnostic MAE, Kraus et al. 2024). `chada_vit`: one
    token for each channel and patch, which knows its channel, any number of channels (Bourriez et al. 2024).
    `resnet`: a convolutional network whose first layer takes all stains (He et al. 2016)."""
    channels: tuple[str, ...] = ()
    """`mae_vit` and `resnet`: the input stains, in order; every crop must have exactly these. Else the channel
    vocabulary; a stain's identity is its position + 1, and 0 is an unknown stain."""
    channel_code: ChannelCode = "stain"
    """How a token of `chada_vit` knows its channel: by the stain's identity in `channels`, or by the channel's place in
    the crop, as published."""
    max_channels: int = 10
    """Largest number of channels of a crop where `channel_code` is `order`."""
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
    """Initial gain of a block's output, learned for each feature; 0 means no gain. Touvron et al. 2021."""
    drop_path: float = 0.0
    """Chance to skip a block in training, growing linearly from 0 at the first block to this at the last."""
    positions: Positions = "sin_cos"
    """`sin_cos`: fixed, for crops of any size. `learned`: as ChAda-ViT was published, interpolated for other sizes."""
    input_scaling: InputScaling = "standardise"
    """Scaling of raw counts before the first layer. `standardise`: each channel of each crop gets mean 0 and standard
    deviation 1, see `noise_floor`. `unit_range`: counts are divided by the largest one of their source's pixel type,
    255 for 8 bits and 65,535 for 16, as ChAda-ViT was published. `as_is`: no scaling; anything but fractions in [0, 1]
    is refused. For encoders that were saved with `standardise=False` before scalings had names."""
    noise_floor: float = 0.0
    """Counts added, in squares, to the standard deviation of a channel where `input_scaling` is `standardise`: a
    channel of sd s is divided by sqrt(s^2 + noise_floor^2). A count of fractions in [0, 1] is 1 / 255. 0 gives every
    channel that is not constant unit variance, its noise too. See decisions/0012."""

    resnet: ResNetKind = field(default="resnet18", metadata=ADDED_LATER)
    """Layers of a `resnet`. He et al. 2016, arXiv 1512.03385, table 1; Bendidi et al. 2023 study the first."""
    stem: Stem = field(default="small", metadata=ADDED_LATER)
    """First layer of a `resnet`. `small`: 3 x 3 without stride or pooling, for crops of 64 px and less (Chen et al.
    2020, appendix B.9). `standard`: 7 x 7 of stride 2 and pooling, which sees a 16th of the places."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("resnet", ResNetKind),
            ("stem", Stem),
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
                f"{self.architecture} needs its input stains: found channels=(), expected at least one name such as "
                "('DNA',). Name them in the recipe, or take chada_vit, which accepts any channels."
            )
        if len(set(self.channels)) != len(self.channels):
            raise ValueError(f"model channels are not unique: {', '.join(self.channels)}. Name each stain once.")
        for name in ("crop_size", "patch_size", "width", "depth", "heads", "max_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"model {name} is {getattr(self, name)}: expected 1 or more.")
        if self.is_convolutional:
            if self.drop_path > 0:
                raise ValueError(f"model drop_path is {self.drop_path}: a resnet skips no blocks, expected 0.")
            return
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
        """The first layer takes all channels of a place at once, so every crop must have exactly `channels`."""
        return self.architecture in ("mae_vit", "resnet")

    @property
    def is_convolutional(self) -> bool:
        """Stages of maps instead of blocks of tokens."""
        return self.architecture == "resnet"

    @property
    def poolings(self) -> tuple[str, ...]:
        """Which of `POOLINGS` it has: a ResNet has no cls token."""
        return ("mean",) if self.is_convolutional else POOLINGS

    @property
    def block_widths(self) -> tuple[int, ...]:
        """Features of one vector of each block: of a ResNet its four stages, and the pooled vector after the last."""
        if not self.is_convolutional:
            return (self.width,) * self.depth
        stages = tuple(_STAGE_WIDTHS[self.resnet] * 2**stage for stage in range(4))
        return (*stages, stages[-1])

    @property
    def vector_width(self) -> int:
        """Features of the vector that heads are put on."""
        return self.block_widths[-1]

    @property
    def size_step(self) -> int:
        """Sides of crops must be multiples of it, in pixels."""
        return 1 if self.is_convolutional else self.patch_size

    @property
    def standardise(self) -> bool:
        """Each channel of each crop gets mean 0 and unit standard deviation, or a smaller one where there is a noise
        floor."""
        return self.input_scaling == "standardise"

    @property
    def needs_counts(self) -> bool:
        """Crops must come in counts of their source: a linear change of a channel changes what the encoder sees."""
        return not self.standardise or self.noise_floor > 0

    @property
    def n_patches(self) -> int:
        """Patches of one channel of a crop of `crop_size`, N."""
        return self.n_patches_of(self.crop_size)

    def n_patches_of(self, size: int) -> int:
        """Patches of one channel of a crop of `size` px; of a ResNet the places of its last map."""
        if not self.is_convolutional:
            return int((size // self.patch_size) ** 2)
        for _ in range(3 if self.stem == "small" else 5):
            size = -(-size // 2)
        return size**2

    @property
    def mlp_width(self) -> int:
        """Hidden width of a block's MLP."""
        return round(self.width * self.mlp_ratio)

    def n_tokens(self, n_channels: int) -> int:
        """Patch tokens of a crop of `crop_size` with `n_channels` channels."""
        return self.n_patches * (1 if self.is_fused else n_channels)

    def channel_indices(self, names: Sequence[str]) -> tuple[int, ...]:
        """Identities of a crop's channels for this model: position in `channels` + 1, or 0 for a stain not in it.

        Raises:
            ValueError: The model has fixed stains and the names are not exactly its stains (the order is free), or
                more channels than a `chada_vit` that counts them has room for.
        """
        if self.is_fused and sorted(names) != sorted(self.channels):
            raise wrong_channels(self, names)
        self.check_number_of_channels(len(names))
        place = {name: i + 1 for i, name in enumerate(self.channels)}
        return tuple(place.get(name, 0) for name in names)

    def check_number_of_channels(self, n_channels: int) -> None:
        """Raises ValueError where a `chada_vit` that codes channels by order was built for fewer channels."""
        if self.architecture == "chada_vit" and self.channel_code == "order" and n_channels > self.max_channels:
            raise ValueError(
                f"a crop has {n_channels} channels; this chada_vit with channel_code=order was built for at most "
                f"{self.max_channels}. Raise model.max_channels and train again, or take channel_code=stain, which has "
                "no limit."
            )

    def to_json(self) -> str:
        """Fields as JSON with sorted keys, see `fields`: equal configs give equal text."""
        return json.dumps(self.fields(), sort_keys=True)

    def fields(self) -> dict[str, Any]:
        """Name and value of what `to_json` writes, see `stored_fields`.

        A scaling that earlier versions had is written as they wrote it: ids of models and runs are hashes of this text.
        """
        fields = stored_fields(self)
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


def wrong_channels(model: ModelConfig, found: Sequence[str], crop: str = "crop") -> ValueError:
    """The error for a crop that a fixed-channel model cannot take."""
    return ValueError(
        f"{crop} has channels {', '.join(found) or 'none'}; this {model.architecture} wants exactly "
        f"{', '.join(model.channels)}. "
        "Keep only crops with these channels in catalog/curation/, or use a chada_vit, which takes any channels."
    )
