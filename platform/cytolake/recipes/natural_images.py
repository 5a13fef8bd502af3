"""Natural images in folders of classes, for a study of augmentations that help one class and harm another."""

from __future__ import annotations

from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.curation.curate import CurateConfig
from cytolake.models import ModelConfig
from cytolake.models.augment import AugmentConfig
from cytolake.models.objectives import DinoConfig, MoCoV2PlusConfig, ObjectiveConfig
from cytolake.pipeline.config import BenchmarkConfig, PipelineConfig, ScreensConfig
from cytolake.screens.sources import ScreenSource
from cytolake.train.config import PretrainConfig
from cytolake.tune.study_config import StudyConfig


def natural_images() -> PipelineConfig:
    """Colour images in screens/images/[SPLIT/]CLASS, a ResNet-18, and a study of seven objectives. Small defaults.

    Objectives and network as Bendidi et al. 2023, arXiv 2304.11718, whose runs have 1,000 epochs of minibatches of 512.
    Of their transforms: random crops, contrast with probability 0.8. Brightness is a gain, which an encoder that
    standardises each channel cannot see; hue and saturation mix channels, as `bleed_through` does.
    Grey images: pretrain.model.channels=[Gray].
    """
    return PipelineConfig(
        name="natural_images",
        root="cytolake_data_natural",
        screens=ScreensConfig(
            root="screens", sources=(ScreenSource(screen="images", path="images", layout="class-folders"),)
        ),
        ingest=IngestConfig(crop_size=32),
        curate=CurateConfig(name="natural_images"),
        pretrain=PretrainConfig(
            model=ModelConfig(
                architecture="resnet", channels=("RGB_R", "RGB_G", "RGB_B"), crop_size=32, resnet="resnet18"
            ),
            objective=ObjectiveConfig(
                name="simclr",
                dino=DinoConfig(pooling="mean", local_size=16, n_local_views=4),
                moco_v2_plus=MoCoV2PlusConfig(queue_size=4096),
            ),
            augment=AugmentConfig(
                flip_rotate=False,
                crop_scale=(0.2, 1.0),
                contrast=1.4,
                contrast_probability=0.8,
                interpolation="bilinear",
            ),
            schedule="one_cycle",
            epochs=20,
            minibatch_size=128,
        ),
        # Images have no controls, pathways or relations: their class is all there is to predict.
        probe=ProbeConfig(label="perturbation", split="plate", seeds=(0, 1, 2)),
        benchmark=BenchmarkConfig(tasks=(("perturbation", "plate"),), profiles=None),
        study=StudyConfig(
            objectives=("simclr", "moco_v2_plus", "moco_v3", "byol", "simsiam", "vicreg", "barlow_twins"),
            knobs=("crop_scale", "contrast", "bleed_through"),
            seeds=(0, 1, 2),
            split="plate",
            nuisances=("plate",),
        ),
    )
