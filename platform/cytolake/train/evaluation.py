"""Evaluate an encoder during training, in a task that the workers do not wait for.

`evaluations/step_*.json` in the run's folder holds the numbers of each evaluated checkpoint; step 0 is the untrained
encoder. The caller chooses the evaluation: any function that returns numbers for an encoder's file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import ray.train
from ray.train.v2.api.report_config import CheckpointUploadMode

from cytolake.train.run_folder import ENCODER_FILE, EVALUATIONS_FOLDER, write_json

Evaluate: TypeAlias = Callable[[Path], dict[str, float]]
"""Numbers by name for an encoder's safetensors file. Sent to another process, so it must be picklable."""


def evaluate_now(run_folder: Path, encoder: Path, step: int, evaluate: Evaluate) -> dict[str, float]:
    """Evaluate an encoder in this process and store its numbers."""
    numbers = evaluate(encoder)
    (run_folder / EVALUATIONS_FOLDER).mkdir(exist_ok=True)
    write_json(_result(run_folder, step), numbers)
    return numbers


def submit_evaluation(run_folder: Path, checkpoint: Path, step: int, is_first_worker: bool) -> None:
    """Submit a complete checkpoint to Ray Train for evaluation. All workers must call it."""
    if not is_first_worker:
        ray.train.report({})
        return
    # A copy, since the checkpoint may be deleted for newer ones before the task begins.
    copy = run_folder / EVALUATIONS_FOLDER / checkpoint.name
    copy.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint / ENCODER_FILE, copy / ENCODER_FILE)
    ray.train.report(
        {"step": step},
        checkpoint=ray.train.Checkpoint.from_directory(str(copy)),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        validation=True,
    )


class EvaluationTask:
    """The function that Ray Train runs for each submitted checkpoint."""

    def __init__(self, run_folder: Path, evaluate: Evaluate) -> None:
        self._run_folder, self._evaluate = run_folder, evaluate

    def __call__(self, checkpoint: ray.train.Checkpoint, **_: Any) -> dict[str, float]:
        folder = self._run_folder / EVALUATIONS_FOLDER / Path(checkpoint.path).name
        step = int(folder.name.rsplit("_", 1)[1])
        if (known := evaluated_step(self._run_folder, step)) is not None:
            return known
        numbers = evaluate_now(self._run_folder, folder / ENCODER_FILE, step, self._evaluate)
        shutil.rmtree(folder, ignore_errors=True)
        return numbers


def evaluated_step(run_folder: Path, step: int) -> dict[str, float] | None:
    """Numbers of one step's encoder, None where it was not evaluated."""
    path = _result(run_folder, step)
    if not path.is_file():
        return None
    numbers: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return numbers


def read_evaluations(run_folder: Path) -> dict[int, dict[str, float]]:
    """Numbers of every evaluated step, in their order; 0 is the untrained encoder."""
    paths = sorted((run_folder / EVALUATIONS_FOLDER).glob("step_*.json"))
    return {int(path.stem.rsplit("_", 1)[1]): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def _result(run_folder: Path, step: int) -> Path:
    return run_folder / EVALUATIONS_FOLDER / f"step_{step:08d}.json"
