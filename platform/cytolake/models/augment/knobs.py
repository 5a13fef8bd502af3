"""Every augmentation by its name, on one scale from 0 (off) to 1 (beyond common practice)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cytolake.models.augment.config import AugmentConfig

Family = Literal["geometry", "optics", "intensity", "masking", "channels"]
NOTHING = AugmentConfig(flip_rotate=False)
"""Every knob off: `augment` returns the crops as they are."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One field of `AugmentConfig` as a function of one strength; for sweeps and for audits of invariance."""

    field: str
    family: Family
    value: Callable[[float], Any]
    """Strength in [0, 1] to the field's value; 0 is off, 1 is far beyond common practice."""

    def __call__(self, strength: float, base: AugmentConfig = NOTHING) -> AugmentConfig:
        """The base with this knob at the strength and all others as they were.

        Raises:
            ValueError: The strength is not in [0, 1].
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength of the knob {self.field} is {strength}: expected 0 (off) to 1.")
        return dataclasses.replace(base, **{self.field: self.value(strength)})


KNOBS: Mapping[str, Knob] = {
    knob.field: knob
    for knob in (
        Knob("flip_rotate", "geometry", lambda s: s > 0),  # all or nothing
        Knob("crop_scale", "geometry", lambda s: (1 - 0.92 * s, 1.0)),  # 0.08: SimCLR, Chen et al. 2020
        Knob("rotation_deg", "geometry", lambda s: 180 * s),
        Knob("translate", "geometry", lambda s: 0.5 * s),
        Knob("shear_deg", "geometry", lambda s: 30 * s),
        Knob("magnification", "geometry", lambda s: 2.0**s),  # 10x against 20x objective
        Knob("blur_sigma_px", "optics", lambda s: 4 * s),
        Knob("defocus_radius_px", "optics", lambda s: 8 * s),
        Knob("resolution", "optics", lambda s: 8.0**s),
        Knob("bleed_through", "intensity", lambda s: s),
        Knob("gamma", "intensity", lambda s: 4.0**s),
        Knob("contrast", "intensity", lambda s: 4.0**s),
        Knob("offset", "intensity", lambda s: 2 * s),
        Knob("gain", "intensity", lambda s: 4.0**s),
        Knob("noise", "intensity", lambda s: 2 * s),
        Knob("erasing", "masking", lambda s: s),
        Knob("channel_drop", "channels", lambda s: s),  # 1: one channel of each crop is left
        Knob("identity_drop", "channels", lambda s: s),
        Knob("channel_shuffle", "channels", lambda s: s),
    )
}
