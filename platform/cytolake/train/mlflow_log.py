"""What a pretraining run tells MLflow: its config, and losses, speed, pictures and evaluations while it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cytolake.tracking import Run, TrackingConfig, metric_history, run_params, start_run
from cytolake.train.evaluation import read_evaluations
from cytolake.train.run_folder import PICTURES_FOLDER

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


class RunLog:
    """Tells MLflow what is new. An interrupted run that goes on tells nothing twice."""

    def __init__(self, run: Run, run_folder: Path) -> None:
        self._run, self._folder = run, run_folder
        self._last_step = _last_step(run, "loss", 0)
        self._last_evaluation: int | None = None

    def tell(self, rows: list[dict[str, float]]) -> None:
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
        self._tell_pictures()

    def _last_evaluated(self, name: str) -> int:
        if self._last_evaluation is None:
            self._last_evaluation = _last_step(self._run, f"evaluation/{name}", -1)
        return self._last_evaluation

    def _tell_pictures(self) -> None:
        told_file = self._folder / _LOGGED_FILE
        told = set(told_file.read_text(encoding="utf-8").split()) if told_file.is_file() else set()
        for picture in sorted((self._folder / PICTURES_FOLDER).glob("*.png")):
            if picture.name not in told:
                self._run.log_artifact(picture, "reconstructions")
                with told_file.open("a", encoding="utf-8") as file:
                    file.write(picture.name + "\n")


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
