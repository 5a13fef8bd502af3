"""Appends, replaces and deletes rows of Delta tables: atomically, exactly once, checked against the contract.

Every commit carries an application transaction, the mark by which a repeated or restarted job finds that its rows are
already there. Delta itself refuses two of them only when they race, so the mark is looked up before each attempt.
Parquet files are written with minimum, maximum and null count of every scalar column; a query for one plate reads only
that plate's files. No deletion vectors, column mapping or nanosecond timestamps: Arrow readers cannot read those.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from cytolake.catalog.contracts import TableContract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.opened import opened
from cytolake.storage.files import delta_options

Rows: TypeAlias = "pa.Table | Callable[[], Iterator[pa.Table]]"
"""A table, or a function that yields tables one after the other, the same at each call: one is in memory at a time."""

ATTEMPTS = 12  # with the backoff below a commit gives up after about 20 s of lost races
FIRST_BACKOFF_S = 0.02
LONGEST_BACKOFF_S = 4.0
FORGOTTEN = 0
"""Mark of an application whose rows were deleted; no content of an application is 0."""
ROWS_PER_GROUP = 4096  # about 30 wells of crops: a query for a few wells of a plate reads a few groups of its file

_CONFIGURATION = {
    "delta.enableExpiredLogCleanup": "false",  # a curation's pinned versions stay readable for ever
    "delta.checkpointInterval": "10",
    "delta.dataSkippingNumIndexedCols": "64",  # wider than any contract: statistics for every column
}


@dataclass(frozen=True, slots=True)
class Replaced:
    """Rows that a commit deletes and writes others in their place."""

    column: str
    values: tuple[str, ...]
    check: Callable[[], None]
    """Called before they are deleted; raises where they must stay."""
    always: bool = False
    """Delete them also where the commit's applications never wrote to this table before."""


def create_table(path: str, contract: TableContract) -> DeltaTable:
    """Create the table where it is missing, and add the constraints and new columns of its contract.

    Several processes may do this at once; the next call completes what a killed process left unfinished.

    Raises:
        CatalogError: The table there has a column of another type than the contract, or one that the contract lacks.
    """
    for attempt in range(ATTEMPTS):
        try:
            if not DeltaTable.is_deltatable(path, delta_options(path)):
                DeltaTable.create(
                    path,
                    contract.schema,
                    storage_options=delta_options(path),
                    partition_by=list(contract.partition_by),
                    name=contract.name,
                    configuration=_CONFIGURATION,
                )
            table = _open(path)
            missing = _missing_columns(table, contract)
            if missing:
                table.alter.add_columns(missing)
            for name, condition in contract.constraints.items():
                table = _open(path)
                if f"delta.constraints.{name}" not in table.metadata().configuration:
                    table.alter.add_constraint({name: condition})
            return _open(path)
        except CatalogError:
            raise
        except (DeltaError, OSError) as error:  # another process did the same: look again
            if attempt == ATTEMPTS - 1:
                raise CatalogError(f"table {contract.name} at {path} could not be created: {error}") from error
            _back_off(attempt)
    raise AssertionError("the last attempt returns or raises")


def open_table(path: str, version: int | None = None) -> DeltaTable | None:
    """The table at its newest or the given version, for reading; None where nothing was created yet.

    Raises:
        CatalogError: The table has no such version.
    """
    try:
        return opened(path, version)
    except DeltaError as error:
        newest = _open(path).version()
        name = path.rsplit("/", 1)[-1]
        raise CatalogError(f"table {name}: no readable version {version}. There are 0 to {newest}.") from error


def open_to_write(path: str, contract: TableContract) -> DeltaTable:
    """The newest version, of this caller alone. The table, or a column that this version of cytolake added, is created
    where it is missing.

    Raises:
        CatalogError: See `create_table`.
    """
    table = _open(path) if DeltaTable.is_deltatable(path, delta_options(path)) else None
    if table is None or not set(contract.schema.names) <= {field.name for field in table.schema().fields}:
        return create_table(path, contract)
    return table


