"""Augmentations: changes to crops that should not change their biology, each with its own knob."""

from cytolake.models.augment.apply import augment
from cytolake.models.augment.config import AugmentConfig
from cytolake.models.augment.knobs import KNOBS, NOTHING, Knob

__all__ = ["KNOBS", "NOTHING", "AugmentConfig", "Knob", "augment"]
