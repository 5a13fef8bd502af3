"""Decides which rows of the catalog's tables are visible, by the table `plates` alone.

Its row for a plate is the switch that every correction turns, in one Delta commit. Rows that a correction hides stay in
their tables, for older versions and for `restore`. A file of a table holds rows of one plate, nearly always, so hidden
rows are left out as whole files, by the files' statistics, and no row is looked at; where all is visible nothing is
filtered at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable
from pyarrow.fs import FileType

from cytolake.catalog.commits import open_table
from cytolake.catalog.contracts import TableContract
from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.opened import all_files

if TYPE_CHECKING:
    import pyarrow.dataset as ds

INGESTED_TABLES = ("wells", "sites", "crops", "qc_metrics")
"""Tables that an ingest writes before `plates`."""

PLATE_TABLES = (*INGESTED_TABLES, "objects")
"""Tables whose rows of a plate are visible only once `plates` has it."""

DERIVED_TABLES = ("curations", "embeddings", "profiles", "qc_labels", "qc_verdicts")
"""Tables computed from plates: rows of a hidden plate are hidden. Rows of a plate that `plates` never had are visible:
vectors of other tools may be of such plates."""

EDITIONS = {"wells": "wells_edition", "sites": "sites_edition", "crops": "sites_edition", "objects": "objects_edition"}
"""Column of `plates` that names the visible edition, by table with editions."""

State: TypeAlias = Literal["visible", "retracted", "replaced", "purging", "purged"]
VISIBLE: State = "visible"
GONE: tuple[State, ...] = ("purging", "purged")
"""States of a plate whose rows are deleted: no version of the catalog shows them."""


def state_of(row: dict[str, Any]) -> str:
    """State of a row of `plates`; rows older than the column `state` are visible."""
    return row["state"] or VISIBLE


@dataclass(frozen=True, slots=True)
class Visibility:
    """Which plates and editions one version of the table `plates` makes visible."""

    plates: pa.Table
    """All rows, of every state."""
    gone: frozenset[str] = frozenset()
    """Ids of plates that were deleted since that version."""

    @property
    def visible(self) -> pa.Table:
        """Rows of the plates that are visible."""
        state = self.plates.column("state").fill_null("")
        shown = self.plates.filter(pc.is_in(state, value_set=pa.array(["", VISIBLE])))
        if not self.gone:
            return shown
        return shown.filter(pc.invert(pc.is_in(shown.column("plate_id"), value_set=_ids(self.gone))))

    def hidden(self) -> frozenset[str]:
        """Ids of the plates that are not."""
        visible = self.visible.column("plate_id").to_pylist()
        return frozenset(self.plates.column("plate_id").to_pylist()).difference(visible)

    def editions(self, table: str) -> dict[str, str | None]:
        """For each visible plate the visible edition of its rows in a table."""
        rows = self.visible
        names = rows.column(EDITIONS[table]) if table in EDITIONS else pa.nulls(rows.num_rows)
        return dict(zip(rows.column("plate_id").to_pylist(), names.to_pylist(), strict=True))


def read_visibility(path: str, version: int | None) -> Visibility:
    """Read the visibility from the table `plates` at a path.

    Args:
        path: Folder or URI of the table.
        version: None is the newest. At an older one, plates that were purged since are hidden too: their files are
            gone.
    """
    newest = open_table(path)
    if newest is None:
        return Visibility(_contract().empty())
    now = _all_plates(path, newest)
    if version is None or version == newest.version():
        return Visibility(now)
    then = open_table(path, version)
    gone = [row["plate_id"] for row in now.select(["plate_id", "state"]).to_pylist() if row["state"] in GONE]
    return Visibility(_contract().empty() if then is None else _all_plates(path, then), frozenset(gone))


def shown_part(name: str, table: DeltaTable, contract: TableContract, visibility: Visibility | None) -> ds.Dataset:
    """The visible part of a table. Args and Raises: as `shown_files`."""
    files, condition = shown_files(name, table, contract, visibility)
    return files if condition is None else files.filter(condition)


def shown_files(
    name: str, table: DeltaTable, contract: TableContract, visibility: Visibility | None
) -> tuple[ds.FileSystemDataset, pc.Expression | None]:
    """The files of a table that have visible rows, and the condition of these where a file may have others too.

    Arrow gives no files of a dataset that a condition was put on.

    Args:
        name: Of the table, not `plates`.
        table: Opened at the version to read.
        contract: Its columns; those that were added later read as null.
        visibility: None for a table of which every row is visible.

    Raises:
        CatalogError: An older version, of which a purge removed files that other plates have rows in.
    """
    whole = all_files(table).replace_schema(contract.schema)
    if visibility is None:
        return whole, None
    judged = _judge_derived(table, visibility) if name in DERIVED_TABLES else _judge(name, table, visibility)
    hidden = {file for file, verdict in judged if verdict is False}
    is_mixed = any(verdict is None for _, verdict in judged)
    if visibility.gone:
        _check_files(name, table, whole, {file for file, verdict in judged if verdict is False}, visibility.gone)
    if hidden:
        kept = [fragment for fragment in whole.get_fragments() if unquote(fragment.path) not in hidden]
        import pyarrow.dataset as ds

        whole = ds.FileSystemDataset(kept, contract.schema, whole.format, whole.filesystem)
    return whole, _condition(name, visibility) if is_mixed else None


def _check_files(
    name: str, table: DeltaTable, whole: ds.FileSystemDataset, hidden: Collection[str], gone: Collection[str]
) -> None:
    """Raise where an older version lacks a file with visible rows.

    A purge removes files that held rows of its plate, also with those of other plates: these are no longer whole.
    """
    mixed = [
        file.path
        for file in _files(table, has_editions=False)
        if file.path not in hidden
        and (file.first is None or file.last is None or any(file.first <= each <= file.last for each in gone))
    ]
    lost = [info for info in whole.filesystem.get_file_info(mixed) if info.type == FileType.NotFound] if mixed else []
    if lost:
        raise CatalogError(
            f"table {name}, version {table.version()}: {len(lost)} of its files held rows of plates that were purged "
            "since, together with rows of other plates, and are gone. Read a version of after the purge."
        )


class _File(NamedTuple):
    path: str
    first: str | None
    """Least plate id; None where the file has no statistics."""
    last: str | None
    edition: str | None
    is_of_one_edition: bool


def _judge(name: str, table: DeltaTable, visibility: Visibility) -> list[tuple[str, bool | None]]:
    """For each file True (all rows are visible), False (none) or None (perhaps some)."""
    visible = visibility.editions(name)
    judged: list[tuple[str, bool | None]] = []
    for file in _files(table, has_editions=name in EDITIONS):
        if file.first is None or file.first != file.last or not file.is_of_one_edition:
            judged.append((file.path, None))
        else:
            judged.append((file.path, file.first in visible and visible[file.first] == file.edition))
    return judged


def _judge_derived(table: DeltaTable, visibility: Visibility) -> list[tuple[str, bool | None]]:
    hidden = visibility.hidden()
    if not hidden:
        return []
    judged: list[tuple[str, bool | None]] = []
    for file in _files(table, has_editions=False):
        if file.first is None or file.last is None:
            judged.append((file.path, None))
        elif file.first == file.last:
            judged.append((file.path, file.first not in hidden))
        else:
            judged.append((file.path, None if any(file.first <= each <= file.last for each in hidden) else True))
    return judged


def _condition(name: str, visibility: Visibility) -> pc.Expression:
    plate = pc.field("plate_id")
    if name in DERIVED_TABLES:
        return ~plate.isin(_ids(visibility.hidden()))
    editions = visibility.editions(name)
    if name not in EDITIONS:
        return plate.isin(_ids(editions))
    first = plate.isin(_ids(each for each, edition in editions.items() if edition is None))
    later = pc.field("edition").isin(_ids(edition for edition in editions.values() if edition is not None))
    return (pc.field("edition").is_null() & first) | (later & plate.isin(_ids(editions)))


def _files(table: DeltaTable, *, has_editions: bool) -> Iterator[_File]:
    """Plates and edition of each file with rows, by its statistics."""
    actions = pa.table(table.get_add_actions(flatten=True))

    def column(name: str) -> list[Any]:
        there = name in actions.column_names
        return actions.column(name).to_pylist() if there else [None] * actions.num_rows

    of_plate = ("path", "num_records", "min.plate_id", "max.plate_id", "null_count.plate_id")
    names = (*of_plate, "min.edition", "max.edition", "null_count.edition")
    for path, n, first, last, nulls, low, high, n_first in zip(*map(column, names), strict=True):
        if n == 0:
            continue
        if nulls:
            first = last = None
        is_of_first = n_first is None or n_first == n  # no count: a file of before the column
        is_of_one = not has_editions or is_of_first or (n_first == 0 and low is not None and low == high)
        yield _File(unquote(path), first, last, None if is_of_first else low, is_of_one)


def _all_plates(path: str, table: DeltaTable) -> pa.Table:
    return _read_plates(path, str(table.metadata().id), table.version())


@lru_cache(maxsize=16)  # a version of a table never changes, and its id is random
def _read_plates(path: str, _table_id: str, version: int) -> pa.Table:
    table = open_table(path, version)
    assert table is not None
    return table.to_pyarrow_dataset().replace_schema(_contract().schema).to_table()


def _contract() -> TableContract:
    return table_contract("plates")


def _ids(values: Iterable[str]) -> pa.Array:
    return pa.array(sorted(values), pa.string())
