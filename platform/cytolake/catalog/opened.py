"""Delta tables as this process opened them last, for reading.

Opening a table reads its log and its newest checkpoint: milliseconds for a small one, seconds for one of many files.
Versions follow each other without a gap, so an open table is the newest as long as its own commit is there and the next
one is not: two looks at a local disk. In object storage a look costs what opening does, so nothing is kept.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltalake import DeltaTable

from cytolake.storage.files import delta_options, is_uri

if TYPE_CHECKING:
    import pyarrow.dataset as ds

N_KEPT = 64
"""Tables of one process: those of some catalogs."""

MOST_FILES_KEPT = 256
"""A table of more is listed at each call: Arrow keeps the footer of each file that was read with its dataset."""


@dataclass(frozen=True, slots=True)
class _Kept:
    table: DeltaTable
    commit: tuple[int, int, int]
    """Inode, time of change and size of the file of that commit: another catalog may come to be at the same path."""


_kept: OrderedDict[tuple[str, int | None], _Kept] = OrderedDict()
_lock = threading.Lock()
_datasets: dict[int, ds.FileSystemDataset] = {}
"""By `id` of an open table, which has no hash; an entry goes with its table."""


def opened(path: str, version: int | None = None) -> DeltaTable | None:
    """The table at its newest or the given version, shared by all callers, who must not change it. None where there is
    none.

    Args:
        path: Folder or URI of the table.
        version: None is the newest.

    Raises:
        DeltaError: The table has no such version, or cannot be read.
    """
    kept = _current(path, version)
    if kept is not None:
        return kept
    if not DeltaTable.is_deltatable(path, delta_options(path)):
        return None
    table = DeltaTable(path, version=version, storage_options=delta_options(path))
    keep(path, table, version)
    return table


def all_files(table: DeltaTable) -> ds.FileSystemDataset:
    """All files of a table of `opened`; the same dataset at each call where they are few."""
    dataset = _datasets.get(id(table))
    if dataset is None:
        dataset = table.to_pyarrow_dataset()
        if len(dataset.files) <= MOST_FILES_KEPT:
            _datasets[id(table)] = dataset
            weakref.finalize(table, _datasets.pop, id(table), None)
    return dataset


def keep(path: str, table: DeltaTable, version: int | None = None) -> None:
    """Take a table that nobody changes any more, as the one of a version; None is the newest."""
    commit = None if is_uri(path) else _commit(path, table.version())
    if commit is None:  # or a log that was cleaned: its commits are in checkpoints
        return
    with _lock:
        _kept[path, version] = _Kept(table, commit)
        _kept.move_to_end((path, version))
        while len(_kept) > N_KEPT:
            _kept.popitem(last=False)


def _current(path: str, version: int | None) -> DeltaTable | None:
    """The kept table, where it is still that of this place and version."""
    with _lock:
        kept = _kept.get((path, version))
        if kept is None:
            return None
        _kept.move_to_end((path, version))
    is_newest = version is not None or _commit(path, kept.table.version() + 1) is None
    return kept.table if is_newest and _commit(path, kept.table.version()) == kept.commit else None


def _commit(path: str, version: int) -> tuple[int, int, int] | None:
    try:
        found = Path(path, "_delta_log", f"{version:020}.json").stat()
    except OSError:
        return None
    return found.st_ino, found.st_ctime_ns, found.st_size
