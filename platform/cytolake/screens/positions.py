"""Names of places on a plate: wells, sites, and the order people expect them in."""

from __future__ import annotations

import re
from functools import lru_cache

from cytolake.screens.plate_format import N_COLUMNS_MAX, N_ROWS_MAX
from cytolake.storage.natural_order import natural_order

N_DIGITS_MAX = 9  # of a count; more is no count but a barcode in the wrong column

_LETTER_NUMBER = re.compile(r"([A-Za-z]{1,2})[\s_:/-]?0*([1-9][0-9]?)")
_NUMBER_LETTER = re.compile(r"0*([1-9][0-9]?)[\s_:/-]?([A-Za-z]{1,2})")  # 01A, column first
_ROW_COLUMN = re.compile(r"[rR]0*([1-9][0-9]?)[\s_-]?[cC]0*([1-9][0-9]?)")  # Opera Phenix: r03c11
_WHOLE_NUMBER = re.compile(r"([0-9]+)(?:\.0+)?")  # spreadsheets turn 2 into 2.0


@lru_cache(maxsize=4096)  # a plate has at most 1536 wells and ten thousands of images
def well_name(text: str) -> str:
    """`"B03"` for `"b3"`, `"B-03"`, `"B/3"`, `"03B"`, `"r02c03"`; `""` where that is no well of a 1536-well plate.

    `"AA01"` and `"aa1"` are row 27; `"Aa1"` is refused, see `expected_well`.
    """
    text = text.strip()
    if match := _LETTER_NUMBER.fullmatch(text):
        if _is_mixed(match[1]):
            return ""
        letters, column = match[1].upper(), int(match[2])
        row = _row_number(letters)
    elif match := _NUMBER_LETTER.fullmatch(text):
        row, column = _row_number(match[2].upper()), int(match[1])
    elif match := _ROW_COLUMN.fullmatch(text):
        row, column = int(match[1]) - 1, int(match[2])
    else:
        return ""
    return name_of_well(row, column - 1) if row < N_ROWS_MAX and column <= N_COLUMNS_MAX else ""


def expected_well(text: str) -> str:
    """What an error that refuses `text` as a well says was expected."""
    match = _LETTER_NUMBER.fullmatch(text.strip())
    if match is not None and _is_mixed(match[1]):
        return (
            f"rows after Z in two capital letters, such as {match[1].upper()}{int(match[2]):02d}: {match[1]} may as "
            f"well be a quarter of row {match[1][0].upper()}, as some robots write it"
        )
    return "a row letter and a column number, such as B03"


def name_of_well(row: int, column: int) -> str:
    """`"A01"` for row 0, column 0."""
    letters = chr(ord("A") + row) if row < 26 else "A" + chr(ord("A") + row - 26)
    return f"{letters}{column + 1:02d}"


def well_position(well: str) -> tuple[int, int]:
    """(row, column), both from 0, of a name that `well_name` gave.

    Raises:
        ValueError: Not such a name.
    """
    match = _LETTER_NUMBER.fullmatch(well)
    if match is None:
        raise ValueError(f"well {well!r}: expected letters and a number such as B03. Pass it through well_name first.")
    return _row_number(match[1].upper()), int(match[2]) - 1


def is_position(well: str) -> bool:
    """Whether a well is named by its position; else by the sample in it, of which nobody says where it lies."""
    return bool(well) and well_name(well) == well


def well_order(well: str) -> tuple[object, ...]:
    """Sort key: row and column, then samples without a position in the natural order of their names."""
    return (0, *well_position(well), ()) if is_position(well) else (1, 0, 0, natural_order(well))


def site_name(text: str) -> str:
    """A site without leading zeros: `"2"` for `"002"`; other names stay. `"1"` for the only, unnamed site of a well."""
    text = text.strip()
    if match := _WHOLE_NUMBER.fullmatch(text):
        return match[1].lstrip("0") or "0"
    return text or "1"


def whole_number(text: str, default: int) -> int | None:
    """A count written in a CSV; `default` where nothing is written, None where it is no whole number."""
    text = text.strip()
    if not text:
        return default
    match = _WHOLE_NUMBER.fullmatch(text)
    return int(match[1]) if match and len(match[1]) <= N_DIGITS_MAX else None


def well_at(row: str, column: str, first_row: int = 1, first_column: int = 1) -> str:
    """`"B03"` for row `"2"` (or `"B"`) and column `"3"`; `""` where that is no well of a 1536-well plate.

    Args:
        row: A number, or one or two letters.
        column: A number.
        first_row: Number of the topmost row.
        first_column: Number of the leftmost column.
    """
    x = whole_number(column, default=-1)
    y = whole_number(row, default=-1)
    if x is None or x < first_column:
        return ""
    if y is None:
        letters = row.strip()
        return well_name(f"{letters}{x - first_column + 1}") if letters.isalpha() else ""
    y, x = y - first_row, x - first_column
    return name_of_well(y, x) if 0 <= y < N_ROWS_MAX and 0 <= x < N_COLUMNS_MAX else ""


def _is_mixed(letters: str) -> bool:
    return len(letters) == 2 and letters.upper() != letters and letters.lower() != letters


def _row_number(letters: str) -> int:
    """Row from 0 of one or two capital letters; past the last row where the letters name none."""
    if len(letters) == 1:
        return ord(letters) - ord("A")
    return 26 + ord(letters[1]) - ord("A") if letters[0] == "A" else N_ROWS_MAX
