"""Every objective trains through the same loop, and an interrupted run continues to the same numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tests.fast_cases import fast_cases

from cytolake.models import ModelConfig, load_encoder
from cytolake.models.augment import AugmentConfig
from cytolake.models.objectives import (
    BarlowTwinsConfig,
    ByolConfig,
    DinoConfig,
    MaeConfig,
    MoCoV2PlusConfig,
    MoCoV3Config,
    ObjectiveConfig,
    SimClrConfig,
    SimSiamConfig,
    VicRegConfig,
)
from cytolake.packs.pack import Pack
from cytolake.tracking import run_params
from cytolake.train.checkpoint import newest_checkpoint
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import PretrainError, pretrain

# MLflow 3.17's own queries.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

STAINS = ("DNA", "ER", "RNA")
NARROW = {"hidden_width": 32, "projected_width": 16}
OBJECTIVES = (
    ObjectiveConfig(
        name="mae", mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2, decoder="per_channel")
    ),
    ObjectiveConfig(
        name="dino",
        dino=DinoConfig(n_local_views=2, local_size=8, hidden_width=32, bottleneck_width=16, n_prototypes=32),
    ),
    ObjectiveConfig(name="simclr", simclr=SimClrConfig(**NARROW)),
    ObjectiveConfig(name="byol", byol=ByolConfig(**NARROW)),
    ObjectiveConfig(name="vicreg", vicreg=VicRegConfig(**NARROW)),
    ObjectiveConfig(name="barlow_twins", barlow_twins=BarlowTwinsConfig(**NARROW)),
    # longer than the pack, so that the run shortens it
    ObjectiveConfig(name="moco_v2_plus", moco_v2_plus=MoCoV2PlusConfig(queue_size=100, **NARROW)),
    ObjectiveConfig(name="moco_v3", moco_v3=MoCoV3Config(**NARROW)),
    ObjectiveConfig(name="simsiam", simsiam=SimSiamConfig(predictor_width=8, **NARROW)),
)


ON_RESNET = (
    ObjectiveConfig(name="byol", byol=ByolConfig(**NARROW)),
    ObjectiveConfig(name="moco_v2_plus", moco_v2_plus=MoCoV2PlusConfig(queue_size=12, **NARROW)),
)
TRANSFORMER = ModelConfig(channels=STAINS, crop_size=16, patch_size=4, width=16, depth=2, heads=2, drop_path=0.1)
RESNET = ModelConfig(architecture="resnet", channels=STAINS, crop_size=16)


def losses(runs: Path) -> list[dict[str, float]]:
    (history,) = runs.glob("*/history.json")
    timed = ("crops_per_s", "tokens_per_s", "tflops_per_s", "data_wait_share", "memory_mb")
    return [{name: row[name] for name in row if name not in timed} for row in json.loads(history.read_text())]


CASES = (
    *((each, TRANSFORMER) for each in OBJECTIVES),
    *((each, RESNET) for each in ON_RESNET),  # statistics of a batch normalisation, a teacher and a queue
)


@pytest.mark.parametrize(
    ("objective", "model"),
    fast_cases(CASES, *(each for each in CASES[: len(OBJECTIVES)] if each[0].name in ("mae", "dino", "moco_v2_plus"))),
    ids=lambda each: getattr(each, "name", "") or each.architecture,
)
def test_an_interrupted_run_of_it_continues_to_the_same_numbers(
    make_pack, tmp_path, monkeypatch, tracking, objective, model
):
    is_mixed = not model.is_fused
    pack = make_pack(24, (STAINS[:1], STAINS, STAINS[:2]) if is_mixed else (STAINS,))
    config = PretrainConfig(
        model=model,
        objective=objective, augment=AugmentConfig(rotation_deg=20, noise=0.1, channel_drop=0.2 * is_mixed), steps=4,
        minibatch_size=6, workers=0, threads=1, precision="fp32", log_every=1, checkpoint_every=2, optimiser="lion",
        learning_rate=1e-4,
    )  # fmt: skip
    whole = pretrain(pack, config, tmp_path / "whole", tracking)
    read, calls = Pack.read, 0

    def fail_once(self, rows):
        nonlocal calls
        calls += len(rows) == 6
        if calls == 2 * objective.n_views + 1:
            calls += 1
            raise OSError("gone")
        return read(self, rows)

    monkeypatch.setattr(Pack, "read", fail_once)
    with pytest.raises(PretrainError, match="gone"):
        pretrain(pack, config, tmp_path / "broken", tracking)
    resumed = pretrain(pack, config, tmp_path / "broken", tracking)
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    assert resumed.model_id == whole.model_id
    values = np.array([list(row.values()) for row in losses(tmp_path / "whole")])
    assert np.isfinite(values).all()
    # the result is a plain encoder of the model's config
    assert dataclasses.replace(load_encoder(whole.checkpoint).config, drop_path=model.drop_path) == config.model


def test_a_queue_longer_than_the_pack_is_shortened_and_the_log_reports_it(make_pack, tmp_path, tracking, caplog):
    config = PretrainConfig(
        model=TRANSFORMER, objective=OBJECTIVES[6], steps=2, minibatch_size=5, workers=0, threads=1, precision="fp32"
    )
    result = pretrain(make_pack(24, (STAINS,)), config, tmp_path / "runs", tracking)
    assert "has 24 crops: the queue of moco_v2_plus holds 20 keys instead of" in caplog.text
    assert run_params(tracking, result.run_id)["queue_size"] == "20"
    with safe_open(newest_checkpoint(result.run_folder) / "shard_0_of_1.safetensors", framework="np") as file:
        assert file.get_slice("model/queue").get_shape() == [2, 20, 16]
        assert int(file.get_tensor("model/oldest")) == 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": ObjectiveConfig()}, "objective mae hides tokens"),
        ({"parallel": "fsdp"}, "those are for transformer blocks"),
        ({"compile": True}, "those are for transformer blocks"),
        ({"augment": AugmentConfig(channel_drop=0.1)}, "resnet needs all its stains"),
    ],
)
def test_what_a_resnet_cannot_do_stops_before_training(change, message):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**({"model": RESNET, "objective": ON_RESNET[0]} | change))
