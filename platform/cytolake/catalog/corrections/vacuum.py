"""Removes leftovers of killed runs: files that no version of a table names, staged wells that were never committed.

Every version of every table stays readable: a file that any commit ever named is kept, because a curation, a tag or a
model's card may be pinned to that version.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from cytolake.catalog.declared import table_names
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ingest.commit import STAGING
from cytolake.catalog.ingest.staging import remove_folder
from cytolake.catalog.tables import Catalog
from cytolake.storage.files import file_system

LOG = "_delta_log"


@dataclass(frozen=True, kw_only=True, slots=True)
class VacuumReport:
    """Files that were, or would be, removed."""

    files: tuple[str, ...]
    """Orphaned files of the tables, paths below the catalog."""
    staged: tuple[str, ...]
    """Staging folders, paths below the catalog."""
    n_bytes: int
    n_too_young: int
    """Orphans that were left because a run may still be writing them."""


def vacuum(catalog: Catalog, older_than_h: float = 24.0, *, is_dry_run: bool = False) -> VacuumReport:
    """Remove orphaned files and staging folders that nobody has written to for some hours.

    Args:
        catalog: Not pinned.
        older_than_h: Leave what is younger, hours: a run that goes on now has files that are not committed yet.
        is_dry_run: Only look.

    Raises:
        CatalogError: A pinned catalog, a negative age, or a table whose log is damaged: nothing is removed then.
    """
    if catalog.pinned is not None or older_than_h < 0:
        raise CatalogError(
            f"vacuum: found {'a catalog pinned to old versions' if catalog.pinned else f'{older_than_h} hours'}, "
            "expected an open catalog and 0 hours or more. Correct the call."
        )
    youngest = time.time() - older_than_h * 3600
    system = file_system(catalog.place)
    base = system._strip_protocol(catalog.place)
    orphans: dict[str, tuple[int, float]] = {}
    for name in table_names():
        folder = f"{base}/tables/{name}"
        if not system.exists(f"{folder}/{LOG}"):
            continue
        named = {f"{folder}/{path}" for path in _files_ever_named(system, f"{folder}/{LOG}")}
        there = _files(system, folder)
        orphans |= {
            path: facts for path, facts in there.items() if path not in named and not path.startswith(f"{folder}/{LOG}")
        }
    staged: dict[str, tuple[int, float]] = {}
    for path, (n_bytes, changed) in _files(system, f"{base}/{STAGING}").items():
        folder = "/".join(path.split("/")[: base.count("/") + 3])
        size, newest = staged.get(folder, (0, 0.0))
        staged[folder] = (size + n_bytes, max(newest, changed))
    old_files = {path: n_bytes for path, (n_bytes, changed) in orphans.items() if changed <= youngest}
    old_staged = {path: n_bytes for path, (n_bytes, changed) in staged.items() if changed <= youngest}
    if not is_dry_run:
        for path in old_files:
            system.rm_file(path)
        for path in old_staged:
            remove_folder(path if base == catalog.place else f"s3://{path}")
    return VacuumReport(
        files=tuple(path[len(base) + 1 :] for path in sorted(old_files)),
        staged=tuple(path[len(base) + 1 :] for path in sorted(old_staged)),
        n_bytes=sum(old_files.values()) + sum(old_staged.values()),
        n_too_young=len(orphans) - len(old_files) + len(staged) - len(old_staged),
    )


def _files_ever_named(system: Any, log: str) -> Iterator[str]:
    """Paths, relative to the table, in every commit of a log. The log is kept whole: see `commits`."""
    versions = sorted(path for path in system.ls(log, detail=False) if path.endswith(".json"))
    if [path.rsplit("/", 1)[-1] for path in versions] != [f"{number:020}.json" for number in range(len(versions))]:
        raise CatalogError(
            f"{log}: found {len(versions)} commits that are not numbered 0 to {len(versions) - 1}, expected the whole "
            "log. It was cleaned by another program, so which files are orphans is unknown: nothing was removed."
        )
    for path in versions:
        for line in system.cat_file(path).splitlines():
            action: Mapping[str, Any] = json.loads(line)
            for kind in ("add", "remove", "cdc"):
                if kind in action:
                    yield unquote(action[kind]["path"])


def _files(system: Any, folder: str) -> dict[str, tuple[int, float]]:
    """Size in bytes and time of the last change, s since 1970, of every file below a folder."""
    try:
        found = system.find(folder, detail=True)
    except FileNotFoundError:
        return {}
    return {path: (int(facts["size"]), _changed(facts)) for path, facts in found.items()}


def _changed(facts: Mapping[str, Any]) -> float:
    when = facts.get("mtime") or facts.get("LastModified")
    return float(when.timestamp() if isinstance(when, datetime) else when or 0.0)
