"""The model registry: versions of models, and the aliases that name one of them.

Nothing is pickled: a version of an encoder is a folder with safetensors weights, a JSON card and an `MLmodel` file that
names a loader of cytolake.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cytolake.tracking.cards import ModelCard, ModelVersion, read_card
from cytolake.tracking.runs import Run
from cytolake.tracking.store import TrackingConfig, experiment_id, mlflow_client, quoted, sqlite_file

CHAMPION = "champion"
ENCODER_FILE = "encoder.safetensors"
CARD_FILE = "card.json"
PYFUNC_LOADER = "cytolake.embed.pyfunc"


class AliasNotFoundError(LookupError):
    """The requested alias names no model version; the message says which command sets it."""


def promote(tracking: TrackingConfig, card: ModelCard, encoder: str | Path, alias: str = CHAMPION) -> ModelVersion:
    """Register an encoder as the source of one representation and point `alias` at it.

    The whole checkpoint is stored and the block recorded, so another block of the same weights can be promoted later;
    serving loads only the blocks it needs. A representation is registered once: promoting it again moves the alias
    back to its version.

    Args:
        tracking: Which store and which registered model.
        card: Describes the representation.
        encoder: Safetensors file of the encoder.

    Returns:
        The version that the alias now names.

    Raises:
        FileNotFoundError: No checkpoint at `encoder`.
        ValueError: The checkpoint is not a safetensors file.
    """
    checkpoint = Path(encoder)
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"no encoder at {checkpoint} for representation {card.representation_id}. Run `cytolake pretrain` again, "
            "or correct the `checkpoint` column of the representations table."
        )
    if checkpoint.suffix != ".safetensors":
        raise ValueError(f"{checkpoint.name} is not a .safetensors file. Only weights without code are registered.")
    client = mlflow_client(tracking)
    version = _version_of(tracking, card.representation_id)
    if version is None:
        version = _register(tracking, card, checkpoint)
    if card.reason:  # of this promotion; the version may have been registered with another reason
        client.set_model_version_tag(tracking.model_name, str(version), f"why_{alias}", card.reason)
    client.set_registered_model_alias(tracking.model_name, alias, str(version))
    return resolve_alias(tracking, alias)


def resolve_alias(tracking: TrackingConfig, alias: str = CHAMPION, name: str = "") -> ModelVersion:
    """The model version behind an alias, with its files on this machine.

    Args:
        tracking: Which store; its `model_name` is the registered model.
        alias: Such as `champion`.
        name: Registered model, where it is not the one of the config.

    Raises:
        AliasNotFoundError: The store, the model or the alias does not exist, or its files are gone.
    """
    name = name or tracking.model_name
    database = sqlite_file(tracking)
    if database is not None and not database.is_file():
        raise _not_found(tracking, name, alias, f"{database} does not exist")
    from mlflow.exceptions import MlflowException

    client = mlflow_client(tracking)
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
    return ModelVersion(
        **{field.name: getattr(card, field.name) for field in fields(card)},
        name=name,
        alias=alias,
        version=int(found.version),
        folder=folder,
        encoder_path=folder / ENCODER_FILE,
    )


def register_folder(tracking: TrackingConfig, name: str, folder: str | Path, run: Run, tags: Mapping[str, str]) -> int:
    """Register a folder as the next version of a model other than an encoder, and point `champion` at it.

    Args:
        tracking: Which store; its `model_name` is not used.
        name: Registered model, such as `cytolake-query-performance`.
        folder: Files of the version; they are copied into the run's artefacts.

    Returns:
        The version.
    """
    from mlflow.exceptions import MlflowException

    client = mlflow_client(tracking)
    client.log_artifacts(run.run_id, str(folder), "model")
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run.run_id).info.artifact_uri}/model"
    version = client.create_model_version(name, source=source, run_id=run.run_id, tags=dict(tags))
    client.set_registered_model_alias(name, CHAMPION, str(version.version))
    return int(version.version)


def find_folder(tracking: TrackingConfig, name: str) -> tuple[Path, int, dict[str, str]] | None:
    """A folder that `register_folder` stored, on this machine, with its version and tags; None where there is none."""
    database = sqlite_file(tracking)
    if database is not None and not database.is_file():
        return None
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow_client(tracking).get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return _local_folder(tracking, str(found.source)), int(found.version), dict(found.tags)


def _register(tracking: TrackingConfig, card: ModelCard, checkpoint: Path) -> int:
    from mlflow.exceptions import MlflowException

    client = mlflow_client(tracking)
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
        experiment_id(tracking),
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
    """Write the `MLmodel` file: the signature, and the loader that `mlflow.pyfunc.load_model` imports. No code."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    # An encoder of fixed stains takes its stains in order; a channel-adaptive one takes any number of them.
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
    versions = mlflow_client(tracking).search_model_versions(f"name = {quoted(tracking.model_name)}")
    same = [int(each.version) for each in versions if each.tags.get("representation_id") == representation_id]
    return max(same) if same else None


def _what_is_missing(tracking: TrackingConfig, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        aliases = dict(mlflow_client(tracking).get_registered_model(name).aliases)
    except MlflowException:
        return "no such registered model"
    known = ", ".join(f"{alias} -> version {version}" for alias, version in sorted(aliases.items()))
    return f"the model exists, its aliases are: {known or 'none'}"


def _not_found(tracking: TrackingConfig, name: str, alias: str, found: str) -> AliasNotFoundError:
    return AliasNotFoundError(
        f"no model {name!r} with alias {alias!r} in {tracking.uri}: {found}. Run `cytolake promote` with "
        "its recipe (after `cytolake probe`) to set the alias, or correct tracking.uri and tracking.model_name."
    )


def _local_folder(tracking: TrackingConfig, source: str) -> Path:
    from mlflow.artifacts import download_artifacts

    if source.startswith("file:"):
        return Path(url2pathname(urlsplit(source).path))
    return Path(download_artifacts(artifact_uri=source, tracking_uri=tracking.uri))
