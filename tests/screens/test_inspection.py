from __future__ import annotations

import dataclasses
import io
import json

import pytest
import tifffile
import yaml
from pydantic import TypeAdapter
from rich.console import Console

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import Inspection, inspect_screen
from cytolake.cli.print_inspection import print_inspection
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates


def inspected(folder, crop_size=8, **fields):
    source = ScreenSource(**{"screen": "s", "path": str(folder), **fields})
    return inspect_screen(source, channel_vocabulary().aliases, layout_presets(), crop_size)


def printed(inspection: Inspection, width=200) -> str:
    text = io.StringIO()
    print_inspection(inspection, Console(file=text, width=width))
    return text.getvalue()


def state(folder):
    """Every name below a folder, with its size and time of change."""
    return sorted((path, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.fixture
def screen(tmp_path, write_indexed_screen):
    """Plate P1: two wells of two channels, of which one image is lost; P2: one well at two times; both mapped."""
    rows = [{"well": well, "channel": channel} for well in ("B02", "B03") for channel in ("DAPI", "mystery")]
    rows += [{"plate": "P2", "channel": "DAPI", "timepoint": t} for t in ("0", "1")]
    folder = write_indexed_screen(tmp_path / "screen", rows, absent=["images/P1_B03_1_mystery.tif"])
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,B02,TP53\nP1,B03,KRAS\nP2,B02,MYC\n")
    return folder


def test_what_is_found_is_what_an_ingest_would_list(screen):
    inspection = inspected(screen)
    plates = list_plates(ScreenSource(screen="s", path=str(screen)), channel_vocabulary().aliases, layout_presets())
    assert inspection.layout == "index-csv"
    assert [plate.plate for plate in inspection.plates] == [plate.plate for plate in plates]
    assert inspection.total("n_sites") == sum(len(plate.sites) for plate in plates) == 4
    assert sum(problem.n for problem in inspection.problems) == sum(len(plate.problems) for plate in plates) == 1
    assert inspection.problems[0].example == str(plates[0].problems[0])
    one, two = inspection.plates
    assert (one.n_wells, one.wells_in_map, one.wells_with_images_in_map, one.n_timepoints) == (2, 2, 2, 1)
    assert (two.n_wells, two.n_timepoints, two.n_problems) == (1, 2, 0)
    assert one.sizes == ("24 x 32 uint16",)
    assert one.n_crops == 2 * (24 // 8) * (32 // 8)
    assert one.n_bytes == (2 + 1) * 24 * 32 * 2


def test_channels_are_shown_under_both_names_with_the_sites_that_have_them(screen):
    found = {channel.found: (channel.name, channel.is_known, channel.n_sites) for channel in inspected(screen).channels}
    assert found == {"DAPI": ("DNA", True, 4), "mystery": ("mystery", False, 1)}


def test_nothing_is_written(screen):
    before = state(screen)
    printed(inspected(screen))
    assert state(screen) == before


def test_every_layout_says_whether_it_fits_and_one_is_used(screen):
    inspection = inspected(screen)
    assert {each.layout for each in inspection.layouts} == {preset.name for preset in layout_presets()}
    assert [each.layout for each in inspection.layouts if each.is_used] == ["index-csv"]
    assert all(each.said for each in inspection.layouts)


def test_the_fields_to_set_give_the_same_plates(screen):
    inspection = inspected(screen, z="max")
    name, _, value = inspection.assignment.partition("=")
    assert name == "screens.sources"
    (source,) = TypeAdapter(tuple[ScreenSource, ...]).validate_python(yaml.safe_load(value))
    assert source == ScreenSource(screen="s", path=str(screen), layout="index-csv", z="max")
    assert source == eval(inspection.recipe, {"ScreenSource": ScreenSource})  # a recipe's own text


def test_a_folder_of_no_layout_is_an_answer(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    inspection = inspected(tmp_path)
    assert not inspection.can_ingest
    assert inspection.layout == ""
    assert [problem.problem for problem in inspection.problems] == ["unknown_layout"]
    assert any("regex" in advice for advice in inspection.advice)
    assert "nothing" in printed(inspection)


@pytest.mark.parametrize("path", ["nowhere", "gs://bucket/x"])
def test_a_folder_that_is_not_there_is_an_error(tmp_path, path):
    with pytest.raises(ScreenError):
        inspected(tmp_path / path if "://" not in path else path)


def test_absolute_paths_of_another_machine_give_the_prefix_to_set(tmp_path, write_indexed_screen):
    folder = write_indexed_screen(tmp_path, [{"path": "images/a.tif"}])
    text = (folder / "index.csv").read_text().replace("images/a.tif", "/mnt/nas/2024/screen7/images/a.tif")
    (folder / "index.csv").write_text(text)
    inspection = inspected(folder)
    assert not inspection.can_ingest
    (advice,) = [advice for advice in inspection.advice if "path_prefix" in advice]
    assert "'/mnt/nas/2024/screen7'" in advice
    assert inspected(folder, path_prefix=("/mnt/nas/2024/screen7",)).total("n_sites") == 1


def test_a_damaged_header_is_reported_before_the_ingest_meets_it(screen):
    (screen / "images" / "P1_B02_1_DAPI.tif").write_bytes(b"II*\0cut")
    inspection = inspected(screen)
    assert [(problem.problem, problem.n) for problem in inspection.problems] == [
        ("missing_file", 1),
        ("truncated_file", 1),
    ]
    assert inspection.plates[0].n_problems == 2


def test_images_of_two_sizes_are_reported(screen):
    tifffile.imwrite(screen / "images" / "P1_B02_1_DAPI.tif", [[1, 2], [3, 4]], photometric="minisblack", dtype="uint8")
    assert set(inspected(screen).plates[0].sizes) == {"24 x 32 uint16", "2 x 2 uint8"}


def test_planes_are_counted_whatever_becomes_of_them(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"z": z, "channel": c} for z in ("1", "2", "3") for c in ("DNA", "ER")])
    kept, projected = (inspected(tmp_path, z=z).plates[0] for z in ("keep", "max"))
    assert (kept.n_sites, kept.n_planes) == (3, 3)
    assert (projected.n_sites, projected.n_planes) == (1, 3)
    assert kept.n_bytes == projected.n_bytes == 6 * 24 * 32 * 2  # each pixel is read once either way


def test_a_long_value_of_the_plate_map_is_cut_visibly(screen):
    from cytolake.cli.print_inspection import _cut

    assert _cut("x" * 40) == "x" * 40
    assert _cut("x" * 41) == "x" * 39 + "…"


def test_an_inspection_is_json(screen):
    shown = json.loads(json.dumps(dataclasses.asdict(inspected(screen))))
    assert shown["plates"][0]["plate"] == "P1"
    assert shown["layouts"][0]["layout"] == "index-csv"


@pytest.mark.parametrize("width", [60, 200])
def test_the_page_shows_plates_channels_problems_and_what_to_set(screen, width):
    shown = " ".join(printed(inspected(screen), width).split())
    for part in ("P1", "mystery", "missing_file", "index-csv", "An ingest would take 2 plates", "--set"):
        assert part in shown, part


def test_names_that_look_like_markup_are_printed_as_they_are(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path / "[bold]x[", [{"plate": "[red]P1[/]", "channel": "[/]", "path": "a.tif"}])
    shown = printed(inspected(tmp_path / "[bold]x["))
    assert "[red]P1[/]" in shown
    assert "[bold]x[" in shown


def test_a_relative_path_is_given_back_as_one_that_is_right_from_anywhere(screen, monkeypatch):
    monkeypatch.chdir(screen.parent)
    assert inspected("screen").source["path"] == str(screen)


def test_a_pattern_of_your_own_is_inspected_too(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, [{"well": "B02"}, {"well": "B03"}])
    pattern = r"images/(?P<plate>P1)_(?P<well>B\d\d)_(?P<site>\d)_(?P<channel>\w+)\.tif"
    inspection = inspected(tmp_path, layout="regex", pattern=pattern)
    assert (inspection.layout, inspection.total("n_wells")) == ("regex", 2)
    assert pattern in printed(inspection)


def test_what_to_set_stands_in_one_line_whatever_the_width(screen):
    inspection = inspected(screen)
    assert inspection.assignment in printed(inspection, 40).splitlines()[-1]
