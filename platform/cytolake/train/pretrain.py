"""Self-supervised pretraining of one encoder on one pack."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from cytolake.catalog.declared import channel_vocabulary
from cytolake.models import ModelConfig, build_model, load_encoder, model_id, save_encoder
from cytolake.packs.pack import Pack
from cytolake.tracking import Run, TrackingConfig, flatten_config
from cytolake.train.feed import steps_per_epoch
from cytolake.train.loop import LoopSettings, train_worker
from cytolake.train.mlflow_log import last_logged_step, log_new_rows, pretraining_run
from cytolake.train.run_folder import (
    ENCODER_FILE,
    HISTORY_FILE,
    RESULT_FILE,
    UNTRAINED_FILE,
    newest_checkpoint,
    read_live_history,
    write_json,
)

Precision = Literal["auto", "bf16", "fp32"]
SecondView = Literal["crop", "well"]
Progress = Callable[[str, int, int], None]

# How a run is carried out, which changes none of the crops it sees: left out of its identity.
_OPERATION = (
    "workers", "use_gpu", "threads", "prefetch", "log_every", "checkpoint_every", "keep_checkpoints", "max_failures",
)  # fmt: skip


class PretrainError(RuntimeError):
    """A run that stopped; says where it can go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """One pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """A `chada_vit` without `channels` takes the names of catalog/channels.yaml."""
    epochs: int = 20
    """Passes over the pack."""
    steps: int | None = None
    """Optimiser steps; None means as many as `epochs` takes."""
    minibatch_size: int = 128
    """Crops of one optimiser step, all workers together; a multiple of `workers`."""
    learning_rate: float = 1e-3
    """Peak of the one-cycle schedule."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    """Largest norm of the gradient of all weights."""
    second_view: SecondView = "crop"
    """What the contrastive term compares a crop with, where `model.contrastive_weight` is above 0: the same crop,
    turned and masked otherwise, or a crop of the same well, so that what a well's cells have in common is learned."""
    flip_rotate: bool = True
    """Turn and mirror crops, otherwise in every epoch."""
    seed: int = 0
    """Decides the first weights, the order of the crops, their masks and turns."""
    precision: Precision = "auto"
    """`auto`: bf16 where the processor multiplies it natively, else fp32."""
    workers: int = 2
    """Ray Train workers; 0 trains in this process, without Ray."""
    use_gpu: bool | None = None
    """One GPU for each worker, with nccl; None means where Ray has that many."""
    threads: int = 0
    """CPU threads of one worker; 0 means its share of its machine's CPUs, or torch's own choice without Ray."""
    prefetch: int = 3
    """Minibatches read ahead."""
    log_every: int = 10
    """Steps between two rows of the history and of MLflow."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    max_failures: int = 3
    """Times that lost workers are replaced, each time going on from the newest checkpoint."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(
                f"pretrain.precision is {self.precision!r}: choose one of {', '.join(get_args(Precision))}."
            )
        if self.second_view not in get_args(SecondView):
            raise ValueError(
                f"pretrain.second_view is {self.second_view!r}: choose one of {', '.join(get_args(SecondView))}."
            )
        for name in ("minibatch_size", "prefetch", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"pretrain.{name} is {getattr(self, name)}: expected 1 or more.")
        for name in ("workers", "threads", "max_failures"):
            if getattr(self, name) < 0:
                raise ValueError(f"pretrain.{name} is {getattr(self, name)}: expected 0 or more.")
        if self.epochs < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"pretrain.epochs is {self.epochs}, pretrain.steps is {self.steps}: expected 1 or more.")
        if self.minibatch_size % max(1, self.workers):
            raise ValueError(
                f"a minibatch of {self.minibatch_size} crops cannot be shared equally by {self.workers} workers. "
                "Make pretrain.minibatch_size a multiple of pretrain.workers."
            )
        if self.learning_rate <= 0 or self.gradient_clip <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"pretrain.learning_rate {self.learning_rate} and gradient_clip {self.gradient_clip} must be more than "
                f"0, weight_decay {self.weight_decay} 0 or more."
            )
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"pretrain.warmup_share is {self.warmup_share}: expected 0 <= warmup_share < 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """A finished run."""

    run_key: str
    run_folder: Path
    """Holds the checkpoints below, `history.json`, `reconstructions.npz` and `result.json`."""
    pack_id: str
    model_id: str
    checkpoint: Path
    """The trained encoder, safetensors."""
    untrained_model_id: str
    untrained_checkpoint: Path
    """The same encoder before its first step."""
    run_id: str
    """MLflow run."""
    final_loss: float
    """Mean of the last `log_every` steps or fewer."""
    steps: int
    crops_per_s: float
    """Median over the run, all workers together."""
    data_wait_share: float
    """Median share of the time in which the model waited for crops."""
    seconds: float
    """Time of the call that finished the run."""
    is_reused: bool = False
    """True where the run had been finished before, and nothing was trained."""


def pretrain(
    pack_path: str | Path,
    config: PretrainConfig,
    runs_root: str | Path,
    tracking: TrackingConfig,
    progress: Progress | None = None,
) -> PretrainResult:
    """Train an encoder, or read back the run that did so with the same pack and config.

    An interrupted run goes on from its newest checkpoint, with any number of workers, and sees exactly the crops, masks
    and turns that it would have seen.

    Args:
        pack_path: Folder of the pack, reachable by all workers.
        config: The run.
        runs_root: Where run folders are kept, shared by all workers; `<catalog root>/runs`.
        tracking: Where MLflow records the run; an empty URI means `mlflow.db` beside `runs_root`.
        progress: Called with ("pretrain", steps done, all steps) when there is news, at most once a second.

    Raises:
        ValueError: The pack has too few crops, crops of another size, or channels that the model does not take.
        PretrainError: Training stopped after `max_failures` restarts.
    """
    started = time.monotonic()
    pack = Pack.open(Path(pack_path).resolve())
    config = _with_vocabulary(config)
    n_steps = _check_pack(pack, config)
    key = run_key(pack.pack_id, config)
    folder = Path(runs_root).expanduser().resolve() / key
    finished = _read_result(folder)
    if finished is not None:
        if progress is not None:
            progress("pretrain", n_steps, n_steps)
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    untrained_id = save_encoder(build_model(config.model, config.seed).encoder.eval(), folder / UNTRAINED_FILE)

    tags = {"stage": "pretrain", "run_key": key, "pack_id": pack.pack_id}
    params = {"pack_id": pack.pack_id, "n_steps": n_steps, **_identity_params(config)}
    with pretraining_run(tracking.at(folder.parent.parent), folder, params, tags) as run:
        settings = LoopSettings(
            config=config,
            pack_path=str(pack.path),
            run_folder=str(folder),
            n_steps=n_steps,
            is_local=config.workers == 0,
        )
        with _watch(folder, run, n_steps, progress):
            _fit(settings)
        last = newest_checkpoint(folder)
        history = read_live_history(folder)
        if last is None or not history:
            raise PretrainError(
                f"{folder}: the workers ended without a checkpoint here. Expected one from step {n_steps}: "
                "the runs folder must be shared by all machines of the cluster."
            )
        shutil.copyfile(last / ENCODER_FILE, folder / f"{ENCODER_FILE}.unfinished")
        (folder / f"{ENCODER_FILE}.unfinished").replace(folder / ENCODER_FILE)
        write_json(folder / HISTORY_FILE, history)
        result = {
            "run_key": key,
            "pack_id": pack.pack_id,
            "model_id": model_id(load_encoder(folder / ENCODER_FILE, expect=config.model)),
            "untrained_model_id": untrained_id,
            "run_id": run.run_id,
            "final_loss": history[-1]["loss"],
            "steps": n_steps,
            "crops_per_s": _median(history, "crops_per_s"),
            "data_wait_share": _median(history, "data_wait_share"),
            "seconds": time.monotonic() - started,
            "config": dataclasses.asdict(config),
        }
        run.set_tags({"model_id": str(result["model_id"])})
    write_json(folder / RESULT_FILE, result)
    made = _read_result(folder)
    assert made is not None
    return dataclasses.replace(made, is_reused=False)


def finished_run(pack_id: str, config: PretrainConfig, runs_root: str | Path) -> PretrainResult | None:
    """The finished run of this pack and config, or None: what `pretrain` would read back instead of training."""
    return _read_result(Path(runs_root).expanduser().resolve() / run_key(pack_id, _with_vocabulary(config)))


def run_key(pack_id: str, config: PretrainConfig) -> str:
    """32 hex digits over the pack and all of the config that changes what is learned: the name of the run's folder."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in _OPERATION}
    text = json.dumps({"pack_id": pack_id, "config": fields}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _with_vocabulary(config: PretrainConfig) -> PretrainConfig:
    if config.model.architecture == "mae_vit" or config.model.channels:
        return config
    names = tuple(channel_vocabulary().names)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, channels=names))


