"""Checkpoints: written in parts by several workers, read by any number, incomplete ones detected."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch

from cytolake.models import CheckpointError, ModelConfig, load_encoder
from cytolake.models.objectives import MaeConfig, ObjectiveConfig, build_objective
from cytolake.train.checkpoint import (
    CheckpointWriter,
    Position,
    checkpoint_name,
    forget_broken_checkpoints,
    is_whole,
    newest_checkpoint,
    read_checkpoint,
)
from cytolake.train.optimiser import build_optimiser
from cytolake.train.parallel import encoder_on_cpu

MODEL = ModelConfig(channels=("DNA", "ER"), crop_size=16, patch_size=4, width=16, depth=2, heads=2)
OBJECTIVE = ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2))


def trained(seed=0, name="adamw", model=MODEL):
    """An objective and an optimiser with moments, after two steps on random gradients."""
    objective = build_objective(model, OBJECTIVE, seed)
    optimiser = build_optimiser(objective, name=name, learning_rate=0.1, betas=(0.9, 0.95), weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for parameter in objective.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()
    return objective, optimiser


def write(folder, objective, optimiser, *, step=5, workers=1, n_kept=2):
    for rank in range(workers):
        writer = CheckpointWriter(folder, rank, workers, n_kept)
        encoder = encoder_on_cpu(objective.final_encoder, rank == 0)
        writer.begin(objective, optimiser, encoder, Position(step=step, samples=8 * step, pack_id="pack"), {"seed": 0})
        writer.wait()
    return folder / checkpoint_name(step)


@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_what_any_number_of_workers_wrote_is_read_back_to_the_bit(tmp_path, name, workers):
    objective, optimiser = trained(name=name)
    folder = write(tmp_path, objective, optimiser, workers=workers)
    other, other_optimiser = trained(seed=1, name=name)
    assert read_checkpoint(folder, other, other_optimiser, "pack") == Position(step=5, samples=40, pack_id="pack")
    for (key, value), (_, wanted) in zip(other.state_dict().items(), objective.state_dict().items(), strict=True):
        assert torch.equal(value, wanted), key
    for parameter, wanted in zip(other.parameters(), objective.parameters(), strict=True):
        state, wanted_state = other_optimiser.state[parameter], optimiser.state[wanted]
        assert state.keys() == wanted_state.keys()
        assert all(torch.equal(state[moment], wanted_state[moment]) for moment in state)
    for each, its_optimiser in ((objective, optimiser), (other, other_optimiser)):  # and the next step is the same
        for parameter in each.parameters():
            parameter.grad = torch.ones_like(parameter)
        its_optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), other.parameters(), strict=True))


def test_what_training_does_meanwhile_does_not_reach_the_checkpoint(tmp_path):
    objective, optimiser = trained()
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    writer = CheckpointWriter(tmp_path, 0, 1, 2)
    writer.begin(
        objective, optimiser, encoder_on_cpu(objective.encoder, True), Position(step=1, samples=8, pack_id="pack"), {}
    )
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.zero_()
    writer.wait()
    other, other_optimiser = trained(seed=1)
    read_checkpoint(tmp_path / checkpoint_name(1), other, other_optimiser, "pack")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    encoder = load_encoder(tmp_path / checkpoint_name(1) / "encoder.safetensors")
    assert all(torch.equal(value, before[f"encoder.{name}"]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("damage", ["cut", "empty", "missing part", "no state", "half an encoder"])
def test_an_incomplete_checkpoint_is_skipped_and_deleted(tmp_path, damage):
    objective, optimiser = trained()
    write(tmp_path, objective, optimiser, step=5, workers=2)
    newest = write(tmp_path, objective, optimiser, step=10, workers=2)
    assert newest_checkpoint(tmp_path) == newest
    part = newest / "shard_1_of_2.safetensors"
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-1])
    elif damage == "empty":
        part.write_bytes(b"")
    elif damage == "missing part":
        part.unlink()
    elif damage == "no state":
        (newest / "state.json").unlink()
    else:
        encoder = newest / "encoder.safetensors"
        encoder.write_bytes(encoder.read_bytes()[:20])
    assert not is_whole(newest)
    assert newest_checkpoint(tmp_path).name == checkpoint_name(5)
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        read_checkpoint(newest, objective, optimiser, "pack")
    forget_broken_checkpoints(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [checkpoint_name(5)]


def test_old_checkpoints_go_when_newer_ones_are_whole(tmp_path):
    objective, optimiser = trained()
    for step in (1, 2, 3, 4):
        write(tmp_path, objective, optimiser, step=step, n_kept=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == [checkpoint_name(3), checkpoint_name(4)]


def test_an_error_while_writing_stops_the_run_at_the_next_checkpoint(tmp_path):
    objective, optimiser = trained()
    folder = tmp_path / "run"
    folder.mkdir()
    writer = CheckpointWriter(folder, 0, 1, 2)
    shutil.rmtree(folder)
    writer.begin(objective, optimiser, None, Position(step=1, samples=8, pack_id="pack"), {})
    with pytest.raises(OSError, match="run"):
        writer.wait()


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    objective, optimiser = trained()
    folder = write(tmp_path, objective, optimiser)
    with pytest.raises(CheckpointError, match="of another pack: found pack, expected other"):
        read_checkpoint(folder, objective, optimiser, "other")
    wider, wider_optimiser = trained(model=dataclasses.replace(MODEL, width=32))
    with pytest.raises(CheckpointError, match="weights of another model"):
        read_checkpoint(folder, wider, wider_optimiser, "pack")
    deeper, deeper_optimiser = trained(model=dataclasses.replace(MODEL, depth=3))
    with pytest.raises(CheckpointError, match="weights of another model"):
        read_checkpoint(folder, deeper, deeper_optimiser, "pack")
