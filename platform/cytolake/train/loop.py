"""What each training worker does, from its first minibatch to the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cytolake.models import MaskedAutoencoder, build_model, collate, masking_noise
from cytolake.packs.pack import Pack
from cytolake.train.feed import FeedSettings, Prefetcher, read_minibatches, steps_per_epoch
from cytolake.train.optimiser import build_optimiser, learning_rate_at
from cytolake.train.run_folder import (
    RECONSTRUCTIONS_FILE,
    Position,
    append_history,
    checkpoint_name,
    cut_history,
    keep_checkpoint,
    newest_checkpoint,
    read_checkpoint,
    write_arrays,
    write_checkpoint,
)

if TYPE_CHECKING:
    from cytolake.train.pretrain import PretrainConfig

N_PICTURES = 4
"""Crops whose reconstruction is kept for people to look at."""

# The only buffers are position codes, which never change. torch 2.15 has a new name for the switch.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """What the driver tells every worker."""

    config: PretrainConfig
    pack_path: str
    run_folder: str
    """Absolute, and shared by all machines of the run."""
    n_steps: int
    is_local: bool
    """Without Ray: one process, which keeps its checkpoints itself."""


def train_worker(arguments: dict[str, LoopSettings]) -> None:
    """Train until the last step, beginning at the newest checkpoint where there is one. Ray Train passes a dict."""
    settings = arguments["settings"]
    config, run_folder = settings.config, Path(settings.run_folder)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if config.threads or not settings.is_local:
        torch.set_num_threads(threads_of_worker(config.threads, context.get_local_world_size()))
    pack = Pack.open(settings.pack_path)
    per_epoch = steps_per_epoch(pack.n_crops, config.minibatch_size)

    device = ray.train.torch.get_device()
    model = build_model(config.model, config.seed).to(device)
    optimiser = build_optimiser(model, config.learning_rate, config.weight_decay)
    first_step = 0
    with _checkpoint_to_go_on_from(run_folder, settings.is_local) as folder:
        if folder is not None:
            first_step = read_checkpoint(folder, model, optimiser, pack.pack_id).step
    if rank == 0:
        cut_history(run_folder, first_step)
    parallel = ray.train.torch.prepare_model(model, parallel_strategy_kwargs={_SYNC_BUFFERS: False})
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(config.precision, device))

    feed = FeedSettings(
        model=config.model,
        seed=config.seed,
        minibatch_size=config.minibatch_size,
        flip_rotate=config.flip_rotate,
        pairs_wells=config.second_view == "well",
        rank=rank,
        world_size=world_size,
        first_step=first_step,
        n_steps=settings.n_steps,
        pin_memory=device.type == "cuda",
    )
    model.train()
    window = _Window()
    with Prefetcher(read_minibatches(pack, feed), config.prefetch) as prefetcher:
        for step, minibatch in enumerate(prefetcher, start=first_step):
            learning_rate = learning_rate_at(step, settings.n_steps, config.learning_rate, config.warmup_share)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
            if config.model.drop_path > 0:  # its random numbers must not depend on how often the run was resumed
                torch.manual_seed(hash((config.seed, step, rank)) % 2**63)
            with autocast:
                losses = parallel(*minibatch.to(device))
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            window.add(losses)

            done = step + 1
            is_last = done == settings.n_steps
            is_checkpoint = is_last or done % config.checkpoint_every == 0
            if is_checkpoint or done % config.log_every == 0:
                row = window.close(done, config.minibatch_size, prefetcher.waited_s)
                row |= {"epoch": done / per_epoch, "learning_rate": learning_rate}
                _refuse_infinite_loss(row, run_folder)
                if rank == 0:
                    append_history(run_folder, row)
                if is_checkpoint:
                    position = Position(
                        step=done, epoch=done // per_epoch, minibatch=done % per_epoch, pack_id=pack.pack_id
                    )
                    _report(settings, model, optimiser, position, row, rank)
                window.skip(prefetcher.waited_s)  # writing a checkpoint is neither computing nor waiting for data
    if rank == 0:
        _write_pictures(model, pack, config, run_folder / RECONSTRUCTIONS_FILE)


def threads_of_worker(wanted: int, workers_on_this_machine: int) -> int:
    """CPU threads of one worker: `wanted`, or an equal share of the machine's CPUs where it is 0."""
    return wanted or max(1, (os.cpu_count() or 1) // max(1, workers_on_this_machine))


def uses_bf16(precision: str, device: torch.device) -> bool:
    """`auto` takes bf16 on a GPU, and on a CPU that multiplies it natively; elsewhere it would be slower than fp32."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return True
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


class _Window:
    """Losses and time since the last report."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n_steps = 0
        self.skip(0.0)

    def skip(self, waited_s: float) -> None:
        """Begin to count time from now on; `waited_s` is the prefetcher's total."""
        self._started, self._waited_s = time.perf_counter(), waited_s

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach()  # no .item(): it would wait for the GPU
        self._n_steps += 1

    def close(self, step: int, minibatch_size: int, waited_s: float) -> dict[str, float]:
        """Means over the steps and over all workers, as a row of the history."""
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] for name in names]) / self._n_steps
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(means)
            means /= torch.distributed.get_world_size()
        seconds = time.perf_counter() - self._started
        row = {
            "step": step,
            **dict(zip(names, means.tolist(), strict=True)),
            "crops_per_s": minibatch_size * self._n_steps / seconds,
            "data_wait_share": min(1.0, (waited_s - self._waited_s) / seconds),
        }
        self._sums, self._n_steps = {}, 0
        return row


