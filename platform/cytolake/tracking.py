"""MLflow: runs, the registered encoder, and the alias that serving follows.

Everything goes through one explicit client, never through MLflow's global tracking URI or active run: workers, tests
and a Serve replica in one process may follow different stores. Nothing is pickled: a model version is a folder with
safetensors weights, a JSON card and an `MLmodel` file that names a loader of cytolake.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

CHAMPION = "champion"
ENCODER_FILE = "encoder.safetensors"
CARD_FILE = "card.json"
PYFUNC_LOADER = "cytolake.embed.pyfunc"
_SQLITE = "sqlite:///"


class AliasNotFoundError(LookupError):
    """No model version answers to the name and alias asked for; the text says what to run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    """Where runs and models are recorded."""

    uri: str = ""
    """MLflow tracking and registry URI. Empty means a SQLite file in the catalog root: call `at(root)` first."""
    experiment: str = "cytolake"
    """MLflow experiment of every run."""
    model_name: str = "cytolake-encoder"
    """Registered model whose aliases serving follows."""

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
        return replace(self, uri=f"{_SQLITE}{Path(root).expanduser().resolve() / 'mlflow.db'}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """What the promoted representation was compared with."""

    kind: str
    """`untrained`, `pixel_statistics` or `cell_count`."""
    representation_id: str
    block: int
    """Best block of that kind; -1 where there is none."""
    pooling: str
    score: float
    ci_low: float | None
    """95 % interval; None where too few plates were held out for one."""
    ci_high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """Everything a caller must know to compute and to judge one served vector."""

    representation_id: str
    model_id: str
    architecture: str
    channels: tuple[str, ...]
    """Stains the encoder reads, in order (`mae_vit`), or the stains it has names for (`chada_vit`)."""
    crop_size: int
    """Edge of a crop, pixels."""
    block: int
    """Transformer block whose output is served, 0 = first."""
    pooling: str
    """`mean` over patch tokens, or `cls`."""
    dim: int
    alignment: str = "none"
    """What is done to the vector after pooling; `none` means it is served as the encoder gives it."""
    pack_id: str
    curation_id: str
    table_versions: dict[str, int]
    """Delta version of every table when the representation was chosen."""
    run_id: str
    """MLflow run that trained the encoder; empty where unknown."""
    benchmark: str
    """Benchmark that chose the block, such as `linear_probe`."""
    label: str
    """Column of `wells` that the benchmark predicted."""
    split: str
    """What the benchmark held out: plate, batch or well."""
    metric: str
    score: float
    ci_low: float | None
    """95 % interval; None where too few plates were held out for one."""
    ci_high: float | None
    baselines: tuple[Baseline, ...] = ()
    gain: float | None = None
    """Score minus that of the best baseline, each chosen on other plates than it was scored on; None on cards of
    earlier versions."""
    gain_low: float | None = None
    gain_high: float | None = None
    reason: str = ""
    """Why this representation and no other; empty on cards of earlier versions."""
    forced: str = ""
    """Why it was promoted though no gain over the baselines was shown; empty where one was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChampionCard(ModelCard):
    """The card of a registered model version, and where its files are on this machine."""

    name: str
    """Registered model."""
    alias: str
    version: int
    """Version of the registered model."""
    folder: Path
    """Local folder of the version's files."""
    encoder_path: Path
    """Local safetensors file of the whole encoder. Serving keeps blocks 0..`block` of it."""

    @property
    def card(self) -> ModelCard:
        """The part that travels with the model, without local paths."""
        return ModelCard(**{field.name: getattr(self, field.name) for field in fields(ModelCard)})


@dataclass(frozen=True, slots=True)
class Run:
    """One open MLflow run."""

    tracking: TrackingConfig
    run_id: str

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record settings. The same key must keep its value in a resumed run."""
        from mlflow.entities import Param

        rows = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(rows), 100):  # 100: MLflow's limit for one request
            _client(self.tracking).log_batch(self.run_id, params=rows[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record numbers at one step, in one request."""
        import time

        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        rows = [Metric(key, float(value), now_ms, step) for key, value in metrics.items()]
        _client(self.tracking).log_batch(self.run_id, metrics=rows)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Mark the run; `find_finished_run` searches by tags."""
        from mlflow.entities import RunTag

        _client(self.tracking).log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def log_artifact(self, path: str | Path, folder: str = "") -> None:
        """Copy a file into the run's artefacts."""
        _client(self.tracking).log_artifact(self.run_id, str(path), folder or None)


@contextmanager
def start_run(
    tracking: TrackingConfig,
    name: str,
    *,
    params: Mapping[str, object] | None = None,
    tags: Mapping[str, str] | None = None,
    run_id: str = "",
) -> Iterator[Run]:
    """Open a run, or go on with `run_id`; it ends as FINISHED, or FAILED when the block raises."""
    client = _client(tracking)
    if run_id:
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = client.create_run(_experiment_id(tracking), run_name=name, tags=dict(tags or {})).info.run_id
    run = Run(tracking, run_id)
    if params:
        run.log_params(params)
    try:
        yield run
    except BaseException:
        client.set_terminated(run_id, status="FAILED")
        raise
    client.set_terminated(run_id, status="FINISHED")


def find_finished_run(tracking: TrackingConfig, tags: Mapping[str, str]) -> str | None:
    """Id of the newest finished run that carries all `tags`, or None."""
    condition = " and ".join(
        ["attributes.status = 'FINISHED'", *(f"tags.`{key}` = {_quoted(value)}" for key, value in tags.items())]
    )
    found = _client(tracking).search_runs(
        [_experiment_id(tracking)], condition, max_results=1, order_by=["attributes.start_time DESC"]
    )
    return str(found[0].info.run_id) if found else None


def metric_history(tracking: TrackingConfig, run_id: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of one metric in the order of steps; empty when the run never logged it."""
    points = _client(tracking).get_metric_history(run_id, metric)
    return sorted((int(point.step), float(point.value)) for point in points)


def run_params(tracking: TrackingConfig, run_id: str) -> dict[str, str]:
    """Settings recorded for a run."""
    return dict(_client(tracking).get_run(run_id).data.params)


def flatten_config(config: Any, prefix: str = "") -> dict[str, str]:
    """A config dataclass as dotted names and texts, the spelling of `--set`: `{"model.width": "192"}`."""
    flat: dict[str, str] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        name = f"{prefix}{field.name}"
        if is_dataclass(value):
            flat |= flatten_config(value, f"{name}.")
        else:
            flat[name] = str(value)
    return flat


def promote(tracking: TrackingConfig, card: ModelCard, encoder: str | Path, alias: str = CHAMPION) -> ChampionCard:
    """Register an encoder as the source of one representation and point `alias` at it.

    The whole checkpoint is kept and the block recorded: another block of the same weights can be promoted later, and
    serving trims what it does not need. The same representation is registered once: promoting it again moves the
    alias back to its version.

    Args:
        tracking: Which store and which registered model.
        card: What the representation is.
        encoder: Safetensors file of the encoder.
        alias: Alias to move.

    Returns:
        The version that the alias now names.

    Raises:
        FileNotFoundError: No checkpoint at `encoder`.
        ValueError: The checkpoint is not a safetensors file.
    """
    checkpoint = Path(encoder)
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"no encoder at {checkpoint} for representation {card.representation_id}. Run jobs/pretrain.py again, or "
            "correct the `checkpoint` column of the representations table."
        )
    if checkpoint.suffix != ".safetensors":
        raise ValueError(f"{checkpoint.name} is not a .safetensors file. Only weights without code are registered.")
    client = _client(tracking)
    version = _version_of(tracking, card.representation_id)
    if version is None:
        version = _register(tracking, card, checkpoint)
    if card.reason:  # of this promotion: the version may have been registered for another
        client.set_model_version_tag(tracking.model_name, str(version), f"why_{alias}", card.reason)
    client.set_registered_model_alias(tracking.model_name, alias, str(version))
    return resolve_alias(tracking, alias)


def resolve_alias(tracking: TrackingConfig, alias: str = CHAMPION, name: str = "") -> ChampionCard:
    """The model version behind an alias, its files made local.

    Args:
        tracking: Which store; its `model_name` is the registered model.
        alias: Such as `champion`.
        name: Another registered model than the config's.

    Raises:
        AliasNotFoundError: The store, the model or the alias does not exist, or its files are gone.
    """
    name = name or tracking.model_name
    database = _sqlite_file(tracking)
    if database is not None and not database.is_file():
        raise _not_found(tracking, name, alias, f"{database} does not exist")
    from mlflow.exceptions import MlflowException

    client = _client(tracking)
    try:
        found = client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        # MLflow 3.17: the first for a missing model, the second for a missing alias.
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise _not_found(tracking, name, alias, _what_is_missing(tracking, name)) from None
    folder = _local_folder(tracking, str(found.source))
    missing = [file for file in (CARD_FILE, ENCODER_FILE) if not (folder / file).is_file()]
    if missing:
        raise _not_found(tracking, name, alias, f"version {found.version} lacks {', '.join(missing)} in {folder}")
    card = read_card(folder / CARD_FILE)
    return ChampionCard(
        **{field.name: getattr(card, field.name) for field in fields(card)},
        name=name,
        alias=alias,
        version=int(found.version),
        folder=folder,
        encoder_path=folder / ENCODER_FILE,
    )


def register_folder(
    tracking: TrackingConfig, name: str, folder: str | Path, run: Run, tags: Mapping[str, str], alias: str = CHAMPION
) -> int:
    """Keep a folder as the next version of a registered model that is no encoder, and point `alias` at it.

    Args:
        tracking: Which store; its `model_name` is not used.
        name: Registered model, such as `cytolake-query-performance`.
        folder: Files to keep; they are copied into the run's artefacts.
        run: Run that made them.
        tags: Of the version.
        alias: Alias to move.

    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    client = _client(tracking)
    client.log_artifacts(run.run_id, str(folder), "model")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run.run_id).info.artifact_uri}/model"
    version = client.create_model_version(name, source=source, run_id=run.run_id, tags=dict(tags))
    client.set_registered_model_alias(name, alias, str(version.version))
    return int(version.version)


