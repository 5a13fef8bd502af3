"""Changes to crops that should leave their biology as it is, each a knob of its own."""

from cytolake.models.augment.apply import augment
from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.knobs import KNOBS, NOTHING, Knob

__all__ = ["KNOBS", "NOTHING", "AugmentConfig", "Knob", "augment"]
