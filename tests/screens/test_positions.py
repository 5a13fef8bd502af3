from __future__ import annotations

import pytest

from cytolake.screens.plate_format import N_COLUMNS_MAX, N_ROWS_MAX
from cytolake.screens.positions import (
    expected_well,
    name_of_well,
    site_name,
    well_at,
    well_name,
    well_position,
    whole_number,
)
from cytolake.storage.natural_order import natural_order


def test_every_well_of_a_1536_well_plate_comes_back_from_its_name():
    for row in range(N_ROWS_MAX):
        for column in range(N_COLUMNS_MAX):
            name = name_of_well(row, column)
            assert well_name(name) == name
            assert well_position(name) == (row, column)


@pytest.mark.parametrize("text", ["b3", "B03", "03B", "3-b", " B-3 ", "B_03", "B/03", "r02c03", "R2C3", "B003"])
def test_spellings_of_one_well_give_one_name(text):
    assert well_name(text) == "B03"


@pytest.mark.parametrize("text", ["", "B", "03", "B00", "B0", "B49", "AG01", "BA01", "ABC1", "B3x", "r33c01", "B 1 2"])
def test_what_is_no_well_has_no_name(text):
    assert well_name(text) == ""


@pytest.mark.parametrize("text", ["AA01", "aa1", "AA1", "r27c1"])
def test_rows_after_z_have_two_letters(text):
    assert well_name(text) == "AA01"


@pytest.mark.parametrize("text", ["Aa1", "Aa01", "aB12", "Bc3"])
def test_two_letters_of_mixed_case_are_refused_with_the_reason(text):
    assert well_name(text) == ""
    assert "quarter of row" in expected_well(text)
    assert "B03" in expected_well("xyz")


def test_a_site_loses_leading_zeros_and_nothing_else():
    assert [site_name(text) for text in ("002", "2", "2.0", "0", "000", "POS02", "", "1.5")] == [
        *("2", "2", "2", "0", "0", "POS02", "1", "1.5")
    ]


def test_numbers_sort_as_numbers():
    assert sorted(["s10", "s2", "s1", "a", "10", "9"], key=natural_order) == ["9", "10", "a", "s1", "s2", "s10"]


@pytest.mark.parametrize("first", [0, 1])
def test_rows_and_columns_by_number_are_the_wells_by_name(first):
    for row in range(N_ROWS_MAX):
        for column in range(N_COLUMNS_MAX):
            name = name_of_well(row, column)
            assert well_at(str(row + first), f"{column + first:03d}", first, first) == name
            assert well_at(name.rstrip("0123456789"), str(column + first), 1, first) == name


@pytest.mark.parametrize(
    ("row", "column"),
    [("0", "1"), ("1", "0"), ("33", "1"), ("1", "49"), ("", "1"), ("1", ""), ("x1", "1"), ("-1", "1"), ("٣", "1")],
)
def test_numbers_of_no_well_have_no_name(row, column):
    assert well_at(row, column) == ""


def test_a_count_is_a_short_whole_number_or_the_default():
    assert [whole_number(text, default=7) for text in ("", " 2 ", "2.0", "002", "0")] == [7, 2, 2, 2, 0]
    assert [whole_number(text, default=7) for text in ("x", "1.5", "-1", "1e3", "9" * 10, "٣")] == [None] * 6
