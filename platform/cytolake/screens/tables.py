"""Reader of a screen's tables, CSV or Parquet, with checks for damage that would change the meaning of a row."""

from __future__ import annotations

import codecs
import csv
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cytolake.screens.label_vocabulary import nfc
from cytolake.screens.plate import Problem, ScreenError
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

_WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods are zip files; .xls is a compound file
_BLANK = ' \r\t,;"'
TABLE_BYTES_MAX = 1 << 30  # unpacked; a table of 10 million images with 100 bytes each


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row: its line in a CSV file, from 1 for the header (in Parquet as many), and its stripped cells."""

    line: int
    cells: dict[str, str]


def read_table(folder: SourceFolder, file: str, screen: str) -> tuple[list[str], list[TableRow], list[Problem]]:
    """Columns and rows of a table, and a problem for each row with more cells than columns.

    The columns of such a row's cells are unknown, so it is left out: an image in the wrong well is
    worse than none. A row with fewer cells ends in empty ones. Blank lines do not count. `.gz` is unpacked.

    Cells are parted by what parts the header's: commas, semicolons or tabs, whichever it has most of outside quotes. A
    byte order mark, and the line `sep=;` that Excel writes, are no part of it. UTF-8, or UTF-16 with its mark. Names of
    columns are in NFC. A file named `.parquet` is read as Parquet: a number as it is written in a CSV, a null as an
    empty cell, a column of lists or structs left out.

    Raises:
        ScreenError: `missing_file`, `unreadable_file` (no such text, no Parquet), `duplicate_column`,
            `path_outside_screen`.
    """
    with table_errors(file, screen):
        lines = _numbered_lines(folder, file)
        columns = checked_columns(next(lines, (0, []))[1], file, screen)
        rows, problems = [], []
        for line, cells in lines:
            if any(cell.strip() for cell in cells[len(columns) :]):
                problems.append(ragged_row(screen, file, line, len(cells), len(columns)))
            elif any(cell.strip() for cell in cells):
                stripped = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
                rows.append(TableRow(line, dict(zip(columns, stripped, strict=False))))
    return columns, rows, problems


def read_header(folder: SourceFolder, file: str, screen: str) -> list[str]:
    """Columns of a CSV, without reading its rows.

    Raises:
        ScreenError: As `read_table`.
    """
    with table_errors(file, screen):
        return checked_columns(next(_numbered_lines(folder, file, header_only=True), (0, []))[1], file, screen)


def _numbered_lines(folder: SourceFolder, file: str, *, header_only: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row, with the number of the line that ends it."""
    if file.lower().endswith(".parquet"):
        yield from _parquet_lines(folder.read_bytes(file), header_only=header_only)
        return
    data = unpacked(folder.read_bytes(file), file)
    is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    n_before = 0
    header, line_end, rest = text.partition("\n")
    while line_end and not header.strip(_BLANK):
        text, n_before = rest, n_before + 1
        header, line_end, rest = text.partition("\n")
    if header.strip().strip('"').lower() in ("sep=,", "sep=;", "sep=\t", "sep="):
        text, n_before = rest, n_before + 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=header_delimiter(text, file))
    for cells in reader:
        yield reader.line_num + n_before, cells


def _parquet_lines(data: bytes, *, header_only: bool) -> Iterator[tuple[int, list[str]]]:
    import pyarrow as pa  # the rest of screens needs no Arrow
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(io.BytesIO(data)) as file:
            names = [
                field.name
                for field in file.schema_arrow
                if not pa.types.is_nested(field.type) and not field.name.startswith("__index_level_")
            ]
            yield 1, names
            if header_only:
                return
            columns = [cell_texts(file.read(columns=[name])[name]) for name in names]
    except pa.ArrowException as error:
        raise OSError(str(error)) from error
    for number, cells in enumerate(zip(*columns, strict=True), 2):
        yield number, list(cells)


def cell_texts(column: Any) -> list[str]:
    """Values of a Parquet column as a CSV would have them; whole numbers without a decimal point."""
    is_single = str(column.type) == "float"
    return [_text(value, is_single=is_single) for value in column.to_pylist()]


