"""Self-supervised objectives: what an encoder is trained to do."""

from cytolake.models.objectives.barlow_twins import BarlowTwins
from cytolake.models.objectives.build import ObjectiveConfig, ObjectiveName, build_objective
from cytolake.models.objectives.byol import Byol
from cytolake.models.objectives.config import (
    BarlowTwinsConfig,
    ByolConfig,
    DinoConfig,
    MaeConfig,
    SimClrConfig,
    VicRegConfig,
)
from cytolake.models.objectives.dino import Dino
from cytolake.models.objectives.mae import MaskedAutoencoder, Reconstruction
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.objectives.simclr import SimClr
from cytolake.models.objectives.vicreg import VicReg

__all__ = [
    "BarlowTwins",
    "BarlowTwinsConfig",
    "Byol",
    "ByolConfig",
    "Dino",
    "DinoConfig",
    "MaeConfig",
    "MaskedAutoencoder",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveName",
    "Reconstruction",
    "SimClr",
    "SimClrConfig",
    "VicReg",
    "VicRegConfig",
    "View",
    "build_objective",
]
