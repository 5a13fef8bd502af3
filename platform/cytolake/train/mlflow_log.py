"""Log a pretraining run to MLflow: its config, and losses, speed, pictures and evaluations while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cytolake.packs.pack import Pack
from cytolake.tracking import Run, TrackingConfig, flatten_config, metric_history, run_params, start_run
from cytolake.train.config import OPERATION, PretrainConfig
from cytolake.train.evaluation import read_evaluations
from cytolake.train.run_folder import PICTURES_FOLDER, read_live_history

Progress = Callable[[str, int, int], None]

logger = logging.getLogger(__name__)

_RUN_ID_FILE = "mlflow_run_id"
_LOGGED_FILE = "mlflow_pictures"
_NOT_METRICS = ("step",)


@contextmanager
def pretraining_run(
    tracking: TrackingConfig, run_folder: Path, params: Mapping[str, object], tags: Mapping[str, str]
) -> Iterator[Run]:
    """The MLflow run of a run folder: a new one, or the one that an interrupted training began."""
    known = run_folder / _RUN_ID_FILE
    run_id = known.read_text(encoding="utf-8").strip() if known.is_file() else ""
    if run_id and not _exists(tracking, run_id):
        run_id = ""
    with start_run(tracking, f"pretrain-{run_folder.name}", params=params, tags=tags, run_id=run_id) as run:
        known.write_text(run.run_id + "\n", encoding="utf-8")
        yield run


def run_settings(pack: Pack, config: PretrainConfig, n_samples: int) -> dict[str, Any]:
    """Parameters of the MLflow run, without those of `OPERATION`: MLflow refuses to change a parameter of a run, and a
    run may continue with other ones."""
    return {
        "pack_id": pack.pack_id,
        "curation_id": pack.curation_id,
        **{f"delta_version.{table}": version for table, version in sorted(pack.table_versions.items())},
        "n_samples": n_samples,
        **{name: value for name, value in flatten_config(config).items() if name not in OPERATION},
        **_queue_size(pack, config),
    }


@contextmanager
def follow_run(folder: Path, run: Run, n_samples: int, progress: Progress | None) -> Iterator[None]:
    """Log what the workers write to the run's folder to MLflow every second, and report progress."""
    ended = threading.Event()
    reported = 0
    log = RunLog(run, folder)
    if progress is not None:
        progress("pretrain", 0, n_samples)

    def log_news() -> None:
        nonlocal reported
        rows = read_live_history(folder)
        if rows and progress is not None and rows[-1]["samples"] != reported:
            reported = int(rows[-1]["samples"])
            progress("pretrain", reported, n_samples)
        log.log(rows)

    def keep_logging() -> None:
        while not ended.wait(1.0):
            try:
                log_news()
            except Exception:  # an MLflow server that is away for a while must not end the run; the last call raises
                continue

    thread = threading.Thread(target=keep_logging, name="pretrain-log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        log_news()


class RunLog:
    """Logs what is new. A run that continues after an interruption logs nothing twice."""

    def __init__(self, run: Run, run_folder: Path) -> None:
        self._run, self._folder = run, run_folder
        self._last_step = _last_step(run, "loss", 0)
        self._last_evaluation: int | None = None

    def log(self, rows: list[dict[str, float]]) -> None:
        """Log the rows of the history that are new, and new evaluations and pictures of the run's folder."""
        for row in rows:
            if row["step"] > self._last_step:
                step = int(row["step"])
                self._run.log_metrics({name: row[name] for name in row if name not in _NOT_METRICS}, step=step)
                self._last_step = step
        for step, numbers in read_evaluations(self._folder).items():
            if numbers and step > self._last_evaluated(next(iter(numbers))):
                self._run.log_metrics({f"evaluation/{name}": value for name, value in numbers.items()}, step=step)
                self._last_evaluation = step
        self._log_pictures()

    def _last_evaluated(self, name: str) -> int:
        if self._last_evaluation is None:
            self._last_evaluation = _last_step(self._run, f"evaluation/{name}", -1)
        return self._last_evaluation

    def _log_pictures(self) -> None:
        log_file = self._folder / _LOGGED_FILE
        logged = set(log_file.read_text(encoding="utf-8").split()) if log_file.is_file() else set()
        for picture in sorted((self._folder / PICTURES_FOLDER).glob("*.png")):
            if picture.name not in logged:
                self._run.log_artifact(picture, "reconstructions")
                with log_file.open("a", encoding="utf-8") as file:
                    file.write(picture.name + "\n")


def _queue_size(pack: Pack, config: PretrainConfig) -> dict[str, int]:
    """Keys in the queue of `moco_v2_plus`, at most as many as the pack allows; warns where the config has more."""
    if config.objective.name != "moco_v2_plus":
        return {}
    wanted = config.objective.moco_v2_plus.queue_size
    used = config.objective.fitted_to(pack.n_crops, config.minibatch_size).moco_v2_plus.queue_size
    if used < wanted:
        logger.warning(
            "pack %s has %d crops: the queue of moco_v2_plus holds %d keys instead of "
            "pretrain.objective.moco_v2_plus.queue_size=%d, which would be older keys of the same crops.",
            pack.pack_id,
            pack.n_crops,
            used,
            wanted,
        )
    return {"queue_size": used}


def _last_step(run: Run, metric: str, otherwise: int) -> int:
    logged = metric_history(run.tracking, run.run_id, metric)
    return logged[-1][0] if logged else otherwise


def _exists(tracking: TrackingConfig, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        run_params(tracking, run_id)
    except MlflowException:
        return False
    return True