def _check_pack(pack: Pack, config: PretrainConfig) -> int:
    """Number of steps, once it is clear that every crop of the pack can be trained on."""
    if pack.crop_size != config.model.crop_size:
        raise ValueError(
            f"pack {pack.pack_id} has crops of {pack.crop_size} px, the model takes {config.model.crop_size} px. "
            f"Set pretrain.model.crop_size={pack.crop_size}, or ingest with crops of the model's size."
        )
    per_epoch = steps_per_epoch(pack.n_crops, config.minibatch_size)
    if per_epoch == 0:
        raise ValueError(
            f"pack {pack.pack_id} has {pack.n_crops} crops, fewer than one minibatch of {config.minibatch_size}. "
            f"Set pretrain.minibatch_size to {pack.n_crops} or less, or curate more crops."
        )
    for names in {tuple(names) for names in pack.index["channels"].to_pylist()}:
        try:
            config.model.channel_indices(names)
        except ValueError as error:
            raise ValueError(f"pack {pack.pack_id}: {error}") from None
    return config.steps or config.epochs * per_epoch


def _fit(settings: LoopSettings) -> None:
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    config, folder = settings.config, Path(settings.run_folder)
    use_gpu = _use_gpu(config)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
        ),
    )
    threads = torch.get_num_threads()
    try:
        trainer.fit()
    except Exception as error:
        last = newest_checkpoint(folder)
        where = f"its newest checkpoint, {last.name}" if last else "its beginning"
        raise PretrainError(
            f"pretraining {folder.name} stopped after {config.max_failures} restarts: {_cause(error)} "
            f"Mend the cause and run the same command again: it goes on from {where}."
        ) from error
    finally:
        torch.set_num_threads(threads)  # without Ray, the worker was this process


