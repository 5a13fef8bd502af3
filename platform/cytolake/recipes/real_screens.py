"""Real public plates of 1 to 6 channels in one catalog, and one channel-adaptive encoder for all of them."""

from __future__ import annotations

from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.benchmark.pinned_probe import TrainingProbeConfig
from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.curation.curate import CurateConfig
from cytolake.models import ModelConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.pipeline.config import BenchmarkConfig, PipelineConfig, ScreensConfig
from cytolake.screens.sources import ScreenSource
from cytolake.train.config import PretrainConfig


def real_screens() -> PipelineConfig:
    """Six public screens of 1 to 6 channels under screens.root, one channel-adaptive encoder, minutes on two cores."""
    return PipelineConfig(
        name="real_screens",
        root="cytolake_data_real",
        screens=ScreensConfig(
            root="screens",
            sources=(
                ScreenSource(screen="cp_plate_row", path="cp_plate_row_1ch", layout="index-csv"),
                ScreenSource(screen="cellprofiler_examples", path="cellprofiler_examples", layout="index-csv"),
                ScreenSource(screen="imagexpress_timelapse", path="imagexpress_timelapse", layout="imagexpress"),
                ScreenSource(
                    screen="jump_pilot",
                    path="jump_BR00117006_site",
                    layout="index-csv",
                    channels=("DNA", "ER", "RNA", "AGP", "Mito"),  # this copy holds three of them
                ),
                ScreenSource(screen="pediatric_atlas", path="pediatric_BR00143976_6ch", layout="index-csv"),
                ScreenSource(screen="bbbc006_focus", path="bbbc006_focus", layout="index-csv"),
            ),
        ),
        ingest=IngestConfig(crop_size=128),
        curate=CurateConfig(name="any_screen"),
        pretrain=PretrainConfig(
            model=ModelConfig(
                architecture="chada_vit",
                crop_size=128,
                patch_size=16,
                width=128,
                depth=4,
                heads=4,
            ),
            objective=ObjectiveConfig(
                mae=MaeConfig(
                    decoder_width=64,
                    decoder_depth=1,
                    decoder_heads=4,
                    contrastive_weight=0.3,  # see platform/decisions/0003
                )
            ),
            second_view="well",
            steps=300,
            minibatch_size=32,
            checkpoint_every=100,
            evaluate_every=100,
        ),
        training_probe=TrainingProbeConfig(
            n_crops=600,
            probe=ProbeConfig(label="plate", split="well", regularisation=(0.01,), include_controls=True),
        ),
        # These screens share no perturbation; the only label that all of them have is the screen that they come from.
        probe=ProbeConfig(label="screen", split="well"),
        benchmark=BenchmarkConfig(tasks=(("screen", "well"), ("plate", "well"))),
    )
