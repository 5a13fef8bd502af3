"""Encoders on disk: what was saved comes back, and nothing else is taken for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cytolake.models import CheckpointError, ModelConfig, build_encoder, collate, load_encoder, model_id, save_encoder

CONFIG = ModelConfig(channels=("DNA", "ER"), crop_size=16, patch_size=4, width=24, depth=2, heads=2)


@pytest.fixture
def saved(tmp_path):
    encoder = build_encoder(CONFIG, 0)
    path = tmp_path / "encoder.safetensors"
    return encoder, path, save_encoder(encoder, path)


@pytest.mark.parametrize("architecture", ["mae_vit", "chada_vit"])
def test_a_loaded_encoder_is_the_saved_one(tmp_path, architecture):
    encoder = build_encoder(dataclasses.replace(CONFIG, architecture=architecture), 0)
    identity = save_encoder(encoder, tmp_path / "e.safetensors")
    loaded = load_encoder(tmp_path / "e.safetensors", expect=encoder.config)
    batch = collate([np.random.default_rng(0).normal(size=(2, 16, 16))], [(1, 2)])
    assert loaded.config == encoder.config
    assert not loaded.training
    assert torch.equal(loaded.pooled_blocks(batch)["mean"], encoder.pooled_blocks(batch)["mean"])
    assert identity == model_id(loaded) == model_id(encoder)
    assert [file.name for file in tmp_path.iterdir()] == ["e.safetensors"]


def test_the_number_of_heads_is_part_of_the_model_although_weights_fit_any(saved):
    _, path, identity = saved
    other = build_encoder(dataclasses.replace(CONFIG, heads=3), 0)
    assert model_id(other) != identity
    with pytest.raises(CheckpointError, match="another model: found heads=2, expected heads=3"):
        load_encoder(path, expect=other.config)


def test_training_settings_do_not_make_it_another_model(saved):
    _, path, _ = saved
    load_encoder(path, expect=dataclasses.replace(CONFIG, drop_path=0.2))


def test_a_truncated_file_says_so(saved):
    _, path, _ = saved
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors: found \d+ bytes .* truncated"):
        load_encoder(path)


def test_a_text_file_and_a_missing_file_say_so(tmp_path):
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match=r"notes\.txt: found 16 bytes that are not a whole safetensors file"):
        load_encoder(tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no such checkpoint"):
        load_encoder(tmp_path / "nothing.safetensors")


def test_safetensors_of_somebody_else_are_refused(tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"not a cytolake encoder: found .* 'unknown', version 'unknown', expected"
    ):
        load_encoder(tmp_path / "other.safetensors")


def test_changed_weights_are_noticed(saved):
    _, path, _ = saved
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    weights["cls_token"][0] += 1
    save_file(weights, path, metadata)
    with pytest.raises(CheckpointError, match="have changed since they were saved"):
        load_encoder(path)
