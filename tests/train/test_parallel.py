"""Dealt out among workers (FSDP2) or whole on each (DDP): losses, weights and checkpoints as in one process."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing

from cytolake.models import ModelConfig, load_encoder, masking_noise
from cytolake.models.crops import collate
from cytolake.models.objectives import MaeConfig, ObjectiveConfig, View, build_objective
from cytolake.train.checkpoint import CheckpointWriter, Position, checkpoint_name, read_checkpoint
from cytolake.train.optimiser import build_optimiser
from cytolake.train.parallel import clip_gradients, distribute, encoder_on_cpu, shard

MODEL = ModelConfig(
    channels=("DNA", "ER", "RNA"), crop_size=16, patch_size=4, width=16, depth=2, heads=2, block="parallel",
    layer_scale=0.1,
)  # fmt: skip
OBJECTIVE = ObjectiveConfig(mae=MaeConfig(decoder_width=16, decoder_depth=1, decoder_heads=2))
N_CROPS, N_STEPS = 8, 3


def view_of(rows: np.ndarray) -> View:
    images = [np.random.default_rng(row).integers(0, 999, (1 + row % 3, 16, 16)).astype(np.uint16) for row in rows]
    crops = collate(images, [tuple(range(1, len(image) + 1)) for image in images])
    return View(crops, masking_noise(0, 0, rows, 16 * crops.pixels.shape[1]))


def train(kind: str, rank: int, world_size: int, folder: Path, optimiser_name: str) -> list[list[float]]:
    """Losses and gradient norms; the last checkpoint is in `folder`, the weights then in `weights.pt`."""
    objective = build_objective(MODEL, OBJECTIVE, 0)
    if kind == "fsdp":
        shard(objective)
    optimiser = build_optimiser(
        objective, name=optimiser_name, learning_rate=1e-2, betas=(0.9, 0.95), weight_decay=0.05
    )
    parallel = distribute(objective, kind, torch.device("cpu"))
    told = []
    for step in range(N_STEPS):
        rows = np.arange(step * N_CROPS, (step + 1) * N_CROPS)[rank::world_size]
        losses = parallel([view_of(rows)])
        losses["loss"].backward()
        norm = clip_gradients(objective, 0.5)
        optimiser.step()
        optimiser.zero_grad()
        loss = losses["loss"].detach() / world_size
        if world_size > 1:
            torch.distributed.all_reduce(loss)
        told.append([float(loss), float(norm)])
    writer = CheckpointWriter(folder, rank, world_size, 2)
    encoder = encoder_on_cpu(objective.kept_encoder, rank == 0)
    writer.begin(objective, optimiser, encoder, Position(step=N_STEPS, samples=24, pack_id="pack"), {})
    writer.wait()
    if world_size > 1:
        torch.distributed.barrier()
    if kind == "fsdp":  # read by as many workers as wrote it, each its own rows
        before = [each.to_local().clone() for each in objective.parameters()]
        with torch.no_grad():
            for each in objective.parameters():
                each.to_local().zero_()
        read_checkpoint(folder / checkpoint_name(N_STEPS), objective, optimiser, "pack")
        assert all(
            torch.equal(each.to_local(), kept) for each, kept in zip(objective.parameters(), before, strict=True)
        )
    return told


def worker(rank: int, world_size: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    told = {}
    for name in ("adamw", "lion"):
        for kind in ("ddp", "fsdp"):
            told[f"{kind} {name}"] = train(kind, rank, world_size, folder / f"{kind}_{name}", name)
    if rank == 0:
        torch.save(told, folder / "told.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for kind in ("ddp", "fsdp"):
        for name in ("adamw", "lion"):
            (folder / f"{kind}_{name}").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(2, port, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_sharded_replicated_and_alone_learn_the_same(two_workers, tmp_path, name):
    alone = train("ddp", 0, 1, tmp_path, name)
    told = torch.load(two_workers / "told.pt", weights_only=True)
    np.testing.assert_allclose(told[f"ddp {name}"], alone, rtol=1e-4)
    np.testing.assert_allclose(told[f"fsdp {name}"], told[f"ddp {name}"], rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_a_sharded_checkpoint_goes_on_in_one_process(two_workers, name):
    states = []
    for kind in ("ddp", "fsdp"):
        objective = build_objective(MODEL, OBJECTIVE, 1)
        optimiser = build_optimiser(objective, name=name, learning_rate=1e-2, betas=(0.9, 0.95), weight_decay=0.05)
        folder = two_workers / f"{kind}_{name}" / checkpoint_name(N_STEPS)
        read_checkpoint(folder, objective, optimiser, "pack")
        encoder = load_encoder(folder / "encoder.safetensors")
        for key, value in encoder.state_dict().items():
            assert torch.equal(value, objective.state_dict()[f"encoder.{key}"])
        moments = {
            f"{key}.{moment}": value
            for key, parameter in objective.named_parameters()
            for moment, value in optimiser.state[parameter].items()
        }
        states.append(objective.state_dict() | moments)
    for key, value in states[0].items():
        torch.testing.assert_close(
            states[1][key], value, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_each_worker_of_a_sharded_run_keeps_about_half(two_workers):
    sizes = [
        path.stat().st_size
        for path in sorted((two_workers / "fsdp_adamw" / checkpoint_name(N_STEPS)).glob("shard_*.safetensors"))
    ]
    assert len(sizes) == 2
    assert max(sizes) < 0.65 * sum(sizes)


def test_without_other_workers_nothing_is_wrapped():
    objective = build_objective(dataclasses.replace(MODEL, depth=1), OBJECTIVE, 0)
    assert distribute(objective, "ddp", torch.device("cpu")) is objective