def _use_gpu(config: PretrainConfig) -> bool:
    if config.use_gpu is not None:
        return config.use_gpu
    if config.workers == 0:
        return False
    import ray

    if not ray.is_initialized():
        return False
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return resources.get("GPU", 0) >= config.workers


def _cause(error: BaseException) -> str:
    """The last line that a worker said; a whole remote traceback follows as the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") + "." if lines else f"{type(error).__name__}."


@contextmanager
def _watch(folder: Path, run: Run, n_steps: int, progress: Progress | None) -> Iterator[None]:
    """Follow the history that the first worker writes: tell MLflow and the person who waits."""
    ended = threading.Event()
    last_told, last_logged = 0, last_logged_step(run)
    if progress is not None:
        progress("pretrain", 0, n_steps)

    def look() -> None:
        nonlocal last_told, last_logged
        rows = read_live_history(folder)
        if rows and progress is not None and rows[-1]["step"] != last_told:
            last_told = int(rows[-1]["step"])
            progress("pretrain", last_told, n_steps)
        last_logged = log_new_rows(run, rows, last_logged)

    def keep_looking() -> None:
        while not ended.wait(1.0):
            try:
                look()
            except Exception:  # an MLflow server that is away for a while must not end the run; the last look tells
                continue

    thread = threading.Thread(target=keep_looking, name="pretrain-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def _identity_params(config: PretrainConfig) -> dict[str, Any]:
    """Settings for MLflow, which refuses another value of the same setting when a run goes on."""
    return {name: value for name, value in flatten_config(config).items() if name not in _OPERATION}


def _median(history: list[dict[str, float]], name: str) -> float:
    values = sorted(row[name] for row in history)
    return values[len(values) // 2]


def _read_result(folder: Path) -> PretrainResult | None:
    path = folder / RESULT_FILE
    files = (path, folder / ENCODER_FILE, folder / UNTRAINED_FILE)
    if not all(file.is_file() for file in files):
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("config")
    return PretrainResult(
        **values,
        run_folder=folder,
        checkpoint=folder / ENCODER_FILE,
        untrained_checkpoint=folder / UNTRAINED_FILE,
        is_reused=True,
    )
