"""Self-supervised objectives of training."""

from cytolake.models.objectives.barlow_twins import BarlowTwins
from cytolake.models.objectives.build import ObjectiveConfig, ObjectiveName, build_objective
from cytolake.models.objectives.byol import Byol
from cytolake.models.objectives.config import (
    BarlowTwinsConfig,
    ByolConfig,
    DinoConfig,
    MaeConfig,
    MoCoV2PlusConfig,
    MoCoV3Config,
    SimClrConfig,
    SimSiamConfig,
    VicRegConfig,
)
from cytolake.models.objectives.dino import Dino
from cytolake.models.objectives.mae import MaskedAutoencoder, Reconstruction
from cytolake.models.objectives.moco_v2_plus import MoCoV2Plus
from cytolake.models.objectives.moco_v3 import MoCoV3
from cytolake.models.objectives.objective import Objective, View
from cytolake.models.objectives.simclr import SimClr
from cytolake.models.objectives.simsiam import SimSiam
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
    "MoCoV2Plus",
    "MoCoV2PlusConfig",
    "MoCoV3",
    "MoCoV3Config",
    "Objective",
    "ObjectiveConfig",
    "ObjectiveName",
    "Reconstruction",
    "SimClr",
    "SimClrConfig",
    "SimSiam",
    "SimSiamConfig",
    "VicReg",
    "VicRegConfig",
    "View",
    "build_objective",
]
