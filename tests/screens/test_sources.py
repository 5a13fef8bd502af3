from __future__ import annotations

import pytest

from cytolake.screens.channel_names import alias_table
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates


def refused(**source):
    with pytest.raises(ScreenError) as caught:
        list_plates(ScreenSource(screen="s", **source))
    return caught.value.problems


def test_a_missing_folder_is_named(tmp_path):
    (problem,) = refused(path=str(tmp_path / "nowhere"))
    assert problem.problem == "missing_folder"
    assert str(tmp_path / "nowhere") in str(problem)


def test_a_file_is_no_screen(tmp_path):
    (tmp_path / "file").write_text("x")
    assert refused(path=str(tmp_path / "file"))[0].problem == "not_a_folder"


def test_an_empty_folder_is_distinguished_from_one_without_images(tmp_path):
    assert refused(path=str(tmp_path))[0].problem == "empty_folder"
    (tmp_path / "notes.txt").write_text("x")
    (problem,) = refused(path=str(tmp_path))
    assert problem.problem == "unknown_layout"
    assert "notes.txt" in problem.found
    assert "index.csv" in problem.next_step


@pytest.mark.parametrize("layout", ["ome-zarr", "imagexpress"])
def test_a_folder_without_images_of_its_layout_is_refused(tmp_path, layout):
    (tmp_path / "notes.txt").write_text("x")
    (problem,) = refused(path=str(tmp_path), layout=layout)
    assert problem.problem == "no_images"
    assert layout in problem.found


@pytest.mark.parametrize("scheme", ["gs", "http", "file", "ftp"])
def test_a_uri_of_another_store_is_refused_before_anything_is_opened(scheme):
    assert refused(path=f"{scheme}://bucket/screen")[0].problem == "unsupported_path"


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (problem,) = refused(path=str(tmp_path), layout="zarr")
    assert problem.problem == "unknown_layout"
    assert "ome-zarr" in problem.expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": ""},
        {"screen": " "},
        {"path": ""},
        {"z": "middle"},
        {"layout": "regex"},
        {"pattern": "(?P<well>.+)"},
        {"layout": "regex", "pattern": "("},
        {"layout": "regex", "pattern": "(?P<plate>.+)"},
        {"channel_names": ("Alexa 488",)},
    ],
)
def test_a_wrong_config_stops_before_it_reads(wrong):
    with pytest.raises(ValueError, match="expected"):
        ScreenSource(**{"screen": "s", "path": "p", **wrong})


def test_a_declared_channel_that_one_site_lacks_is_a_problem_of_that_site(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{}, {"channel": "ER"}, {"well": "B03"}])
    (plate,) = list_plates(ScreenSource(screen="s", path=str(tmp_path), channels=("DNA", "ER")))
    (problem,) = plate.problems
    assert (problem.problem, problem.well, problem.site, problem.channel) == ("missing_channel", "B03", "1", "ER")
    assert plate.sites[1].channels == ("DNA",)


def test_a_declared_channel_that_no_site_has_is_one_problem(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"well": f"B{n:02d}"} for n in range(1, 9)])
    (plate,) = list_plates(ScreenSource(screen="s", path=str(tmp_path), channels=("DNA", "Mito")))
    (problem,) = plate.problems
    assert (problem.problem, problem.well, problem.channel) == ("missing_channel", "", "Mito")


def test_without_declared_channels_a_site_should_have_what_most_have(tmp_path, write_indexed_screen):
    rows = [{"well": well, "channel": channel} for well in ("B02", "B03", "B04") for channel in ("DNA", "ER")]
    write_indexed_screen(tmp_path, rows[:-1])
    (plate,) = list_plates(ScreenSource(screen="s", path=str(tmp_path)))
    assert [(problem.problem, problem.well, problem.channel) for problem in plate.problems] == [
        ("missing_channel", "B04", "ER")
    ]


def test_a_lost_file_is_reported_once_and_not_again_as_a_missing_channel(tmp_path, write_indexed_screen, codes):
    rows = [{"well": well, "channel": channel} for well in ("B02", "B03", "B04") for channel in ("DNA", "ER")]
    write_indexed_screen(tmp_path, rows, absent=["images/P1_B03_1_ER.tif"])
    (plate,) = list_plates(ScreenSource(screen="s", path=str(tmp_path), channels=("DNA", "ER")))
    assert codes(plate) == ["missing_file"]


def test_channels_are_named_as_declared(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"channel": "w1 Hoechst"}, {"channel": "mystery"}])
    vocabulary = alias_table({"DNA": ["hoechst"]})
    (plate,) = list_plates(ScreenSource(screen="s", path=str(tmp_path), channels=("Hoechst",)), vocabulary)
    assert plate.channels == ("DNA", "mystery")
    assert plate.sites[0].channels == ("DNA", "mystery")
    assert plate.problems == ()


def test_the_plate_map_names_the_batch(tmp_path, write_indexed_screen, codes):
    write_indexed_screen(tmp_path, [{"plate": "P1"}, {"plate": "P2"}, {"plate": "P2", "well": "B03"}, {"plate": "P3"}])
    (tmp_path / "platemap.csv").write_text("plate,well,batch\nP1,B02,week1\nP2,B02,week2\nP2,B03,week9\nP3,B02,\n")
    one, two, three = list_plates(ScreenSource(screen="s", path=str(tmp_path)))
    assert (one.batch, two.batch, three.batch) == ("week1", "week2", "s/P3")
    assert (codes(one), codes(two), codes(three)) == ([], ["mixed_batch"], [])
