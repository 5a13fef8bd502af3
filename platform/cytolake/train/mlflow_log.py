"""What a pretraining run tells MLflow: its config, and loss, learning rate and throughput while it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cytolake.tracking import Run, TrackingConfig, metric_history, run_params, start_run

METRICS = ("loss", "mse", "fourier", "learning_rate", "crops_per_s", "data_wait_share", "epoch")
_RUN_ID_FILE = "mlflow_run_id"


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


def log_new_rows(run: Run, rows: list[dict[str, float]], last_step: int) -> int:
    """Log the rows after `last_step`; returns the step of the newest row logged so far."""
    for row in rows:
        if row["step"] > last_step:
            last_step = int(row["step"])
            run.log_metrics({name: row[name] for name in METRICS if name in row}, step=last_step)
    return last_step


def last_logged_step(run: Run) -> int:
    """The newest step that MLflow has of this run, 0 for a new one: an interrupted run does not tell anything twice."""
    logged = metric_history(run.tracking, run.run_id, "loss")
    return logged[-1][0] if logged else 0


def _exists(tracking: TrackingConfig, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        run_params(tracking, run_id)
    except MlflowException:
        return False
    return True
