"""Choose and build the objective of a run by its name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from cytolake.models.config import ModelConfig
from cytolake.models.objectives.barlow_twins import BarlowTwins
from cytolake.models.objectives.byol import Byol
from cytolake.models.objectives.config import (
    N_GLOBAL_VIEWS,
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
from cytolake.models.objectives.mae import MaskedAutoencoder
from cytolake.models.objectives.moco_v2_plus import MoCoV2Plus
from cytolake.models.objectives.moco_v3 import MoCoV3
from cytolake.models.objectives.objective import Objective
from cytolake.models.objectives.simclr import SimClr
from cytolake.models.objectives.simsiam import SimSiam
from cytolake.models.objectives.vicreg import VicReg
from cytolake.models.stored_fields import ADDED_LATER

ObjectiveName = Literal["mae", "dino", "simclr", "byol", "vicreg", "barlow_twins", "moco_v2_plus", "moco_v3", "simsiam"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Name of the objective; of the settings below, those of `name` are used."""

    name: ObjectiveName = "mae"
    mae: MaeConfig = field(default_factory=MaeConfig)
    dino: DinoConfig = field(default_factory=DinoConfig)
    simclr: SimClrConfig = field(default_factory=SimClrConfig)
    byol: ByolConfig = field(default_factory=ByolConfig)
    vicreg: VicRegConfig = field(default_factory=VicRegConfig)
    barlow_twins: BarlowTwinsConfig = field(default_factory=BarlowTwinsConfig)
    moco_v2_plus: MoCoV2PlusConfig = field(default_factory=MoCoV2PlusConfig, metadata=ADDED_LATER)
    moco_v3: MoCoV3Config = field(default_factory=MoCoV3Config, metadata=ADDED_LATER)
    simsiam: SimSiamConfig = field(default_factory=SimSiamConfig, metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if self.name not in get_args(ObjectiveName):
            raise ValueError(
                f"objective {self.name!r} is not known: choose one of {', '.join(get_args(ObjectiveName))}."
            )

    @property
    def n_views(self) -> int:
        """Views of every crop that the objective takes."""
        if self.name == "mae":
            return 2 if self.mae.contrastive_weight > 0 else 1
        return N_GLOBAL_VIEWS + self.dino.n_local_views if self.name == "dino" else 2

    @property
    def masks_tokens(self) -> bool:
        """Views need random numbers for their masks."""
        return self.name == "mae"

    @property
    def compares_crops(self) -> bool:
        """The loss compares crops of all workers with each other, so all must have equally many."""
        return self.name != "mae" or self.mae.contrastive_weight > 0

    def view_crop(self, view: int) -> tuple[tuple[float, float] | None, int | None]:
        """The part of a crop that a view shows, and its size.

        Args:
            view: Number of the view, from 0 to n_views - 1.

        Returns:
            Least and largest share of the crop's area, None for all of it; and the side in pixels that it is resized
            to, None for the crop's own.
        """
        if self.name != "dino":
            return None, None
        if view < N_GLOBAL_VIEWS:
            return self.dino.global_scale, None
        return self.dino.local_scale, self.dino.local_size

    def check_model(self, model: ModelConfig) -> None:
        """Refuse models that the objective cannot train, before a run begins.

        Raises:
            ValueError: A masked autoencoder of a ResNet, or a pooling that the model does not have.
        """
        if self.name == "mae":
            if model.is_convolutional:
                raise ValueError(
                    "objective mae hides tokens, and a resnet has none. Take simclr, byol, vicreg, barlow_twins, dino, "
                    "moco_v2_plus, moco_v3 or simsiam, or a vision transformer (model.architecture=mae_vit)."
                )
            return
        pooling = getattr(self, self.name).pooling
        if pooling not in model.poolings:
            raise ValueError(
                f"objective.{self.name}.pooling is {pooling}, which {model.architecture} does not have. "
                f"Take {' or '.join(model.poolings)}."
            )

    def fitted_to(self, n_crops: int, minibatch_size: int) -> ObjectiveConfig:
        """The same with the queue of `moco_v2_plus` no longer than the whole minibatches that `n_crops` crops fill."""
        most = max(minibatch_size, n_crops - n_crops % minibatch_size)
        if self.name != "moco_v2_plus" or self.moco_v2_plus.queue_size <= most:
            return self
        return dataclasses.replace(self, moco_v2_plus=dataclasses.replace(self.moco_v2_plus, queue_size=most))


def build_objective(model: ModelConfig, config: ObjectiveConfig, seed: int) -> Objective:
    """A new encoder with its heads or decoder, on the CPU. Its weights are a function of (model, config, seed), and its
    encoder equals that of `build_encoder(model, seed)`. The global random state does not change.

    Raises:
        ValueError: Settings of the objective that do not fit the model.
    """
    config.check_model(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        match config.name:
            case "mae":
                return MaskedAutoencoder(model, config.mae)
            case "dino":
                return Dino(model, config.dino)
            case "simclr":
                return SimClr(model, config.simclr)
            case "byol":
                return Byol(model, config.byol)
            case "vicreg":
                return VicReg(model, config.vicreg)
            case "barlow_twins":
                return BarlowTwins(model, config.barlow_twins)
            case "moco_v2_plus":
                return MoCoV2Plus(model, config.moco_v2_plus)
            case "moco_v3":
                return MoCoV3(model, config.moco_v3)
            case "simsiam":
                return SimSiam(model, config.simsiam)
