"""Sharded over workers (FSDP2) or whole on each (DDP): losses, weights and checkpoints as in one process."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fork_server import run_two_workers
from torch.distributed.tensor import DTensor

from cytolake.models import ModelConfig, load_encoder, masking_noise
from cytolake.models.crops import collate
from cytolake.models.objectives import MaeConfig, Objective, ObjectiveConfig, View, build_objective
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


def step(objective: Objective, parallel: torch.nn.Module, rows: np.ndarray, world_size: int) -> list[float]:
    """One pass forward and backward over this worker's rows: loss and norm of the gradients, of all workers."""
    losses = parallel([view_of(rows)])
    losses["loss"].backward()
    norm = clip_gradients(objective, 0.5)
    loss = losses["loss"].detach() / world_size
    if world_size > 1:
        torch.distributed.all_reduce(loss)
    return [float(loss), float(norm)]


def rows_of_step(number: int, rank: int, world_size: int) -> np.ndarray:
    return np.arange(number * N_CROPS, (number + 1) * N_CROPS)[rank::world_size]


def new_optimiser(objective: Objective, name: str) -> torch.optim.Optimizer:
    return build_optimiser(objective, name=name, learning_rate=1e-2, betas=(0.9, 0.95), weight_decay=0.05)


def state_of(objective: Objective, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and moments, whole on every worker."""
    moments = {
        f"{key}.{moment}": value
        for key, parameter in objective.named_parameters()
        for moment, value in optimiser.state.get(parameter, {}).items()
    }
    state = objective.state_dict() | moments
    return {key: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for key, v in state.items()}


def train(kind: str, rank: int, world_size: int, folder: Path, optimiser_name: str) -> list[list[float]]:
    """Losses and gradient norms of each step; the last is the one after the checkpoint in `folder`.

    The state at the checkpoint is in `state.pt`, as the workers have it in memory.
    """
    objective = build_objective(MODEL, OBJECTIVE, 0)
    if kind == "fsdp":
        shard(objective)
    optimiser = new_optimiser(objective, optimiser_name)
    parallel = distribute(objective, kind, torch.device("cpu"))
    losses = []
    for number in range(N_STEPS):
        losses.append(step(objective, parallel, rows_of_step(number, rank, world_size), world_size))
        optimiser.step()
        optimiser.zero_grad()
    writer = CheckpointWriter(folder, rank, world_size, 2)
    encoder = encoder_on_cpu(objective.final_encoder, rank == 0)
    writer.begin(objective, optimiser, encoder, Position(step=N_STEPS, samples=24, pack_id="pack"), {})
    writer.wait()
    state = state_of(objective, optimiser)
    if rank == 0:
        torch.save(state, folder / "state.pt")
    if world_size > 1:
        torch.distributed.barrier()
    if kind == "fsdp":  # read by as many workers as wrote it, each its own rows
        before = [each.to_local().clone() for each in objective.parameters()]
        with torch.no_grad():
            for each in objective.parameters():
                each.to_local().zero_()
        read_checkpoint(folder / checkpoint_name(N_STEPS), objective, optimiser, "pack")
        assert all(
            torch.equal(each.to_local(), earlier) for each, earlier in zip(objective.parameters(), before, strict=True)
        )
    losses.append(step(objective, parallel, rows_of_step(N_STEPS, rank, world_size), world_size))
    return losses


def worker(rank: int, folder: Path) -> None:
    losses = {}
    for name in ("adamw", "lion"):
        for kind in ("ddp", "fsdp"):
            losses[f"{kind} {name}"] = train(kind, rank, 2, folder / f"{kind}_{name}", name)
    if rank == 0:
        torch.save(losses, folder / "losses.pt")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for kind in ("ddp", "fsdp"):
        for name in ("adamw", "lion"):
            (folder / f"{kind}_{name}").mkdir()
    run_two_workers(worker, folder)
    return folder


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_sharded_replicated_and_alone_learn_the_same(two_workers, tmp_path, name):
    """Losses and norms, not single weights.

    A weight whose gradient is smaller than its rounding error moves by up to the learning rate in any direction, with
    either optimiser; and a loss sees little of that, as its gradient there is nearly 0. A loss of this size is a sum of
    some thousand rounded terms, one after the other: 1,000 * 2^-24 = 6e-5.
    """
    alone = train("ddp", 0, 1, tmp_path, name)
    losses = torch.load(two_workers / "losses.pt", weights_only=True)
    np.testing.assert_allclose(losses[f"ddp {name}"], alone, rtol=1e-4)
    np.testing.assert_allclose(losses[f"fsdp {name}"], losses[f"ddp {name}"], rtol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "lion"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_workers_continues_in_one_process(two_workers, kind, name):
    """All of the state, to the bit; and its next step has the workers' loss, up to the order of their sums."""
    objective = build_objective(MODEL, OBJECTIVE, 1)
    optimiser = new_optimiser(objective, name)
    folder = two_workers / f"{kind}_{name}" / checkpoint_name(N_STEPS)
    read_checkpoint(folder, objective, optimiser, "pack")
    wanted = torch.load(folder.parent / "state.pt", weights_only=True)
    found = state_of(objective, optimiser)
    assert found.keys() == wanted.keys()
    assert [key for key, value in found.items() if not torch.equal(value, wanted[key])] == []
    for key, value in load_encoder(folder / "encoder.safetensors").state_dict().items():
        assert torch.equal(value, wanted[f"encoder.{key}"])
    losses = torch.load(two_workers / "losses.pt", weights_only=True)[f"{kind} {name}"]
    next_step = step(objective, objective, rows_of_step(N_STEPS, 0, 1), 1)
    np.testing.assert_allclose(next_step, losses[-1], rtol=1e-4)


def test_a_checkpoint_from_before_key_biases_were_left_alone_continues(tmp_path):
    """Its optimiser had moments of them, and moved them."""
    old, new = (build_objective(MODEL, OBJECTIVE, 0) for _ in range(2))
    with torch.no_grad():
        for key, weight in old.named_parameters():
            if key.endswith("key_norm.bias"):
                weight.requires_grad_(True).fill_(0.25)
    optimisers = [new_optimiser(objective, "adamw") for objective in (old, new)]
    step(old, old, rows_of_step(0, 0, 1), 1)
    optimisers[0].step()
    optimisers[0].zero_grad()
    position = Position(step=1, samples=8, pack_id="pack")
    writer = CheckpointWriter(tmp_path, 0, 1, 2)
    writer.begin(old, optimisers[0], encoder_on_cpu(old.final_encoder, True), position, {})
    writer.wait()
    assert read_checkpoint(tmp_path / checkpoint_name(1), new, optimisers[1], "pack") == position
    kept = new.encoder.blocks[0].key_norm.bias.clone()
    assert kept.any()
    # The same operations on the same numbers, but for gradients of rounding alone, which the norm now lacks.
    old_step, new_step = (step(objective, objective, rows_of_step(1, 0, 1), 1) for objective in (old, new))
    assert new_step == pytest.approx(old_step, rel=1e-6)
    optimisers[1].step()
    assert torch.equal(new.encoder.blocks[0].key_norm.bias, kept)


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
