"""Rows of a query for people and programs: a table on a terminal, CSV, JSON lines, Parquet."""

from __future__ import annotations

import datetime
import json
import math
import sys
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.storage.atomic_write import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["table", "csv", "json", "parquet"]
ENDINGS: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def write_rows(rows: pa.Table, chosen: Format | None, output: Path | None, most: int) -> None:
    """Write rows to a file, or to stdout. No value is ever cut.

    Args:
        rows: Of the query. CSV has JSON text where a column holds lists.
        chosen: None: what the output's name ends in; without one a table.
        output: File, written whole or not at all; None is stdout.
        most: Rows of a table to print; the other formats have all.

    Raises:
        ValueError: A format that the output cannot have.
    """
    if chosen is None:
        chosen = ENDINGS.get(output.suffix.lower()) if output is not None else "table"
        if chosen is None:
            raise ValueError(f"--output {output}: expected a name that ends in {', '.join(ENDINGS)}, or --format.")
    if chosen == "table" and output is not None:
        raise ValueError("--format table is for people; expected csv, json or parquet with --output.")
    if chosen == "table":
        _print_table(rows, most)
        return
    if output is None:
        if chosen == "parquet" and sys.stdout.isatty():
            raise ValueError("--format parquet: expected --output FILE, or a pipe; a terminal cannot show it.")
        _write(rows, chosen, sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    with atomic_file(output) as part, part.open("wb") as file:
        _write(rows, chosen, file)


def _write(rows: pa.Table, chosen: Format, file: Any) -> None:
    rows = _with_interval_texts(rows.rename_columns(_unique(rows.column_names)))
    if chosen == "parquet":
        from pyarrow.parquet import write_table

        write_table(rows, file)
    elif chosen == "csv":
        from pyarrow.csv import write_csv

        write_csv(_flat(rows), file)
    else:
        for row in rows.to_pylist():
            file.write((json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n").encode())


def _unique(names: list[str]) -> list[str]:
    """Column names, each once: a second `a` is `a_1`, as in a table that DuckDB makes of the query."""
    found: list[str] = []
    for name in names:
        free = (each for each in (name, *(f"{name}_{n}" for n in range(1, len(names) + 1))) if each not in found)
        found.append(next(each for each in free if each == name or each not in names))
    return found


def _with_interval_texts(rows: pa.Table) -> pa.Table:
    """Intervals as ISO 8601 durations: neither CSV nor Parquet has them."""
    import pyarrow as pa

    for i, field in enumerate(rows.schema):
        if field.type == pa.month_day_nano_interval():
            texts = pa.array(map(_plain, rows.column(i).to_pylist()), pa.string())
            rows = rows.set_column(i, field.name, texts)
    return rows


def _duration(months: int, days: int, nanoseconds: int) -> str:
    """ISO 8601, such as P14M3DT0.5S; a part may be negative."""
    return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"


def _plain(value: Any) -> Any:
    """What JSON has: numbers that are none (NaN) become null, times and intervals ISO 8601, bytes hexadecimal."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if type(value).__name__ == "MonthDayNano":
        return _duration(*value)
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _flat(rows: pa.Table) -> pa.Table:
    """Nested columns as JSON text: CSV has no lists."""
    import pyarrow as pa

    columns = []
    for column in rows.columns:
        if pa.types.is_nested(column.type):
            column = pa.array([_text(value) for value in column.to_pylist()], pa.string())
        columns.append(column)
    return pa.Table.from_arrays(columns, names=rows.column_names)


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(_plain(value), ensure_ascii=False)


def _print_table(rows: pa.Table, most: int) -> None:
    """Values that are wider than a terminal are folded over lines; into a pipe each row is one line."""
    shown = Table(box=None, header_style="dim")
    for name in rows.column_names:
        shown.add_column(escape(name), overflow="fold", no_wrap=not sys.stdout.isatty())
    for i in range(min(most, rows.num_rows)):
        shown.add_row(*(escape(str(column[i].as_py())) for column in rows.columns))
    console = Console(width=None if sys.stdout.isatty() else 1_000_000, highlight=False)
    console.print(shown, soft_wrap=not sys.stdout.isatty())
    if rows.num_rows > most:
        console.print(f"[dim]{rows.num_rows - most:,} more rows[/]")
