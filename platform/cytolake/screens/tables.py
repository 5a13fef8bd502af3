"""CSV files of a screen: read whole, checked for what would make a row mean something else."""

from __future__ import annotations

import csv
import io
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cytolake.screens.plate import Problem, ScreenError
from cytolake.screens.source_folder import PathRefusedError, SourceFolder

TABLE_BYTES_MAX = 1 << 30  # unpacked; a table of 10 million images with 100 bytes each


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a CSV: its line in the file, from 1 for the header, and its cells by column, stripped."""

    line: int
    cells: dict[str, str]


def read_table(folder: SourceFolder, file: str, screen: str) -> tuple[list[str], list[TableRow], list[Problem]]:
    """Columns and rows of a CSV, and a problem for each row with more cells than there are columns.

    Nobody can tell which cell of such a row belongs to which column, so it is left out: an image in the wrong well is
    worse than none. A row with fewer cells ends in empty ones. Blank lines do not count. `.gz` is unpacked.

    Cells are parted by tabs where the name ends in .tsv or .txt; else by commas, or by semicolons or tabs where the
    header has these and no comma.

    Raises:
        ScreenError: `missing_file`, `unreadable_file` (not UTF-8 text), `duplicate_column`, `path_outside_screen`.
    """
    with _told(file, screen):
        lines = _numbered_lines(folder, file)
        columns = _columns(next(lines, (0, []))[1], file, screen)
        rows, problems = [], []
        for line, cells in lines:
            if any(cell.strip() for cell in cells[len(columns) :]):
                problems.append(_ragged(screen, file, line, len(cells), len(columns)))
            elif any(cell.strip() for cell in cells):
                stripped = [cell.strip() for cell in cells] + [""] * (len(columns) - len(cells))
                rows.append(TableRow(line, dict(zip(columns, stripped, strict=False))))
    return columns, rows, problems


def read_header(folder: SourceFolder, file: str, screen: str) -> list[str]:
    """Columns of a CSV, without reading its rows.

    Raises:
        ScreenError: As `read_table`.
    """
    with _told(file, screen):
        return _columns(next(_numbered_lines(folder, file), (0, []))[1], file, screen)


def _numbered_lines(folder: SourceFolder, file: str) -> Iterator[tuple[int, list[str]]]:
    """Cells of each row, with the number of the line that ends it."""
    text = _unpacked(folder.read_bytes(file), file).decode("utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, file))
    for cells in reader:
        yield reader.line_num, cells


def _columns(header: list[str], file: str, screen: str) -> list[str]:
    columns = [column.strip() for column in header]
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
def _told(file: str, screen: str) -> Iterator[None]:
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
    except (OSError, UnicodeDecodeError, csv.Error, zlib.error, EOFError) as error:
        raise _refusal(
            screen, file, "unreadable_file", str(error), "a CSV file in UTF-8", "Save it again as CSV (UTF-8)."
        ) from error


def _ragged(screen: str, file: str, line: int, n_cells: int, n_columns: int) -> Problem:
    return Problem(
        screen=screen,
        file=file,
        problem="ragged_row",
        found=f"{n_cells} cells in line {line}",
        expected=f"at most {n_columns}, as many as columns",
        next_step="Put quotes around the cell that holds a comma, or remove a cell; until then the row is left out.",
    )


def _refusal(screen: str, file: str, problem: str, found: str, expected: str, next_step: str) -> ScreenError:
    return ScreenError(
        Problem(screen=screen, file=file, problem=problem, found=found, expected=expected, next_step=next_step)
    )


def _unpacked(data: bytes, file: str) -> bytes:
    if not file.lower().endswith(".gz"):
        return data
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    text = unpacker.decompress(data, TABLE_BYTES_MAX)
    if unpacker.unconsumed_tail:
        raise OSError(f"more than {TABLE_BYTES_MAX} bytes when unpacked")
    if not unpacker.eof:
        raise EOFError("a packed file that ends before its end mark")
    return text


def _delimiter(text: str, file: str) -> str:
    if file.lower().removesuffix(".gz").endswith((".tsv", ".txt")):
        return "\t"
    header = text.partition("\n")[0]
    return next((mark for mark in (",", ";", "\t") if mark in header), ",")
