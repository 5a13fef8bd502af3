"""The demo: a simulated Cell Painting screen, a small masked autoencoder, five to six minutes on two cores in fp32."""

from __future__ import annotations

from cytolake.benchmark.pinned_probe import TrainingProbeConfig
from cytolake.models import ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.pipeline.config import PipelineConfig, ScreensConfig
from cytolake.pipeline.label_curve import LabelCurveConfig
from cytolake.qc.detector.label_efficiency import LabelEfficiencyConfig
from cytolake.qc.detector.learned import QcTrainConfig
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.train.config import PretrainConfig


def demo() -> PipelineConfig:
    """A simulated screen of four plates and a small MAE: the whole pipeline in minutes on two cores."""
    return PipelineConfig(
        name="demo",
        screens=ScreensConfig(simulate=SimulatedScreen()),
        pretrain=PretrainConfig(
            model=ModelConfig(
                architecture="mae_vit",
                channels=("DNA", "ER", "RNA", "AGP", "Mito"),
                crop_size=64,
                patch_size=8,
                width=128,
                depth=3,
                heads=4,
            ),
            objective=ObjectiveConfig(
                mae=MaeConfig(
                    decoder_width=64,
                    decoder_depth=1,
                    decoder_heads=4,
                    mask_ratio=0.5,
                    fourier_weight=0.0,
                    contrastive_weight=0.5,  # see platform/decisions/0003
                )
            ),
            second_view="well",
            steps=480,
            minibatch_size=64,
            learning_rate=2e-3,
            checkpoint_every=240,
            evaluate_every=240,
        ),
        training_probe=TrainingProbeConfig(n_crops=800),
        label_curve=LabelCurveConfig(
            train=QcTrainConfig(simulated_per_kind=20), curve=LabelEfficiencyConfig(labels_per_class=(1, 2, 5, 10))
        ),
    )
