"""Standard plates: how many wells, in how many rows and columns. The one list that all pages and rules draw from.

Source: ANSI SLAS 4-2004 (R2012) for 96, 384 and 1536 wells; makers' catalogues for the others.
"""

from __future__ import annotations

PLATE_FORMATS = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Wells -> rows and columns, from small to large."""
N_ROWS_MAX, N_COLUMNS_MAX = PLATE_FORMATS[1536]
ASSIGNED_FORMATS = tuple(PLATE_FORMATS[n] for n in (96, 384, 1536))
"""Plates on which positions without a well are placed. Fixed: ids come from the wells that were assigned."""


def plate_format(last_row: int, last_column: int) -> tuple[int, int]:
    """Rows and columns of the smallest standard plate that holds a well, both counted from 0.

    A well of no standard plate gives the smallest grid that holds it.
    """
    for rows, columns in PLATE_FORMATS.values():
        if last_row < rows and last_column < columns:
            return rows, columns
    return last_row + 1, last_column + 1