def _text(value: Any, *, is_single: bool) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 2**53:
            return str(int(value))
        return f"{value:.8g}" if is_single else repr(value)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def checked_columns(header: list[str], file: str, screen: str) -> list[str]:
    """Names of columns without blanks at their ends, in NFC.

    Raises:
        ScreenError: Two of one name.
    """
    columns = [nfc(column.strip()) for column in header]
    repeated = [column for column, n in Counter(columns).items() if n > 1 and column]
    if repeated:
        raise _refusal(
            screen,
            file,
            "duplicate_column",
            ", ".join(repeated) + " twice",
            "each column once",
            "Rename or remove one.",
        )
    return columns


@contextmanager
def table_errors(file: str, screen: str) -> Iterator[None]:
    """Turns what reading and unpacking raise into a ScreenError that names the file."""
    missing = ("missing_file", "no such file", "a CSV file", "Correct its name, or write it.")
    try:
        yield
    except PathRefusedError as refused:
        if refused.problem in ("missing_file", "missing_path"):
            raise _refusal(screen, file, *missing) from refused
        raise _refusal(screen, file, refused.problem, refused.found, refused.expected, refused.next_step) from refused
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _refusal(screen, file, *missing) from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        number = before.count(b"\n") + 1
        line = before.rpartition(b"\n")[2] + error.object[error.start : error.start + 12].split(b"\n")[0]
        text = line[-24:].decode("cp1252", "replace").strip()
        raise _refusal(
            screen,
            file,
            "unreadable_file",
            f"line {number} is not in UTF-8 ({text!r}, if it is in Windows-1252)",
            "a CSV file in UTF-8, or Parquet",
            "Save it again as CSV UTF-8 (in Excel a type of its own); no other encoding is guessed, since names would "
            "change.",
        ) from error
    except (OSError, csv.Error, zlib.error, EOFError) as error:
        raise _refusal(
            screen,
            file,
            "unreadable_file",
            str(error),
            "a CSV file in UTF-8, or Parquet",
            "Save it again as CSV (UTF-8).",
        ) from error


def ragged_row(screen: str, file: str, line: int, n_cells: int, n_columns: int) -> Problem:
    """That a row has more cells than there are columns (of a table of objects also fewer)."""
    return Problem(
        screen=screen,
        file=file,
        problem="ragged_row",
        found=f"{n_cells} cells in line {line}",
        expected=f"{'at most ' if n_cells > n_columns else ''}{n_columns}, as many as columns",
        next_step="Put quotes around the cell that holds a comma, or remove or add a cell; until then the row is left "
        "out.",
    )


def _refusal(screen: str, file: str, problem: str, found: str, expected: str, next_step: str) -> ScreenError:
    return ScreenError(
        Problem(screen=screen, file=file, problem=problem, found=found, expected=expected, next_step=next_step)
    )


def unpacked(data: bytes, file: str) -> bytes:
    """The bytes of a file that may be named `.gz`.

    Raises:
        OSError: More than TABLE_BYTES_MAX, a packed file that ends too early (EOFError), or a workbook.
    """
    if data.startswith(_WORKBOOKS):
        raise OSError("a workbook of a spreadsheet program, or an archive")
    if not file.lower().endswith(".gz"):
        return data
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    text = unpacker.decompress(data, TABLE_BYTES_MAX)
    if unpacker.unconsumed_tail:
        raise OSError(f"more than {TABLE_BYTES_MAX} bytes when unpacked")
    if not unpacker.eof:
        raise EOFError("a packed file that ends before its end mark")
    return text


def header_delimiter(text: str, file: str) -> str:
    """What parts the cells of the header, outside quotes; the extension decides where it has none or as many."""
    header = "".join(text.partition("\n")[0].split('"')[::2])
    is_tabs = file.lower().removesuffix(".gz").endswith((".tsv", ".txt"))
    return max("\t,;" if is_tabs else ",;\t", key=header.count)
