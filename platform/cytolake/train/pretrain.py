"""Self-supervised pretraining of one encoder on one pack."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cytolake.catalog.ray_memory import out_of_memory
from cytolake.models import build_encoder, load_encoder, model_id, save_encoder
from cytolake.packs.pack import Pack
from cytolake.storage.atomic_write import atomic_file
from cytolake.tracking import Run, TrackingConfig
from cytolake.train.checkpoint import newest_checkpoint, step_of
from cytolake.train.config import PretrainConfig, run_key, with_vocabulary
from cytolake.train.evaluation import Evaluate, EvaluationTask, evaluate_now, evaluated_step, read_evaluations
from cytolake.train.loop import LoopSettings, train_worker
from cytolake.train.mlflow_log import Progress, follow_run, pretraining_run, run_settings
from cytolake.train.run_folder import (
    ENCODER_FILE,
    HISTORY_FILE,
    RESULT_FILE,
    STOPPED_FILE,
    UNTRAINED_FILE,
    read_live_history,
    write_json,
)


class PretrainError(RuntimeError):
    """A run stopped; the text says where it can continue."""


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
    """Optimiser steps."""
    crops_per_s: float
    """Median over the run, all workers together."""
    data_wait_share: float
    """Median share of the time in which the model waited for crops."""
    seconds: float
    """Time of the call that finished the run."""
    evaluations: dict[int, dict[str, float]]
    """Numbers of each step whose encoder was evaluated; 0 is the untrained one."""
    is_reused: bool = False
    """True where the run had been finished before, and nothing was trained."""


def pretrain(
    pack_path: str | Path,
    config: PretrainConfig,
    runs_root: str | Path,
    tracking: TrackingConfig,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
    tags: Mapping[str, str] | None = None,
) -> PretrainResult:
    """Train an encoder, or read back the run that did so with the same pack and config.

    An interrupted run continues from its newest checkpoint, with any number of workers, and sees exactly the crops,
    masks and augmentations that it would have seen.

    Args:
        pack_path: Folder of the pack, reachable by all workers.
        runs_root: Where run folders are kept, shared by all workers; `<catalog root>/runs`.
        tracking: Where MLflow records the run; an empty URI means `mlflow.db` next to `runs_root`.
        progress: Called with ("pretrain", crops done, all crops) when the history grows, at most once a second; a crop
            counts as often as it is seen.
        evaluate: Returns numbers for an encoder's file; called before the first step, every `evaluate_every` steps and
            at the end. None means never.
        tags: More tags of the MLflow run.

    Raises:
        ValueError: The pack has too few crops, crops of another size, or channels that the model does not take.
        PretrainError: Training stopped after `max_failures` restarts, or because of numbers that are not finite.
    """
    started = time.monotonic()
    plan = _plan(pack_path, config, runs_root)
    folder = plan.folder
    finished = _read_result(folder)
    if finished is not None:
        if progress is not None:
            progress("pretrain", plan.n_samples, plan.n_samples)
        return finished
    with _training(plan, tracking, tags) as run:
        _train(plan, run, progress, evaluate)
        last = newest_checkpoint(folder)
        history = read_live_history(folder)
        if last is None or not history:
            raise PretrainError(
                f"{folder}: the workers ended without a checkpoint here. Expected one after {plan.n_samples} crops: "
                "the runs folder must be shared by all machines of the cluster."
            )
        with atomic_file(folder / ENCODER_FILE) as part:
            shutil.copyfile(last / ENCODER_FILE, part)
        write_json(folder / HISTORY_FILE, history)
        result = {
            "run_key": folder.name,
            "pack_id": plan.pack.pack_id,
            "model_id": model_id(load_encoder(folder / ENCODER_FILE, expect=plan.config.model)),
            "untrained_model_id": model_id(load_encoder(folder / UNTRAINED_FILE)),
            "run_id": run.run_id,
            "final_loss": history[-1]["loss"],
            "steps": int(history[-1]["step"]),
            "crops_per_s": _median(history, "crops_per_s"),
            "data_wait_share": _median(history, "data_wait_share"),
            "seconds": time.monotonic() - started,
            "evaluations": {str(step): numbers for step, numbers in read_evaluations(folder).items()},
            "config": dataclasses.asdict(plan.config),
        }
        run.set_tags({"model_id": str(result["model_id"])})
    write_json(folder / RESULT_FILE, result)
    made = _read_result(folder)
    assert made is not None
    return dataclasses.replace(made, is_reused=False)


def pretrain_until(
    pack_path: str | Path,
    config: PretrainConfig,
    runs_root: str | Path,
    tracking: TrackingConfig,
    step: int,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Train up to a step and pause there, so that a caller can decide whether to continue.

    The schedule is that of the whole run: a paused run continues, here or in `pretrain`, as if it had never stopped.

    Args:
        step: Optimiser step to pause after, 1 or more; one that the run has passed trains nothing.

    Returns:
        The encoder's file after that step, or after the later one that the run has reached.

    Raises:
        ValueError, PretrainError: As `pretrain`.
    """
    plan = _plan(pack_path, config, runs_root)
    finished = _read_result(plan.folder)
    if finished is not None:
        return finished.checkpoint
    last = newest_checkpoint(plan.folder)
    if last is None or step_of(last) < step:
        with _training(plan, tracking, tags) as run:
            _train(plan, run, until_step=step)
        last = newest_checkpoint(plan.folder)
    if last is None:
        raise PretrainError(f"{plan.folder}: the workers ended without a checkpoint here, expected one of step {step}.")
    return last / ENCODER_FILE


