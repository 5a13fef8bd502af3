"""Screens without wells: the name of the sample stands for the well, and no position is made up."""

from __future__ import annotations

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.positions import is_position, well_order
from cytolake.screens.sources import ScreenSource, list_screen

PATTERN = r"(?P<plate>slide\d)/(?P<sample>[^_]+)_(?P<site>\d+)_(?P<channel>[A-Z]+)\.tif"
ROWS = [{"sample": name, "site": site} for name in ("patient 10", "patient 2", "B03") for site in ("1", "2")]


def listing(folder, **fields):
    source = ScreenSource(screen="s", path=str(folder), **fields)
    return list_screen(source, channel_vocabulary().aliases, layout_presets())


@pytest.fixture
def by_index(tmp_path, write_indexed_screen):
    rows = [{**row, "path": f"{row['sample']}_{row['site']}.tif"} for row in ROWS]
    return write_indexed_screen(
        tmp_path / "screen", rows, columns=("path", "plate", "sample", "site", "channel", "treatment")
    )


def test_a_column_of_samples_names_the_wells(by_index):
    found = listing(by_index)
    (plate,) = found.plates
    assert [site.well for site in plate.sites] == ["B03", "B03", "patient 2", "patient 2", "patient 10", "patient 10"]
    assert plate.problems == found.problems == ()


def test_a_group_of_a_pattern_names_the_wells(tmp_path, write_indexed_screen):
    rows = [{"path": f"slide1/{name}_{site}_DNA.tif"} for name in ("control", "b3") for site in (1, 2)]
    folder = write_indexed_screen(tmp_path, rows)
    found = listing(folder, layout="regex", pattern=PATTERN)
    (plate,) = found.plates
    assert [(site.well, site.site) for site in plate.sites] == [(w, s) for w in ("b3", "control") for s in ("1", "2")]
    assert plate.problems == found.problems == ()


@pytest.mark.parametrize("column", ["sample", "well"])
def test_a_plate_map_says_what_was_done_to_samples(by_index, column):
    (by_index / "platemap.csv").write_text(
        f"plate,{column},gene\nP1,patient 2,TP53\nP1,patient 10,MYC\nP1,B03,KRAS\nP1,patient 77,x\n"
    )
    found = listing(by_index)
    (plate,) = found.plates
    assert {row["well"]: row["gene"] for row in plate.wells} == {
        "patient 2": "TP53",
        "patient 10": "MYC",
        "B03": "KRAS",
    }
    assert [problem.problem for problem in (*plate.problems, *found.problems)] == ["bad_well_name"]


def test_samples_are_in_the_catalog_without_a_position(by_index, tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, listing(by_index).plates[0])
    rows = catalog.table("wells").to_pylist()
    assert {(row["well"], row["row"], row["column"]) for row in rows} == {
        ("patient 2", None, None),
        ("patient 10", None, None),
        ("B03", 1, 2),
    }
    assert catalog.table("sites").num_rows == 6


def test_an_index_with_wells_keeps_its_samples_as_facts(tmp_path, write_indexed_screen):
    columns = ("path", "plate", "well", "sample", "site", "channel")
    folder = write_indexed_screen(tmp_path, [{"sample": "patient 2"}], columns=columns)
    (plate,) = listing(folder).plates
    assert plate.wells == ({"well": "B02", "sample": "patient 2"},)


def test_positions_come_before_samples():
    assert sorted(["s10", "s2", "C01", "B12"], key=well_order) == ["B12", "C01", "s2", "s10"]
    assert is_position("AF48")
    assert not any(is_position(text) for text in ("", "b3", "B3", "patient"))
