from __future__ import annotations

import pytest

from cytolake.screens.positions import (
    N_COLUMNS_MAX,
    N_ROWS_MAX,
    name_of_well,
    natural_order,
    site_name,
    well_name,
    well_position,
)


def test_every_well_of_a_1536_well_plate_comes_back_from_its_name():
    for row in range(N_ROWS_MAX):
        for column in range(N_COLUMNS_MAX):
            name = name_of_well(row, column)
            assert well_name(name) == name
            assert well_position(name) == (row, column)


@pytest.mark.parametrize("text", ["b3", "B03", " B-3 ", "B_03", "B/03", "r02c03", "R2C3", "B003"])
def test_spellings_of_one_well_give_one_name(text):
    assert well_name(text) == "B03"


@pytest.mark.parametrize("text", ["", "B", "03", "B00", "B0", "B49", "AG01", "BA01", "ABC1", "B3x", "r33c01", "B 1 2"])
def test_what_is_no_well_has_no_name(text):
    assert well_name(text) == ""


def test_a_site_loses_leading_zeros_and_nothing_else():
    assert [site_name(text) for text in ("002", "2", "2.0", "0", "000", "POS02", "", "1.5")] == [
        *("2", "2", "2", "0", "0", "POS02", "1", "1.5")
    ]


def test_numbers_sort_as_numbers():
    assert sorted(["s10", "s2", "s1", "a", "10", "9"], key=natural_order) == ["9", "10", "a", "s1", "s2", "s10"]