def commit_rows(
    table: DeltaTable,
    contract: TableContract,
    rows: Rows,
    *,
    marks: Mapping[str, int],
    replace: Replaced | None = None,
    check: Callable[[], None] | None = None,
    claims: Mapping[str, int] | None = None,
    touches: Collection[str] = (),
) -> bool:
    """Append rows in one commit, unless its transactions were all committed before.

    Args:
        table: Where to, as it was opened just now.
        contract: Rows are brought to it first; keys are checked within each table of them.
        rows: May be empty: the transaction is then recorded all the same.
        marks: For each application that writes, such as a plate, what it writes: a content of 1 to 2**63 - 1. The table
            remembers the last one of each; a commit is made once for the same marks.
        replace: Rows that earlier commits of these applications left, perhaps with other content.
        check: Called before each attempt, after the table's newest version was read; raises where nothing may be
            written any more.
        claims: Commit only while these are the newest marks of their applications. Another mark that comes in between
            makes the attempt fail: both commits name the application, and Delta refuses the later one.
        touches: More applications that the commit names, so that of two commits at once that touch the same the later
            one is tried again, after `check`.

    Returns:
        True if this call committed, False if all marks were there already, or a claim was not.

    Raises:
        CatalogError: The rows break the contract, the place is full or cannot be written, or every attempt lost a race.
    """
    claims = claims or {}
    if isinstance(rows, pa.Table):
        rows = contract.conform(rows)
    for attempt in range(ATTEMPTS):
        if attempt:
            table.update_incremental()
        there = {application: table.transaction_version(application) for application in marks}
        if there == dict(marks):
            return False
        if any(table.transaction_version(each) != content for each, content in claims.items()):
            return False
        if check is not None:
            check()
        predicate = None
        if replace is not None and (replace.always or any(content is not None for content in there.values())):
            replace.check()
            predicate = _predicate(table, replace)
        try:
            named = (*marks.items(), *claims.items(), *((each, table.version() + 1) for each in touches))
            _write(table, contract, rows, predicate, [Transaction(*each) for each in named])
            return True
        except CommitFailedError as error:  # another process was first: its commit may be this very transaction
            if attempt == ATTEMPTS - 1:
                raise CatalogError(
                    f"table {contract.name}: {ATTEMPTS} attempts to commit {next(iter(marks))} lost against other "
                    f"writers ({error}). Run the job again: what is committed is skipped."
                ) from error
            _back_off(attempt)
        except (DeltaError, OSError) as error:
            if "validation" in str(error).lower() or "constraint" in str(error).lower():
                rules = "; ".join(f"{name}: {condition}" for name, condition in contract.constraints.items())
                raise CatalogError(
                    f"table {contract.name}: rows break a constraint ({rules}). {error}\nNothing was written."
                ) from error
            raise CatalogError(
                f"table {contract.name} at {table.table_uri}: rows could not be written ({error}). Nothing of them "
                "shows. Make room there, or correct the permissions, then run the job again."
            ) from error
    raise AssertionError("the last attempt returns or raises")


def delete_rows(path: str, column: str, values: Collection[str], *, forget: Collection[str] = ()) -> int:
    """Delete rows from a table, in one commit; returns how many. Older versions still have them.

    Args:
        path: Folder or URI of the table.
        column: A column of texts.
        values: Rows with one of these go.
        forget: Applications that wrote the rows: the table no longer remembers that they did, so that the same job
            writes them again.

    Raises:
        CatalogError: Other writers kept this one out for about 20 seconds, or the table cannot be written.
    """
    predicate = _one_of(column, sorted(values))
    for attempt in range(ATTEMPTS):
        if open_table(path) is None:
            return 0
        table = _open(path)
        try:
            if table.to_pyarrow_dataset().count_rows(filter=pc.field(column).isin(sorted(values))) == 0:
                return 0
            commit = CommitProperties(app_transactions=[Transaction(each, FORGOTTEN) for each in sorted(forget)])
            deleted = table.delete(predicate, commit_properties=commit)
            return int(deleted["num_deleted_rows"] or 0)
        except CommitFailedError as error:
            if attempt == ATTEMPTS - 1:
                raise CatalogError(f"table at {path}: rows could not be deleted: {error}. Run it again.") from error
            _back_off(attempt)
        except (DeltaError, OSError) as error:
            raise CatalogError(
                f"table at {path}: rows could not be deleted: {error}. Correct the permissions."
            ) from error
    raise AssertionError("the last attempt returns or raises")


def _open(path: str) -> DeltaTable:
    """The newest version, which the caller may change."""
    return DeltaTable(path, storage_options=delta_options(path))


def _write(
    table: DeltaTable, contract: TableContract, rows: Rows, predicate: str | None, marks: list[Transaction]
) -> None:
    if not isinstance(rows, pa.Table):
        batches = (batch for part in rows() for batch in contract.conform(part).to_batches())
        rows = pa.RecordBatchReader.from_batches(contract.schema, batches)
    writer = WriterProperties(compression="ZSTD", compression_level=3, max_row_group_size=ROWS_PER_GROUP)
    commit = CommitProperties(app_transactions=marks)
    if predicate is None:
        write_deltalake(table, rows, mode="append", writer_properties=writer, commit_properties=commit)
    else:
        write_deltalake(
            table, rows, mode="overwrite", predicate=predicate, writer_properties=writer, commit_properties=commit
        )


def _missing_columns(table: DeltaTable, contract: TableContract) -> list[Field]:
    there = pa.schema(table.schema().to_arrow())
    for field in there:
        known = field.name in contract.schema.names
        expected = contract.schema.field(field.name).type if known else "no such column"
        if field.type != expected:
            raise CatalogError(
                f"table {contract.name}, column {field.name}: found {field.type} in the table, expected {expected} "
                f"(catalog/tables/{contract.name}.yaml). Columns are added, never changed or removed: correct the "
                "contract, or use a new catalog root."
            )
    added = [field for field in contract.schema if field.name not in there.names]
    return list(Schema.from_arrow(pa.schema(added)).fields) if added else []


def _predicate(table: DeltaTable, replaced: Replaced) -> str | None:
    """None where there is nothing to replace: Delta plans an append in a fraction of the time."""
    if table.to_pyarrow_dataset().count_rows(filter=pc.field(replaced.column).isin(replaced.values)) == 0:
        return None
    return _one_of(replaced.column, replaced.values)


def _one_of(column: str, values: Iterable[str]) -> str:
    """Condition for delta-rs, which takes no parameters."""
    listed = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} in ({listed})"


def _back_off(attempt: int) -> None:
    longest = min(FIRST_BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S)
    time.sleep(random.uniform(longest / 2, longest))
