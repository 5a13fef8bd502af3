"""Config of augmentations: which are on, and how strong they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from cytolake.models.config import ModelConfig

ChannelDropMode = Literal["remove", "blank"]
Interpolation = Literal["bilinear", "bicubic"]

_FACTORS = ("magnification", "resolution", "gain", "gamma", "contrast")  # 1 = off
_AMOUNTS = ("offset", "noise", "bleed_through", "blur_sigma_px", "defocus_radius_px")  # 0 = off
_PROBABILITIES = (
    "rotation_probability",
    "resolution_probability",
    "blur_probability",
    "defocus_probability",
    "bleed_through_probability",
    "gamma_probability",
    "contrast_probability",
    "gain_probability",
    "offset_probability",
    "noise_probability",
    "erasing_probability",
    "channel_drop",
    "channel_shuffle",
    "identity_drop",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Knobs of `augment`, in the order in which they act. All but flips and quarter turns are off by default.

    A strength is the end of a range: each crop, or each channel of it, draws its own value between "off" and the
    strength. A probability is the share of crops, or of channels where the knob is drawn for each channel, that are
    changed at all. Every knob has its own random numbers and its own probability: none is coupled to another, as
    brightness, contrast, saturation and hue are in the usual colour jitter.

    An encoder that standardises (`ModelConfig.input_scaling`) gives each channel of each crop mean 0 and sd 1, so it
    cannot see `gain` and `offset` (but for what a `noise_floor` leaves of the gain of dim channels); it does see
    `gamma`, `contrast`, `noise` and all the others. With `unit_range` it sees them all.

    Source: the families of transforms of Bendidi et al. 2023, arXiv 2304.11718, with hue, saturation and gray, which
    mean nothing for fluorescence, replaced by gain, offset and bleed-through of each channel.
    """

    # geometry: one draw for each crop, all channels alike
    flip_rotate: bool = True
    """Turn by a multiple of 90 degrees and mirror half of the crops: exact, no interpolation."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Least and largest share of the crop's area that is kept: a square window at a random place, resized. In (0, 1];
    (1, 1) = all of it. DINO: (0.4, 1) for global views, (0.05, 0.4) for local ones. It is no random aspect ratio:
    cells are not stretched unless `shear_deg` says so."""
    size: int | None = None
    """Side of the result in pixels; None = the crop's own."""
    rotation_deg: float = 0.0
    """Turn by an angle in [-this, this]; 0 to 180. What a turn brings in from outside is the crop's mirror image."""
    rotation_probability: float = 1.0
    translate: float = 0.0
    """Shift along each axis by up to this share of the side, in [0, 1]; mirrored at the border."""
    shear_deg: float = 0.0
    """Shear along both axes by angles in [-this, this], areas unchanged; 0 to 45."""
    magnification: float = 1.0
    """Enlarge by a factor in [1 / this, this], uniform in its logarithm; 1 or more."""
    interpolation: Interpolation = "bicubic"
    """Of the one resampling that does all geometry but flips and quarter turns. `bilinear` takes a sixth of the time
    on a CPU, and blurs by up to half a pixel, which is a knob of its own."""

    # optics: one draw for each crop, whose channels share a stage
    blur_sigma_px: float = 0.0
    """Gaussian blur of a standard deviation in [0, this] pixels."""
    blur_probability: float = 1.0
    defocus_radius_px: float = 0.0
    """Out of focus: every point becomes a disk of a radius in [0, this] pixels. Up to half a pixel changes nothing."""
    defocus_probability: float = 1.0
    resolution: float = 1.0
    """Average down by a factor in [1, this], uniform in its logarithm, and interpolate back to the same size."""
    resolution_probability: float = 1.0

    # intensity: one draw for each channel
    bleed_through: float = 0.0
    """Each channel receives another one of its crop, scaled to its own sd and then by a share in [0, this]."""
    bleed_through_probability: float = 1.0
    gamma: float = 1.0
    """Raise intensities, scaled to [0, 1] between the channel's least and largest value in the crop, to a power in
    [1 / this, this], uniform in its logarithm; the least and the largest stay."""
    gamma_probability: float = 1.0
    contrast: float = 1.0
    """Multiply what lies above the channel's mean in the crop, its bright structures, by a factor in [1 / this, this],
    uniform in its logarithm; the background below stays, so this is no mere gain."""
    contrast_probability: float = 1.0
    offset: float = 0.0
    """Add a constant in [-this, this], in units of the channel's sd in the crop. Comes before the gain."""
    offset_probability: float = 1.0
    gain: float = 1.0
    """Multiply by a factor in [1 / this, this], uniform in its logarithm."""
    gain_probability: float = 1.0
    noise: float = 0.0
    """Add independent Gaussian noise to each pixel, of an sd in [0, this] in units of the channel's sd in the crop.
    Not Poisson: shot noise needs electrons for each count, which screens seldom record, and is near Gaussian."""
    noise_probability: float = 1.0
    shared_intensity: bool = False
    """All channels of a crop have one draw of gamma, contrast, offset and gain, as a weaker lamp or a thicker sample
    would do; their probabilities then count crops."""

    # masking
    erasing: float = 0.0
    """Set boxes to the channel's mean in the crop: their area together is a share in [0, this] of the crop's, less
    where they overlap. In [0, 1]."""
    erasing_probability: float = 1.0
    erasing_boxes: int = 1
    """Boxes of equal area, aspect ratios between 1:2 and 2:1."""
    erasing_per_channel: bool = False
    """Other boxes in each channel; else the same in all channels of a crop."""

    # channels
    channel_drop: float = 0.0
    """Probability of each channel to be dropped; a crop always keeps one."""
    channel_drop_mode: ChannelDropMode = "remove"
    """`remove`: the crop has fewer channels, and its tokens are never computed. `blank`: the channel is 0 everywhere,
    for `mae_vit`, which needs all its stains."""
    identity_drop: float = 0.0
    """Probability of each channel that its stain becomes unknown (identity 0). Teaches an encoder what to do with a
    stain that it has never seen."""
    channel_shuffle: float = 0.0
    """Probability of a crop that its channels come in a random order, identities along with them. Only a model that
    goes by the order (`channel_code="order"`) sees it."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"augment crop_scale is {self.crop_scale}: expected 0 < least <= largest <= 1, shares of the crop's "
                "area. Take (1, 1) to keep all of it."
            )
        if self.size is not None and self.size < 1:
            raise ValueError(f"augment size is {self.size}: expected pixels, 1 or more, or None for the crop's own.")
        for name, most in (("rotation_deg", 180), ("shear_deg", 45), ("translate", 1), ("erasing", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augment {name} is {getattr(self, name)}: expected 0 (off) to {most}.")
        for name in _FACTORS:
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"augment {name} is {getattr(self, name)}: expected a factor of 1 (off) or more; values are drawn "
                    "up to it and, but for resolution, down to one over it."
                )
        for name in _AMOUNTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"augment {name} is {getattr(self, name)}: expected 0 (off) or more.")
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment {name} is {getattr(self, name)}: expected a probability, 0 to 1.")
        if self.erasing_boxes < 1:
            raise ValueError(
                f"augment erasing_boxes is {self.erasing_boxes}: expected 1 or more. Set erasing to 0 for none."
            )
        for name, kind in (("channel_drop_mode", ChannelDropMode), ("interpolation", Interpolation)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"augment {name} {getattr(self, name)!r} is not known: choose one of {', '.join(get_args(kind))}."
                )

    def check_model(self, model: ModelConfig) -> None:
        """Refuse augmentations that the model cannot take, before a run begins.

        Raises:
            ValueError: The model needs all its stains and channels or identities would go, or the size does not
                divide into its patches.
        """
        loses_stains = (self.channel_drop > 0 and self.channel_drop_mode == "remove") or self.identity_drop > 0
        if model.is_fused and loses_stains:
            raise ValueError(
                f"augment channel_drop is {self.channel_drop} in mode {self.channel_drop_mode!r} and identity_drop "
                f"{self.identity_drop}, but {model.architecture} needs all its stains ({', '.join(model.channels)}). "
                "Set channel_drop_mode='blank' and identity_drop=0, or take a chada_vit."
            )
        if self.size is not None and self.size % model.size_step:
            raise ValueError(
                f"augment size is {self.size} px: expected a multiple of the model's patch_size, {model.size_step} px."
            )
