"""A registered version, loaded by MLflow itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.embed.every_block import every_block

from cytolake.models import POOLINGS, ModelConfig, build_encoder, model_id, save_encoder
from cytolake.tracking import ModelCard, TrackingConfig, promote

CHANNELS = ("DNA", "ER")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")
@pytest.mark.parametrize("architecture", ["mae_vit", "chada_vit"])
def test_mlflow_runs_a_promoted_encoder_without_pickle(tmp_path: Path, monkeypatch, architecture):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "False")
    config = ModelConfig(architecture=architecture, channels=CHANNELS, crop_size=16, width=16, depth=3, heads=2)
    encoder = build_encoder(config, seed=0).eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    card = ModelCard(
        representation_id="r", model_id=model_id(encoder), architecture=architecture, channels=CHANNELS, crop_size=16,
        block=1, pooling="cls", dim=16, pack_id="p", curation_id="c", table_versions={}, run_id="",
        benchmark="linear_probe", label="gene", split="plate", metric="balanced_accuracy", score=0.5, ci_low=0.4,
        ci_high=0.6,
    )  # fmt: skip
    champion = promote(TrackingConfig().at(tmp_path), card, tmp_path / "encoder.safetensors")

    import mlflow.pyfunc

    crops = np.random.default_rng(0).gamma(2.0, 500.0, size=(3, 2, 16, 16)).astype(np.float32)
    served = mlflow.pyfunc.load_model(str(champion.folder)).predict(crops)
    whole = every_block(encoder, list(crops), [CHANNELS] * 3)
    np.testing.assert_allclose(served, whole[:, POOLINGS.index("cls") * 3 + 1], atol=1e-5)
