"""Stores the rows that workers read of a plate, well by well, until the plate is committed.

One file for each well, in a folder named after the plate and its content: a run that was killed goes on with the wells
that have no file. A file appears whole or not at all. Nothing here shows in the catalog.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytolake.catalog.errors import CatalogError
from cytolake.storage.atomic_write import atomic_file
from cytolake.storage.files import file_system, is_uri

SUFFIX = ".arrow"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


@dataclass(frozen=True, slots=True)
class Staging:
    """The staged wells of one plate at one content. Cheap to send to a worker."""

    folder: str
    """Local path or URI."""

    def wells(self) -> frozenset[str]:
        """Wells that have been read."""
        return frozenset(name.removesuffix(SUFFIX) for name in _names(self.folder) if name.endswith(SUFFIX))

    def write(self, well: str, rows: pa.Table) -> None:
        """Stage one well; the same well again replaces it.

        Raises:
            CatalogError: The disk is full or cannot be written. Nothing is left of the well then.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, rows.schema, options=_OPTIONS) as writer:
            writer.write_table(rows)
        content = sink.getvalue()
        path = f"{self.folder}/{well}{SUFFIX}"
        try:
            if is_uri(path):
                file_system(path).pipe_file(path, content.to_pybytes())  # an object appears when it is whole
            else:
                _write_whole(Path(path), content)
        except OSError as error:
            raise CatalogError(
                f"well {well}: its rows could not be staged in {self.folder}: {error}. Make room there, then run the "
                "job again: it goes on with the wells that are missing."
            ) from error

    def read(self, wells: Sequence[str], column: str) -> Iterator[pa.Table]:
        """Rows of one list column, for one well after the other; see `read_together`."""
        for parts in self.read_together(wells, (column,)):
            yield parts[column]

    def read_together(self, wells: Sequence[str], columns: Sequence[str]) -> Iterator[dict[str, pa.Table]]:
        """Rows of some list columns, for one well after the other; each file is read once, other columns not decoded.

        Raises:
            FileNotFoundError: A well is not staged (any more).
            CatalogError: A file is damaged; it has been removed.
        """
        for well in wells:
            path = f"{self.folder}/{well}{SUFFIX}"
            try:
                rows = _read_columns(path, columns)
            except pa.ArrowInvalid as error:
                _remove(path)
                raise CatalogError(
                    f"{path}: the staged rows of well {well} are damaged ({error}) and were removed. Run the job "
                    "again: it reads that well again."
                ) from error
            yield rows

    def remove(self) -> None:
        """Delete the folder, if it is there."""
        remove_folder(self.folder)


def remove_folder(folder: str) -> None:
    """Delete a staging folder with everything in it; no error where it is gone."""
    system = file_system(folder)
    try:
        system.rm(folder, recursive=True)
    except FileNotFoundError:
        return
    except OSError:  # another process that stages the same plate wrote one more file meanwhile
        if system.exists(folder):
            system.rm(folder, recursive=True)


def _write_whole(path: Path, content: Any) -> None:
    try:
        with atomic_file(path) as part:
            part.write_bytes(content)
    except FileNotFoundError:  # another process finished the plate and removed the folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _read_columns(path: str, columns: Sequence[str]) -> dict[str, pa.Table]:
    if is_uri(path):
        content = file_system(path).cat_file(path)
    else:
        with open(path, "rb") as file:  # noqa: PTH123 - not a memory map: another process may replace the file
            content = file.read()
    schema = pa.ipc.open_file(content).schema
    positions = [schema.get_field_index(column) for column in columns]
    found = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=positions)).read_all()
    return {column: _rows_of(found.column(column)) for column in columns}


def _rows_of(lists: pa.ChunkedArray) -> pa.Table:
    return pa.Table.from_struct_array(
        pa.chunked_array([chunk.flatten() for chunk in lists.chunks], lists.type.value_type)
    )


def _names(folder: str) -> list[str]:
    if not is_uri(folder):
        return os.listdir(folder) if Path(folder).is_dir() else []  # noqa: PTH208
    try:
        return [entry.rsplit("/", 1)[-1] for entry in file_system(folder).ls(folder, detail=False)]
    except FileNotFoundError:
        return []


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        file_system(path).rm_file(path)
