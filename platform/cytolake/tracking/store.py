"""The MLflow store: where it is, and the client that every call goes through.

One explicit client, never MLflow's global tracking URI or active run: workers, tests and a Serve replica in one process
may use different stores.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_SQLITE = "sqlite:///"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """MLflow store of runs and models."""

    uri: str = ""
    """MLflow tracking and registry URI. Empty means a SQLite file in the catalog root: call `at(root)` first."""
    experiment: str = "cytolake"
    """MLflow experiment of every run."""
    model_name: str = "cytolake-encoder"
    """Registered model whose aliases the service follows."""

    def __post_init__(self) -> None:
        for name in ("experiment", "model_name"):
            if not getattr(self, name).strip():
                raise ValueError(f"tracking.{name} is empty. Give it a name, such as 'cytolake'.")
        if self.uri and "://" not in self.uri:
            raise ValueError(
                f"tracking.uri is {self.uri!r}, expected a URI such as 'sqlite:////data/mlflow.db' or "
                "'http://mlflow:5000'. Leave it empty for a SQLite file in the catalog root."
            )

    def at(self, root: str | Path) -> TrackingConfig:
        """The same config with an empty `uri` filled in: `<root>/mlflow.db`."""
        if self.uri:
            return self
        return replace(self, uri=sqlite_uri(Path(root).expanduser() / "mlflow.db"))


def mlflow_client(tracking: TrackingConfig) -> Any:
    """The `MlflowClient` of a store."""
    _require_uri(tracking)
    # Set before the import, because MLflow reads it once. File names of a screen must not leave the machine.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    database = sqlite_file(tracking)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def experiment_id(tracking: TrackingConfig) -> str:
    """Id of the config's experiment, created where it does not exist."""
    from mlflow.exceptions import MlflowException

    client = mlflow_client(tracking)
    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None:
        return str(found.experiment_id)
    database = sqlite_file(tracking)
    # Without a server MLflow would put artefacts into the working directory; they belong next to the database.
    location = (database.parent.resolve() / "mlflow_artifacts").as_uri() if database is not None else None
    try:
        return str(client.create_experiment(tracking.experiment, artifact_location=location))
    except MlflowException as error:  # another process created it in the meantime
        found = client.get_experiment_by_name(tracking.experiment)
        if found is None:
            raise error
        return str(found.experiment_id)


def sqlite_uri(database: Path) -> str:
    """URI of a SQLite file, the same from every working directory."""
    return f"{_SQLITE}{database.resolve()}"


def sqlite_file(tracking: TrackingConfig) -> Path | None:
    """The SQLite file of a store; None where a server keeps it."""
    _require_uri(tracking)
    return Path(tracking.uri.removeprefix(_SQLITE)) if tracking.uri.startswith(_SQLITE) else None


def quoted(text: str) -> str:
    """A text in quotes for MLflow's search language, which has no escapes."""
    if "'" in text and '"' in text:
        raise ValueError(f"cannot search MLflow for {text!r}: it holds both kinds of quotes. Use another name.")
    return f'"{text}"' if "'" in text else f"'{text}'"


def _require_uri(tracking: TrackingConfig) -> None:
    if not tracking.uri:
        raise ValueError("tracking.uri is empty. Use `tracking.at(catalog_root)`, or give a URI.")
