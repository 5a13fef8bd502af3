from __future__ import annotations

import csv

import numpy as np
import pytest
import tifffile

from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates


def listed(folder):
    return list_plates(ScreenSource(screen="s", path=str(folder)))


def test_rows_become_sites_in_plate_order_with_channels_in_index_order(tmp_path, write_indexed_screen):
    rows = [
        {"well": well, "site": site, "channel": channel}
        for well in ("AA01", "B10", "B02")
        for site in ("10", "2")
        for channel in ("ER", "DNA")
    ]
    write_indexed_screen(tmp_path, rows)
    (plate,) = listed(tmp_path)
    assert plate.channels == ("ER", "DNA")
    assert [(site.well, site.site) for site in plate.sites] == [
        *(("B02", "2"), ("B02", "10"), ("B10", "2"), ("B10", "10"), ("AA01", "2"), ("AA01", "10"))
    ]
    for site in plate.sites:
        pixels = read_site(site)
        expected = [tifffile.imread(path) for path in site.image_paths]
        np.testing.assert_array_equal(pixels, np.stack(expected))
        assert pixels.dtype == np.uint16


def test_the_order_of_rows_does_not_change_the_sites(tmp_path, write_indexed_screen):
    rows = [{"well": well, "z": z, "timepoint": t} for well in ("B02", "C03") for z in ("1", "2") for t in ("0", "1")]
    one = write_indexed_screen(tmp_path, rows)
    first = listed(one)[0].sites
    lines = (one / "index.csv").read_text().splitlines()
    (one / "index.csv").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    assert listed(one)[0].sites == first
    assert len(first) == 8


def test_a_plate_without_wells_is_placed_in_the_order_of_its_sites_and_says_so(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"well": "", "site": site} for site in ("076", "002", "100")])
    (plate,) = listed(tmp_path)
    assert [(site.well, site.site) for site in plate.sites] == [("A01", "2"), ("A02", "76"), ("A03", "100")]
    (problem,) = plate.problems
    assert problem.problem == "wells_assigned"
    assert "site 76 in A02" in problem.next_step


def test_one_row_without_a_well_among_others_is_a_bad_well(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"well": ""}, {"well": "B02"}, {"well": "Q99"}])
    (plate,) = listed(tmp_path)
    assert [site.well for site in plate.sites] == ["B02"]
    assert [problem.problem for problem in plate.problems] == ["bad_well_name", "bad_well_name"]
    assert "'Q99' (line 4 of index.csv)" in plate.problems[1].found


def test_rows_without_a_plate_are_of_the_folder_and_rows_without_a_place_are_a_problem(
    tmp_path, write_indexed_screen, of_screen
):
    folder = write_indexed_screen(
        tmp_path / "week3", [{"plate": ""}, {"plate": "", "well": "", "site": "", "path": "psf.tif"}]
    )
    (plate,) = listed(folder)
    assert plate.plate == "week3"
    (problem,) = of_screen(folder)
    assert (problem.problem, problem.plate, problem.file) == ("unknown_position", "", "psf.tif")


def test_what_the_index_says_of_a_well_goes_along(tmp_path, write_indexed_screen):
    rows = [{"treatment": "taxol"}, {"site": "2", "treatment": "taxol"}, {"well": "B03", "treatment": "water"}]
    write_indexed_screen(tmp_path, rows)
    assert listed(tmp_path)[0].wells == ({"well": "B02", "treatment": "taxol"}, {"well": "B03", "treatment": "water"})


def test_of_two_images_for_one_channel_the_first_stays(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{}, {"path": "images/again.tif"}, {"well": "B03", "path": "images/again.tif"}])
    (plate,) = listed(tmp_path)
    assert [site.well for site in plate.sites] == ["B02"]
    assert plate.sites[0].image_paths[0].endswith("P1_B02_1_DNA.tif")
    assert [(problem.problem, problem.well, problem.file) for problem in plate.problems] == [
        ("duplicate_image", "B02", "images/again.tif"),
        ("duplicate_image", "B03", "images/again.tif"),
    ]


def test_when_every_file_is_missing_nothing_is_listed(tmp_path, write_indexed_screen):
    rows = [{"site": str(site)} for site in range(40)]
    write_indexed_screen(tmp_path, rows, absent=[f"images/P1_B02_{site}_DNA.tif" for site in range(40)])
    with pytest.raises(ScreenError) as caught:
        listed(tmp_path)
    assert [problem.problem for problem in caught.value.problems] == ["no_images"] + ["missing_file"] * 20
    assert "20 more" in caught.value.problems[0].next_step


@pytest.mark.parametrize("column", ["path", "plate", "well", "site", "channel"])
def test_an_index_without_a_column_is_refused_by_its_name(tmp_path, write_indexed_screen, column):
    columns = [name for name in ("path", "plate", "well", "site", "channel") if name != column]
    write_indexed_screen(tmp_path, [{}], columns=columns)
    with pytest.raises(ScreenError, match=rf"file index.csv: missing column: .*; no {column}, expected") as caught:
        listed(tmp_path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "path",
    ["../secret.tif", "/etc/passwd", "a/../../secret.tif", "file:///etc/passwd", "s3://b/k", "C:\\x.tif", "..\\x"],
)
def test_a_path_that_leaves_the_screen_is_refused(tmp_path, write_indexed_screen, path):
    tifffile.imwrite(tmp_path / "secret.tif", np.zeros((4, 4), np.uint8))
    folder = tmp_path / "screen"
    write_indexed_screen(folder, [{}, {"well": "B03", "path": path}])
    (plate,) = listed(folder)
    assert [problem.problem for problem in plate.problems] == ["path_outside_screen"]
    assert [site.well for site in plate.sites] == ["B02"]


@pytest.mark.parametrize("where", ["file", "folder"])
def test_a_link_that_leaves_the_screen_is_refused_and_one_that_stays_is_not(tmp_path, write_indexed_screen, where):
    tifffile.imwrite(tmp_path / "secret.tif", np.zeros((4, 4), np.uint8))
    folder = write_indexed_screen(tmp_path / "screen", [{}])
    (folder / "inside.tif").symlink_to(folder / "images" / "P1_B02_1_DNA.tif")
    (folder / "out").symlink_to(tmp_path / "secret.tif" if where == "file" else tmp_path)
    target = "out" if where == "file" else "out/secret.tif"
    with (folder / "index.csv").open("w", newline="") as text:
        rows = [("inside.tif", "P1", "B02", "1", "DNA"), (target, "P1", "B03", "1", "DNA")]
        csv.writer(text).writerows([("path", "plate", "well", "site", "channel"), *rows])
    (plate,) = listed(folder)
    assert [site.well for site in plate.sites] == ["B02"]
    of_wells = [(problem.problem, problem.well) for problem in plate.problems if problem.problem != "unlisted_files"]
    assert of_wells == [("path_outside_screen", "B03")]


def test_a_row_without_channel_or_with_a_strange_time_is_reported(tmp_path, write_indexed_screen, codes):
    write_indexed_screen(tmp_path, [{}, {"channel": "", "site": "2"}, {"site": "3", "timepoint": "noon"}])
    (plate,) = listed(tmp_path)
    assert codes(plate) == ["missing_channel", "bad_timepoint"]
