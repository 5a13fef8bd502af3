"""The training loop of one worker, from its first minibatch to the last checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import ray.train
import ray.train.torch
import torch

from cytolake.models.cost import training_cost
from cytolake.models.devices import device_peak_tflops
from cytolake.models.objectives import Objective, build_objective
from cytolake.models.transformer import compile_blocks
from cytolake.packs.pack import Pack
from cytolake.train.checkpoint import (
    CheckpointWriter,
    Position,
    checkpoint_name,
    forget_broken_checkpoints,
    newest_checkpoint,
    read_checkpoint,
    step_of,
)
from cytolake.train.config import PretrainConfig
from cytolake.train.evaluation import Evaluate, evaluate_now, evaluated_step, submit_evaluation
from cytolake.train.feed import FeedSettings, Prefetcher, read_minibatches
from cytolake.train.optimiser import build_optimiser
from cytolake.train.parallel import encoder_on_cpu, is_distributed, shard
from cytolake.train.pictures import draw_pictures
from cytolake.train.run_folder import ENCODER_FILE, STOPPED_FILE, append_history, cut_history, write_json
from cytolake.train.seen import SeenWriter, cut_seen
from cytolake.train.step import TrainingStep
from cytolake.train.throughput import NotFinite, Window

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """Arguments of every worker."""

    config: PretrainConfig
    pack_path: str
    run_folder: str
    """Absolute, and shared by all machines of the run."""
    n_samples: int
    """Crops of the whole run, counted as often as they are seen."""
    until_step: int | None = None
    """Write a checkpoint after this step and pause there; None trains to the end."""
    is_local: bool
    """Without Ray: one process."""
    evaluate: Evaluate | None
    """Returns the numbers of a checkpoint during training; None means no evaluation."""


def train_worker(arguments: dict[str, LoopSettings]) -> None:
    """Train until the last sample, beginning at the newest checkpoint where there is one. Ray Train passes a dict."""
    settings = arguments["settings"]
    if (Path(settings.run_folder) / STOPPED_FILE).exists():
        return  # a restart would stop at the same step
    try:
        _Worker(settings).train()
    except torch.OutOfMemoryError as error:
        config = settings.config
        raise MemoryError(
            f"the GPU's memory is not enough for {config.minibatch_size} crops shared by "
            f"{ray.train.get_context().get_world_size()} workers ({error}). Lower pretrain.minibatch_size, set "
            "pretrain.recompute=true or pretrain.parallel=fsdp, or use more workers; `cytolake pretrain --dry-run` "
            "prints what a run needs."
        ) from error


class _Worker:
    def __init__(self, settings: LoopSettings) -> None:
        self.settings, self.config = settings, settings.config
        self.run_folder = Path(settings.run_folder)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        if self.config.threads or not settings.is_local:
            torch.set_num_threads(threads_of_worker(self.config.threads, context.get_local_world_size()))
        self.device = ray.train.torch.get_device()
        self.pack = Pack.open(settings.pack_path)
        self.objective = self._build()
        self.optimiser = build_optimiser(
            self.objective,
            name=self.config.optimiser,
            learning_rate=self.config.learning_rate,
            betas=self.config.betas,
            weight_decay=self.config.weight_decay,
        )
        self.position = self._resume()
        self.leaving: frozenset[str] = frozenset()
        """Machines that will be preempted and that a checkpoint was written for."""
        self.writer = CheckpointWriter(self.run_folder, self.rank, self.world_size, self.config.keep_checkpoints)
        self.seen = (
            SeenWriter(self.run_folder, self.position.step, self.rank, self.world_size)
            if self.config.record_ids
            else None
        )

    def _build(self) -> Objective:
        config = self.config
        fitted = config.objective.fitted_to(self.pack.n_crops, config.minibatch_size)
        objective = build_objective(config.model, fitted, config.seed).to(self.device)
        objective.encoder.recomputes = config.recompute
        if config.parallel == "fsdp" and is_distributed():
            shard(objective)
        if config.compile:
            channel_counts = np.unique(self.pack.index.column("group").to_numpy())
            is_one_shape = self.device.type == "cuda" and len(channel_counts) == 1 and not config.augment.channel_drop
            compile_blocks(objective, one_shape=is_one_shape)
        return objective

    def _resume(self) -> Position:
        """Load the newest checkpoint, and delete the records of later steps. The first worker decides which one it
        is."""
        chosen: str | None = None
        if self.rank == 0:
            forget_broken_checkpoints(self.run_folder)
            newest = newest_checkpoint(self.run_folder)
            chosen = newest.name if newest else None
            step = step_of(newest) if newest else 0
            cut_history(self.run_folder, step)
            cut_seen(self.run_folder, step)
        chosen = self._as_first_worker(chosen)
        if chosen is None:
            return Position(step=0, samples=0, pack_id=self.pack.pack_id)
        return read_checkpoint(self.run_folder / chosen, self.objective, self.optimiser, self.pack.pack_id)

    def train(self) -> None:
        config, settings = self.config, self.settings
        feed = FeedSettings(
            model=config.model,
            objective=config.objective,
            augment=config.augment,
            seed=config.seed,
            minibatch_size=config.minibatch_size,
            minibatch_tokens=config.minibatch_tokens,
            pairs_wells=config.second_view == "well",
            rank=self.rank,
            world_size=self.world_size,
            first_sample=self.position.samples,
            end_sample=settings.n_samples,
            pin_memory=self.device.type == "cuda",
        )
        window = Window(self.device, _flops_of(config), _peak_tflops(config, self.device))
        take_step = TrainingStep(self.objective, self.optimiser, config, settings.n_samples, self.device, self.rank)
        picture_every = _epochs_between_pictures(settings.n_samples / self.pack.n_crops)
        self.objective.train()
        if self.position.step:
            self._evaluate_if_due()
        with Prefetcher(read_minibatches(self.pack, feed), config.prefetch) as prefetcher:
            for step, minibatch in enumerate(prefetcher, start=self.position.step + 1):
                whole = minibatch.whole
                done = take_step(minibatch)
                window.add(minibatch, done.losses, done.gradient_norm)
                if self.seen is not None:
                    self.seen.add(step, minibatch.rows)

                is_last = whole.end == settings.n_samples
                is_pause = step == settings.until_step
                is_checkpoint = is_last or is_pause or step % config.checkpoint_every == 0
                is_report = is_checkpoint or step % config.log_every == 0
                if is_report and not is_checkpoint:
                    is_checkpoint = self._is_preempted()
                epoch = whole.end // self.pack.n_crops
                is_picture = is_last or (whole.first // self.pack.n_crops < epoch and epoch % picture_every == 0)
                if is_report:
                    row, wrong = window.close(prefetcher.waited_s)
                    row = {
                        "step": step,
                        "samples": whole.end,
                        "epoch": whole.end / self.pack.n_crops,
                        **row,
                        "learning_rate": done.learning_rate,
                    }
                    if wrong is not None:
                        self._stop(step - wrong.steps_before_report, wrong, done.learning_rate)
                        return
                    if self.rank == 0:
                        append_history(self.run_folder, row)
                    if is_checkpoint:
                        self._checkpoint(Position(step=step, samples=whole.end, pack_id=self.pack.pack_id), row)
                    window.skip(prefetcher.waited_s)  # writing is neither computing nor waiting for data
                if is_picture:
                    with window.not_counted():
                        draw_pictures(self.objective, self.pack, config, self.run_folder, step, epoch, self.rank == 0)
                if is_pause:
                    break
        self.writer.wait()
        self._evaluate_if_due()

    def _checkpoint(self, position: Position, row: dict[str, float]) -> None:
        """Begin to write a checkpoint; the previous one is complete by then, and may be evaluated."""
        self.writer.wait()
        self._evaluate_if_due()
        self.position = position
        if self.seen is not None:
            self.seen.flush()
        encoder = encoder_on_cpu(self.objective.final_encoder, self.rank == 0)
        self.writer.begin(self.objective, self.optimiser, encoder, position, dataclasses.asdict(self.config))
        ray.train.report(row)

    def _is_preempted(self) -> bool:
        """Whether a preemption of a machine of the run, such as a spot machine, was announced since the last call. Ray
        Train restarts without the machine when it is gone; a checkpoint now saves the steps since the last one. All
        workers must call it, and get the same answer.
        """
        announced = ray.train.get_preemption_info()
        leaving = frozenset(announced.preempted_node_ids) if announced is not None else frozenset()
        is_new = not leaving <= self.leaving
        self.leaving |= leaving
        return is_new

    def _evaluate_if_due(self) -> None:
        """Evaluate the checkpoint at `position`, which is whole."""
        step, every, evaluate = self.position.step, self.config.evaluate_every, self.settings.evaluate
        if evaluate is None or not every or step == 0 or (step % every and not self._is_at_end):
            return
        if self._as_first_worker(evaluated_step(self.run_folder, step) is not None):
            return  # its task may end at any moment, so workers that check for themselves could disagree
        folder = self.run_folder / checkpoint_name(step)
        if self.settings.is_local:
            evaluate_now(self.run_folder, folder / ENCODER_FILE, step, evaluate)
        else:
            submit_evaluation(self.run_folder, folder, step, self.rank == 0)

    def _as_first_worker(self, value: T) -> T:
        """The first worker's value, on all workers; all must call it."""
        shared = [value]
        if is_distributed():
            torch.distributed.broadcast_object_list(shared, src=0, device=self.device)
        return shared[0]

    @property
    def _is_at_end(self) -> bool:
        return self.position.samples == self.settings.n_samples

    def _stop(self, step: int, wrong: NotFinite, learning_rate: float) -> None:
        """Record why no restart would help, and the crops of the step. All workers end the run after it."""
        if self.rank != 0:
            return
        ids = [self.pack.index.column("crop_id")[int(row)].as_py() for row in wrong.rows]
        reason = (
            f"step {step}: the loss is {wrong.loss:.4g}, the norm of the gradient {wrong.gradient_norm:.4g}, at "
            f"learning rate {learning_rate:.2g}; expected finite numbers. The {len(ids)} crops of that step are in "
            f"{STOPPED_FILE}: look at them, lower pretrain.learning_rate, or set pretrain.precision=fp32."
        )
        write_json(self.run_folder / STOPPED_FILE, {"reason": reason, "step": step, "crop_ids": ids})


def threads_of_worker(wanted: int, workers_on_this_machine: int) -> int:
    """CPU threads of one worker: `wanted`, or an equal share of the machine's CPUs where it is 0."""
    return wanted or max(1, (os.cpu_count() or 1) // max(1, workers_on_this_machine))


def _flops_of(config: PretrainConfig) -> Callable[[int], float]:
    @functools.cache
    def flops(n_channels: int) -> float:
        return training_cost(config.model, config.objective, n_channels).training_flops

    return flops


def _peak_tflops(config: PretrainConfig, device: torch.device) -> float | None:
    if config.device_peak_tflops is not None or device.type != "cuda":
        return config.device_peak_tflops
    return device_peak_tflops(torch.cuda.get_device_name(device))


def _epochs_between_pictures(n_epochs: float) -> int:
    """Pictures are written after every epoch, in long runs after some epochs, at most 50 in all."""
    return max(1, int(np.ceil(n_epochs / 50)))
