"""MLflow runs: open one, log to it, find it again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from cytolake.tracking.store import TrackingConfig, experiment_id, mlflow_client


@dataclass(frozen=True, slots=True)
class Run:
    """One open MLflow run."""

    tracking: TrackingConfig
    run_id: str

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings. A key must have the same value in a resumed run."""
        from mlflow.entities import Param

        rows = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(rows), 100):  # 100: MLflow's limit for one request
            mlflow_client(self.tracking).log_batch(self.run_id, params=rows[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at one step, in one request."""
        import time

        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        rows = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        mlflow_client(self.tracking).log_batch(self.run_id, metrics=rows)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the run."""
        from mlflow.entities import RunTag

        mlflow_client(self.tracking).log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Copy a file into the run's artefacts."""
        mlflow_client(self.tracking).log_artifact(self.run_id, str(path), folder or None)


@contextmanager
def start_run(
    tracking: TrackingConfig,
    name: str,
    *,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str = "",
) -> Iterator[Run]:
    """Open a run, or resume `run_id`; it ends as FINISHED, or as FAILED when the block raises."""
    client = mlflow_client(tracking)
    if run_id:
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(experiment_id(tracking), run_name=name, tags=dict(tags or {})).info.run_id
    run = Run(tracking, run_id)
    if params:
        run.log_params(params)
    try:
        yield run
    except BaseException:
        client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id, status="FINISHED")


def metric_history(tracking: TrackingConfig, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric in the order of steps; empty when the run never logged it."""
    points = mlflow_client(tracking).get_metric_history(run_id, metric)
    return sorted((int(point.step), float(point.value)) for point in points)


def run_params(tracking: TrackingConfig, run_id: str) -> dict[str, str]:
    """Settings recorded for a run."""
    return dict(mlflow_client(tracking).get_run(run_id).data.params)


def newest_tag(tracking: TrackingConfig, name: str) -> str:
    """Value of a tag in the newest run that has it; empty where none has."""
    client = mlflow_client(tracking)
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        return ""
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`{name}` != ''", order_by=["attributes.start_time DESC"], max_results=1
    )
    return str(found[0].data.tags[name]) if found else ""


def flatten_config(config: Any, prefix: str = "") -> dict[str, str]:
    """A config dataclass as dotted names and texts, as `--set` writes them: `{"model.width": "192"}`."""
    flat: dict[str, str] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        if is_dataclass(value):
            flat |= flatten_config(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat
