"""Which store and alias a catalog's promoted model is in: recorded in its folder, for commands that read no recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from cytolake.storage.atomic_write import write_text
from cytolake.tracking.cards import ModelVersion
from cytolake.tracking.registry import CHAMPION, AliasNotFoundError, resolve_alias
from cytolake.tracking.store import TrackingConfig, sqlite_file, sqlite_uri

PROMOTED_FILE = "promoted.json"
"""File in a catalog's folder: store and alias of the last promotion. Without it, they are those of the defaults."""


def record_promotion(root: Path, tracking: TrackingConfig, alias: str) -> None:
    """Record where a promotion went, without a password: later commands take it from the environment, as
    `MLFLOW_TRACKING_PASSWORD` of a server or `PGPASSWORD` of Postgres.

    Args:
        root: Folder of the catalog.
        tracking: As in the recipe; with an empty `uri` the store is that of the folder, wherever it is moved to.
    """
    if tracking.uri and (database := sqlite_file(tracking)) is not None:
        tracking = dataclasses.replace(tracking, uri=sqlite_uri(database))  # readable from other working directories
    note = dataclasses.asdict(tracking) | {"uri": _without_password(tracking.uri), "alias": alias}
    if note != _note(root):
        write_text(root / PROMOTED_FILE, json.dumps(note, indent=2) + "\n")


def tracking_of(root: Path) -> TrackingConfig:
    """The store of the last promotion from this catalog; without one, the SQLite file of its folder."""
    note = _note(root)
    return TrackingConfig(**{name: text for name, text in note.items() if name != "alias"}).at(root)


def resolve_promoted(root: Path, alias: str = CHAMPION) -> ModelVersion:
    """The model version behind an alias, in the store that this catalog's models are promoted to.

    Args:
        root: Folder of the catalog.
        alias: `champion` also stands for the alias of the last promotion, where the store has no `champion`.

    Raises:
        AliasNotFoundError: As for `resolve_alias`.
        ConnectionError: The store does not answer.
    """
    from mlflow.exceptions import MlflowException

    tracking, promoted = tracking_of(root), _note(root)["alias"]
    try:
        try:
            return resolve_alias(tracking, alias)
        except AliasNotFoundError:
            if alias != CHAMPION or promoted == CHAMPION:
                raise
            return resolve_alias(tracking, promoted)
    except MlflowException as error:
        raise ConnectionError(
            f"MLflow store {tracking.uri}, named in {root / PROMOTED_FILE}: {error}. Start it, or promote again with "
            "another tracking.uri."
        ) from error


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    account, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{account.partition(':')[0]}@{host}"))


def _note(root: Path) -> dict[str, str]:
    path = root / PROMOTED_FILE
    assumed = dataclasses.asdict(TrackingConfig()) | {"alias": CHAMPION}
    if not path.is_file():
        return assumed
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: str(found[name]) for name in assumed}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: found {error!r}, expected {', '.join(assumed)}. Delete the file, then promote again."
        ) from error
