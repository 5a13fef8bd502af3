"""The printed cost of a run."""

from __future__ import annotations

import re

import pytest
from rich.console import Console

from cytolake.models import ModelConfig, published_size
from cytolake.models.augment import AugmentConfig
from cytolake.models.objectives import MaeConfig, ObjectiveConfig
from cytolake.pipeline.dry_run import pretrain_dry_run
from cytolake.pipeline.dry_run_tables import dry_run_tables
from cytolake.pipeline.overrides import apply_overrides
from cytolake.recipes.demo import demo
from cytolake.train.config import PretrainConfig
from cytolake.train.dry_run import DryRun, dry_run

STAINS = ("DNA", "ER", "RNA", "Actin", "Mito", "Golgi")


def printed(found: DryRun) -> str:
    console = Console(width=120)
    with console.capture() as text:
        console.print(dry_run_tables(found))
    return " ".join(text.get().split())


def test_the_tables_hold_the_predicted_numbers():
    config = PretrainConfig(
        model=published_size("g8", channels=STAINS),
        objective=ObjectiveConfig(mae=MaeConfig(decoder_width=512, decoder_depth=8, decoder_heads=16)),
        optimiser="lion",
        minibatch_size=8192,
        epochs=500,
        parallel="fsdp",
        workers=256,
    )
    found = dry_run(config, n_crops=16_000_000, n_channels=6)
    text = printed(found)
    assert "encoder 1,841.7 M" in text
    assert "training 3,110 GFLOP a crop" in text
    assert "8,000,000,000 crops of 16,000,000 in 976,563 steps of up to 8,192" in text
    assert f"GPU-hours {found.gpu_hours:,.0f} " in text
    assert "encoder.blocks.* 48 38,355,488 153.4 MB 0.60 MB" in text
    on = found.on_gpus[-1]
    sizes = " ".join(f"{n / 1e9:.1f} GB" for n in (on.state_bytes, on.activation_bytes, on.memory_bytes))
    assert f"256 32 {sizes} fits {on.crops_per_s:,.0f} {on.hours:,.1f}" in text
    assert "too much" in text


@pytest.mark.slow
def test_a_resnet_has_no_plan_for_sharding_and_a_knob_without_effect_a_warning():
    config = PretrainConfig(
        model=ModelConfig(architecture="resnet", channels=STAINS[:3], crop_size=8),
        objective=ObjectiveConfig(name="moco_v3"),
        augment=AugmentConfig(gain=1.5),
        minibatch_size=512,
        epochs=200,
    )
    text = printed(dry_run(config, n_crops=50_000))
    assert "resnet18 with a small stem, 3 stains, crops of 8 px" in text
    assert "FSDP" not in text
    assert "augment.gain changes nothing that the encoder gets" in text


def test_a_small_model_has_digits_and_no_two_rows_say_the_same():
    model = ModelConfig(crop_size=16, patch_size=8, width=16, depth=2, heads=2)
    config = PretrainConfig(model=model, minibatch_size=64, epochs=2)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(dry_run_tables(dry_run(config, n_crops=1000)))
    text = captured.get()
    assert not re.search(r"(?<![\d.,])0(\.0+)? (GFLOP|GB|MB|M)\b", text), text
    rows = [line.split()[1:] for line in text.splitlines() if " fits " in line]
    assert len(rows) == len({tuple(row) for row in rows}) == 5, "1, 2, 8, 32 and 128 GPUs"
    assert "more GPUs do not help: a step has 64 crops" in text


def test_the_reason_why_there_is_no_pack_is_not_in_the_title(tmp_path):
    console = Console(width=200)
    with console.capture() as captured:
        pretrain_dry_run(apply_overrides(demo(), [f"root={tmp_path / 'nothing'}"]), console)
    title, pack, why, *_ = captured.get().splitlines()
    assert title == "demo"
    assert pack.startswith("pack none yet,")
    assert str(tmp_path) in why