def find_folder(tracking: TrackingConfig, name: str, alias: str = CHAMPION) -> tuple[Path, int, dict[str, str]] | None:
    """What `register_folder` kept, made local, with its version and tags; None where there is none."""
    database = _sqlite_file(tracking)
    if database is not None and not database.is_file():
        return None
    from mlflow.exceptions import MlflowException

    try:
        found = _client(tracking).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return _local_folder(tracking, str(found.source)), int(found.version), dict(found.tags)


def read_card(path: str | Path) -> ModelCard:
    """Read a `card.json`.

    Raises:
        ValueError: A field is missing or unknown.
    """
    values = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        baselines = tuple(Baseline(**baseline) for baseline in values.pop("baselines", ()))
        channels = tuple(values.pop("channels"))
        return ModelCard(**values, channels=channels, baselines=baselines)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a model card of this version of cytolake ({error}). Promote the representation again."
        ) from error


def _register(tracking: TrackingConfig, card: ModelCard, checkpoint: Path) -> int:
    from mlflow.exceptions import MlflowException

    client = _client(tracking)
    tags = {
        "representation_id": card.representation_id,
        "model_id": card.model_id,
        "block": str(card.block),
        "pooling": card.pooling,
        "pack_id": card.pack_id,
        "curation_id": card.curation_id,
        "table_versions": json.dumps(card.table_versions, sort_keys=True),
    }
    logged = client.create_logged_model(
        _experiment_id(tracking),
        name=tracking.model_name,
        source_run_id=card.run_id or None,
        model_type=card.architecture,
        tags=tags,
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            shutil.copyfile(checkpoint, folder / ENCODER_FILE)
            (folder / CARD_FILE).write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
            _write_mlmodel(folder, card, logged.model_id, logged.artifact_location)
            client.log_model_artifacts(logged.model_id, str(folder))
        client.finalize_logged_model(logged.model_id, "READY")
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    try:
        client.create_registered_model(tracking.model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    version = client.create_model_version(
        tracking.model_name,
        source=str(logged.artifact_location),
        run_id=card.run_id or None,
        tags=tags,
        model_id=logged.model_id if card.run_id else None,  # without a run MLflow 3.17 looks it up in its global store
        description=f"{card.architecture}, block {card.block}, {card.pooling}: {card.metric} {card.score:.3f}",
    )
    return int(version.version)


def _write_mlmodel(folder: Path, card: ModelCard, model_id: str, location: str) -> None:
    """The `MLmodel` file: signature, and the loader that `mlflow.pyfunc.load_model` imports. Holds no code."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    # A fixed-stain encoder takes its stains in order; a channel-adaptive one takes any number of them.
    n_channels = len(card.channels) if card.architecture in ("mae_vit", "resnet") else -1
    crops = TensorSpec(np.dtype("float32"), (-1, n_channels, card.crop_size, card.crop_size), "crops")
    vectors = TensorSpec(np.dtype("float32"), (-1, card.dim), "embeddings")
    # Unnamed specs let a caller pass a bare array.
    signature = ModelSignature(
        Schema([TensorSpec(crops.type, crops.shape)]), Schema([TensorSpec(vectors.type, vectors.shape)])
    )
    Model(
        artifact_path=location,
        run_id=card.run_id or None,
        model_uuid=model_id,
        model_id=model_id,
        signature=signature,
        flavors={
            "python_function": {"loader_module": PYFUNC_LOADER, "data": "."},
            "cytolake": {"encoder": ENCODER_FILE, "card": CARD_FILE},
        },
    ).save(str(folder / "MLmodel"))


def _version_of(tracking: TrackingConfig, representation_id: str) -> int | None:
    versions = _client(tracking).search_model_versions(f"name = {_quoted(tracking.model_name)}")
    same = [int(each.version) for each in versions if each.tags.get("representation_id") == representation_id]
    return max(same) if same else None


def _what_is_missing(tracking: TrackingConfig, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        aliases = dict(_client(tracking).get_registered_model(name).aliases)
    except MlflowException:
        return "no such registered model"
    known = ", ".join(f"{alias} -> version {version}" for alias, version in sorted(aliases.items()))
    return f"the model exists, its aliases are: {known or 'none'}"


def _not_found(tracking: TrackingConfig, name: str, alias: str, found: str) -> AliasNotFoundError:
    return AliasNotFoundError(
        f"no model {name!r} with alias {alias!r} in {tracking.uri}: {found}. Run `python jobs/promote.py --recipe "
        "<recipe>` (after jobs/probe.py) to set the alias, or correct tracking.uri and tracking.model_name."
    )


def _local_folder(tracking: TrackingConfig, source: str) -> Path:
    from mlflow.artifacts import download_artifacts

    if source.startswith("file:"):
        return Path(url2pathname(urlsplit(source).path))
    return Path(download_artifacts(artifact_uri=source, tracking_uri=tracking.uri))


def _sqlite_file(tracking: TrackingConfig) -> Path | None:
    _require_uri(tracking)
    return Path(tracking.uri.removeprefix(_SQLITE)) if tracking.uri.startswith(_SQLITE) else None


def _require_uri(tracking: TrackingConfig) -> None:
    if not tracking.uri:
        raise ValueError("tracking.uri is empty. Use `tracking.at(catalog_root)`, or give a URI.")


def _experiment_id(tracking: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    client = _client(tracking)
    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None:
        return str(found.experiment_id)
    database = _sqlite_file(tracking)
    # Without a server MLflow would put artefacts under the working directory; they belong beside the database.
    location = (database.parent / "mlflow_artifacts").as_uri() if database is not None else None
    try:
        return str(client.create_experiment(tracking.experiment, artifact_location=location))
    except MlflowException as error:  # another process made it meanwhile
        found = client.get_experiment_by_name(tracking.experiment)
        if found is None:
            raise error
        return str(found.experiment_id)


def _client(tracking: TrackingConfig) -> Any:
    _require_uri(tracking)
    # Before the import: MLflow reads it once. A screen's file names are nobody else's business.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    for noisy in ("alembic", "mlflow.store.db.utils", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    database = _sqlite_file(tracking)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)


def _quoted(text: str) -> str:
    """A text between quotes for MLflow's search language, which has no escapes."""
    if "'" in text and '"' in text:
        raise ValueError(f"cannot search MLflow for {text!r}: it holds both kinds of quotes. Use another name.")
    return f'"{text}"' if "'" in text else f"'{text}'"