def finished_run(pack_id: str, config: PretrainConfig, runs_root: str | Path) -> PretrainResult | None:
    """The finished run of this pack and config, or None: what `pretrain` would read back instead of training."""
    return _read_result(Path(runs_root).expanduser().resolve() / run_key(pack_id, with_vocabulary(config)))


@dataclass(frozen=True, slots=True)
class _Plan:
    """A run whose pack was checked."""

    pack: Pack
    config: PretrainConfig
    n_samples: int
    folder: Path


def _plan(pack_path: str | Path, config: PretrainConfig, runs_root: str | Path) -> _Plan:
    pack = Pack.open(Path(pack_path).resolve())
    config = with_vocabulary(config)
    folder = Path(runs_root).expanduser().resolve() / run_key(pack.pack_id, config)
    return _Plan(pack, config, _check_pack(pack, config), folder)


@contextmanager
def _training(plan: _Plan, tracking: TrackingConfig, tags: Mapping[str, str] | None) -> Iterator[Run]:
    """The run's folder with its untrained encoder, and its MLflow run."""
    pack, config, folder = plan.pack, plan.config, plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOPPED_FILE).unlink(missing_ok=True)
    save_encoder(build_encoder(config.model, config.seed).eval(), folder / UNTRAINED_FILE)
    all_tags = {**(tags or {}), "stage": "pretrain", "run_key": folder.name, "pack_id": pack.pack_id}
    params = run_settings(pack, config, plan.n_samples)
    with pretraining_run(tracking.at(folder.parent.parent), folder, params, all_tags) as run:
        yield run


def _train(
    plan: _Plan,
    run: Run,
    progress: Progress | None = None,
    evaluate: Evaluate | None = None,
    until_step: int | None = None,
) -> None:
    folder = plan.folder
    settings = LoopSettings(
        config=plan.config,
        pack_path=str(plan.pack.path),
        run_folder=str(folder),
        n_samples=plan.n_samples,
        until_step=until_step,
        is_local=plan.config.workers == 0,
        evaluate=evaluate if plan.config.evaluate_every else None,
    )
    with follow_run(folder, run, plan.n_samples, progress), _evaluating_untrained(settings):
        _fit(settings)


@contextmanager
def _evaluating_untrained(settings: LoopSettings) -> Iterator[None]:
    """Evaluate the encoder of step 0: while the processes of workers start, which takes longer; or before, where the
    training is in this process and shares its random state."""
    folder = Path(settings.run_folder)
    if settings.evaluate is None or evaluated_step(folder, 0) is not None:
        yield
        return
    arguments = (folder, folder / UNTRAINED_FILE, 0, settings.evaluate)
    if settings.is_local:
        evaluate_now(*arguments)
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        evaluation = pool.submit(evaluate_now, *arguments)
        yield
    evaluation.result()