@contextlib.contextmanager
def _checkpoint_to_go_on_from(run_folder: Path, is_local: bool) -> Iterator[Path | None]:
    reported = None if is_local else ray.train.get_checkpoint()
    if reported is None:
        yield newest_checkpoint(run_folder)
    else:
        with reported.as_directory() as folder:
            yield Path(folder)


def _report(
    settings: LoopSettings,
    model: MaskedAutoencoder,
    optimiser: torch.optim.Optimizer,
    position: Position,
    row: dict[str, float],
    rank: int,
) -> None:
    name = checkpoint_name(position.step)
    if rank != 0:
        ray.train.report(row, checkpoint_dir_name=name)
        return
    run_folder = Path(settings.run_folder)
    folder = Path(tempfile.mkdtemp(prefix="unfinished-", dir=run_folder if settings.is_local else None))
    try:
        write_checkpoint(folder, model, optimiser, position, dataclasses.asdict(settings.config))
        if settings.is_local:
            keep_checkpoint(run_folder, folder, position.step, settings.config.keep_checkpoints)
            ray.train.report(row)
        else:
            checkpoint = ray.train.Checkpoint.from_directory(str(folder))
            ray.train.report(row, checkpoint=checkpoint, checkpoint_dir_name=name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _refuse_infinite_loss(row: dict[str, float], run_folder: Path) -> None:
    if not math.isfinite(row["loss"]):
        raise FloatingPointError(
            f"{run_folder}: the loss is {row['loss']} at step {row['step']:.0f}, "
            f"learning rate {row['learning_rate']:.2g}; expected a finite loss. "
            "Lower pretrain.learning_rate, or set pretrain.precision=fp32."
        )


def _write_pictures(model: MaskedAutoencoder, pack: Pack, config: PretrainConfig, path: Path) -> None:
    """Original, masked and reconstructed crops from all over the pack, (crops, C, S, S), 0 beyond a crop's channels."""
    rows = np.unique(np.linspace(0, pack.n_crops - 1, N_PICTURES).astype(int))
    names = [tuple(pack.channels(int(row))) for row in rows]
    crops = collate(pack.read(rows), [config.model.channel_indices(each) for each in names])
    device = next(model.parameters()).device
    n_tokens = crops.pixels.shape[1] * config.model.n_patches
    model.eval()
    pictures = model.reconstruct(crops.to(device), masking_noise(config.seed, 0, rows, n_tokens))
    arrays: dict[str, Any] = {
        "original": pictures.original.cpu().numpy(),
        "masked": pictures.masked.cpu().numpy(),
        "reconstruction": pictures.reconstructed.cpu().numpy(),
        "n_channels": np.array([len(each) for each in names]),
    }
    write_arrays(path, **arrays)
