"""One list of plate formats for all users."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from cytolake.qc.levels import Places
from cytolake.reports.plate_maps import PlateGrid
from cytolake.screens.plate_format import ASSIGNED_FORMATS, PLATE_FORMATS, plate_format

PAGE = Path(__file__).resolve().parents[2] / "serve" / "page" / "platemap.js"


@pytest.mark.parametrize("n_wells", PLATE_FORMATS)
def test_a_format_has_its_wells_and_is_found_by_its_last_one(n_wells):
    rows, columns = PLATE_FORMATS[n_wells]
    assert rows * columns == n_wells
    assert plate_format(rows - 1, columns - 1) == (rows, columns)


@pytest.mark.parametrize(
    ("last_row", "last_column", "shape"),
    [
        (0, 0, (2, 3)),
        (2, 1, (3, 4)),
        (1, 5, (4, 6)),
        (5, 7, (6, 8)),
        (7, 11, (8, 12)),
        (8, 0, (16, 24)),
        (0, 47, (32, 48)),
        (40, 60, (41, 61)),
    ],
)
def test_a_plate_is_the_smallest_standard_one_that_holds_its_wells(last_row, last_column, shape):
    assert plate_format(last_row, last_column) == shape


def test_wells_are_assigned_as_before_the_small_formats_were_known():
    assert ASSIGNED_FORMATS == ((8, 12), (16, 24), (32, 48))


def test_a_plate_of_48_wells_has_its_own_rim():
    row, column = np.divmod(np.arange(48), 8)
    wells = tuple(f"{i:02d}" for i in range(48))
    places = Places(well_of_site={}, wells=wells, row=row, column=column, control=("",) * 48)
    assert places.is_edge.sum() == 2 * 8 + 2 * 4
    grid = [{"well_id": well, "row": r, "column": c} for well, r, c in zip(wells, row, column, strict=True)]
    assert PlateGrid(grid).shape == (6, 8)


def test_the_page_has_no_list_of_its_own():
    assert not re.search(r"\[\s*8\s*,\s*12\s*\]", PAGE.read_text(encoding="utf-8"))
    assert "this.formats" in PAGE.read_text(encoding="utf-8")