def _check_pack(pack: Pack, config: PretrainConfig) -> int:
    """Check that every crop of the pack can be trained on; returns the samples of the whole run."""
    if pack.crop_size != config.model.crop_size:
        raise ValueError(
            f"pack {pack.pack_id} has crops of {pack.crop_size} px, the model takes {config.model.crop_size} px. "
            f"Set pretrain.model.crop_size={pack.crop_size}, or ingest with crops of the model's size."
        )
    if pack.n_crops < config.minibatch_size:
        raise ValueError(
            f"pack {pack.pack_id} has {pack.n_crops} crops, fewer than one minibatch of {config.minibatch_size}. "
            f"Set pretrain.minibatch_size to {pack.n_crops} or less, or curate more crops."
        )
    for names in {tuple(names) for names in pack.index["channels"].to_pylist()}:
        try:
            config.model.channel_indices(names)
        except ValueError as error:
            raise ValueError(f"pack {pack.pack_id}: {error}") from None
    return config.n_samples(pack.n_crops)


def _fit(settings: LoopSettings) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.validation_config import ValidationConfig

    config, folder = settings.config, Path(settings.run_folder)
    use_gpu = _use_gpu(config)
    validation = None
    if settings.evaluate is not None and not settings.is_local:
        # No CPU of its own: on a machine whose CPUs all belong to workers it would never begin.
        validation = ValidationConfig(EvaluationTask(folder, settings.evaluate), ray_remote_kwargs={"num_cpus": 0})
    workers = config.workers if config.min_workers is None else (config.min_workers, config.workers)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,  # type: ignore[arg-type]  # Ray Train v2's, typed as v1's
            use_gpu=use_gpu,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            failure_config=FailureConfig(max_failures=config.max_failures),
        ),
        validation_config=validation,  # type: ignore[call-arg]  # Ray Train v2's, typed as v1's
    )
    threads = torch.get_num_threads()
    try:
        trainer.fit()
    except Exception as error:
        last = newest_checkpoint(folder)
        where = f"its newest checkpoint, {last.name}" if last else "its beginning"
        if memory := out_of_memory(error):
            raise PretrainError(
                f"{memory} Close other programs, or train with fewer workers (pretrain.workers is {config.workers}). "
                f"Then run the same command again: pretraining {folder.name} continues from {where}. A smaller "
                f"pretrain.minibatch_size (now {config.minibatch_size}) needs less memory too, but is another run, "
                "which starts anew."
            ) from error
        raise PretrainError(
            f"pretraining {folder.name} stopped after {config.max_failures} restarts: {_cause(error)} "
            f"Remove the cause and run the same command again: it continues from {where}."
        ) from error
    finally:
        torch.set_num_threads(threads)  # without Ray, the worker was this process
    stopped = folder / STOPPED_FILE
    if stopped.exists():
        reason = json.loads(stopped.read_text(encoding="utf-8"))["reason"]
        raise PretrainError(f"pretraining {folder.name} stopped: {reason}")


def _use_gpu(config: PretrainConfig) -> bool:
    if config.use_gpu is not None:
        return config.use_gpu
    if config.workers == 0:
        return False
    import ray

    if not ray.is_initialized():
        return False
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    fewest = config.workers if config.min_workers is None else config.min_workers
    return resources.get("GPU", 0) >= fewest


def _cause(error: BaseException) -> str:
    """The last line of a worker's error; the whole remote traceback follows as the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") + "." if lines else f"{type(error).__name__}."


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
    values["evaluations"] = {int(step): numbers for step, numbers in values["evaluations"].items()}
    return PretrainResult(
        **values,
        run_folder=folder,
        checkpoint=folder / ENCODER_FILE,
        untrained_checkpoint=folder / UNTRAINED_FILE,
        is_reused=True,
    )
