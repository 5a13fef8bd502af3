"""Delta tables as this process opened them last, for reading.

Opening a table reads its log and its newest checkpoint: milliseconds for a small one, seconds for one of many files.
Versions follow each other without a gap, so an open table is the newest as long as its own commit is there and the next
one is not: two looks at a local disk. In object storage a look costs what opening does, so nothing is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from deltalake import DeltaTable

from cytolake.storage.files import delta_options, is_uri

N_KEPT = 64
"""Tables of one process: those of some catalogs."""


@dataclass(frozen=True, slots=True)
class _Kept:
    table: DeltaTable
    version: int
    commit: tuple[int, int, int]
    """Inode, time of change and size of the file of that commit: another catalog may come to be at the same path."""


_kept: OrderedDict[tuple[str, int | None], _Kept] = OrderedDict()
_lock = threading.Lock()


def opened(path: str, version: int | None = None) -> DeltaTable | None:
    """The table at its newest or the given version, shared by all callers, who must not change it. None where there is
    none.

    Args:
        path: Folder or URI of the table.
        version: None is the newest.

    Raises:
        DeltaError: The table has no such version, or cannot be read.
    """
    is_local = not is_uri(path)
    if is_local:
        with _lock:
            kept = _kept.get((path, version))
            if kept is not None:
                _kept.move_to_end((path, version))
        is_newest = kept is not None and (version is not None or _commit(path, kept.version + 1) is None)
        if kept is not None and is_newest and _commit(path, kept.version) == kept.commit:
            return kept.table
    if not DeltaTable.is_deltatable(path, delta_options(path)):
        return None
    table = DeltaTable(path, version=version, storage_options=delta_options(path))
    if is_local:
        _keep(path, version, table)
    return table


def keep(path: str, table: DeltaTable) -> None:
    """Take a table that its writer is done with, as the newest one."""
    if not is_uri(path):
        _keep(path, None, table)


def _keep(path: str, version: int | None, table: DeltaTable) -> None:
    commit = _commit(path, table.version())
    if commit is None:  # a log that was cleaned: its commits are in checkpoints
        return
    with _lock:
        _kept[path, version] = _Kept(table, table.version(), commit)
        _kept.move_to_end((path, version))
        while len(_kept) > N_KEPT:
            _kept.popitem(last=False)


def _commit(path: str, version: int) -> tuple[int, int, int] | None:
    try:
        found = Path(path, "_delta_log", f"{version:020}.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size
