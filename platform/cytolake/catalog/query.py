"""Runs SQL over Arrow data, restricted to reading it: no files, no network, no settings, no writing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.contracts import plain_type
from cytolake.catalog.declared import table_names
from cytolake.catalog.errors import CatalogError

if TYPE_CHECKING:
    import duckdb

TABLE_FUNCTIONS = frozenset({"unnest", "range", "generate_series"})
"""Table functions that a query may call. Others can read files, settings or, by address, memory (`arrow_scan`)."""

Parameters: TypeAlias = Mapping[str, Any] | Sequence[Any]
"""Values of `$name`, or of each `?` in order: texts, numbers, times, or lists of these (`plate IN $plates`)."""

_QUERY_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedQuery:
    """One SELECT that passed the check."""

    text: str
    tables: frozenset[str]
    """Names it reads from, lower case; common table expressions among them."""


@lru_cache(maxsize=1024)  # jobs and tests run the same few texts, with other parameters
def parse_query(text: str) -> ParsedQuery:
    """Check with DuckDB's own parser that the text is one SELECT that calls only allowed table functions.

    Raises:
        CatalogError: Not SQL, several statements, a statement other than SELECT, or a forbidden function.
    """
    with _connection() as parser:
        serialised = parser.execute("SELECT json_serialize_sql(?::VARCHAR)", [text]).fetchone()
    tree: dict[str, Any] = json.loads(serialised[0]) if serialised else {"error": True}
    if tree["error"]:
        reason = tree.get("error_message", "it could not be parsed")
        if "Only SELECT statements" in reason:  # of `drop table wells`
            raise CatalogError(
                f"query refused: found {text.strip()[:200]}, expected one SELECT. Queries only read: commands such as "
                "`cytolake plates` change a catalog."
            )
        raise CatalogError(f"query refused: {reason}. Found: {text.strip()[:200]}. Expected one SELECT statement.")
    if len(tree["statements"]) != 1:
        raise CatalogError(f"query refused: found {len(tree['statements'])} statements, expected one SELECT.")
    tables = set()
    for node in _nodes(tree["statements"][0]):
        kind = str(node.get("type", ""))
        if kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise CatalogError(
                    f"query refused: table function {name} is not allowed, only {', '.join(sorted(TABLE_FUNCTIONS))}. "
                    "Query the catalog's tables, or read files in Python and pass them as views."
                )
        elif kind == "BASE_TABLE":
            tables.add(str(node["table_name"]).lower())
        elif kind.endswith("_NODE") and kind not in _QUERY_NODES:
            raise CatalogError(f"query refused: found {kind.lower()}, expected one SELECT that only reads.")
    return ParsedQuery(text=text, tables=frozenset(tables))


def run_query(query: ParsedQuery, relations: Mapping[str, Any], parameters: Parameters | None = None) -> pa.Table:
    """Run a checked query over Arrow tables or datasets, which no other query sees.

    Args:
        query: From `parse_query`.
        relations: What its tables are, by name.
        parameters: Values that DuckDB puts in place of `$name` or `?`. A value is never read as SQL.

    Returns:
        Plain Arrow types: whole-number sums are int64 where they fit, lists have no field names of DuckDB's.

    Raises:
        CatalogError: DuckDB refuses the query or its parameters, with its reason.
    """
    import duckdb

    try:
        with _connection() as connection:
            for name, relation in relations.items():
                connection.register(name, relation)
            result = connection.sql(query.text, params=None if parameters is None else _plain_lists(parameters))
            found: pa.Table = result.to_arrow_table()
    except duckdb.Error as error:
        raise CatalogError(f"query failed: {error}. The catalog has the tables {', '.join(table_names())}.") from error
    return _plain(found)


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to the database of this process; what is registered in it is seen by it alone."""
    import duckdb

    try:
        with _database(os.getpid()).cursor() as connection:
            yield connection
    except (duckdb.FatalException, duckdb.InternalException):
        _database.cache_clear()  # DuckDB refuses all further work of a database after such an error
        raise


@cache
def _database(process: int) -> duckdb.DuckDBPyConnection:
    """An empty database that reads no files and whose settings are locked; opening one takes 16 ms of CPU.

    Args:
        process: Its id: a forked process has none of the threads of its parent's database.
    """
    import duckdb

    database = duckdb.connect(":memory:", config={"python_enable_replacements": "false"})
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")
    return database


def _plain_lists(parameters: Parameters) -> dict[str, Any] | list[Any]:
    """Parameters as dict and lists: DuckDB refuses tuples."""
    if isinstance(parameters, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value for name, value in parameters.items()}
    return [list(value) if isinstance(value, tuple) else value for value in parameters]


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every object of the parsed query."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _plain(table: pa.Table) -> pa.Table:
    names = table.column_names
    columns: list[Any] = []
    for field in table.schema:
        column = table.column(len(columns))  # by position: a query may give two columns one name
        wanted = plain_type(field.type) if not pa.types.is_timestamp(field.type) else field.type
        if pa.types.is_decimal(field.type) and field.type.scale == 0:  # sum() of integers is a 128-bit number
            largest = pc.max(pc.abs(column)).as_py()
            wanted = pa.int64() if largest is None or largest < 2**63 else field.type
        columns.append(column if column.type == wanted else column.cast(wanted))
    return pa.Table.from_arrays(columns, names=names)
