from __future__ import annotations

import pytest

from cytolake.catalog.declared import layout_presets
from cytolake.screens.layouts import screen_files, try_layout
from cytolake.storage.source_folder import SourceFolder


def trials(folder):
    opened = SourceFolder(folder)
    files = screen_files(opened)
    return {preset.name: try_layout(preset, "s", opened, files) for preset in layout_presets()}


SMALL = {
    "index-csv": {"index.csv": "path,plate,well,site,channel\n"},
    "cellvoyager": {"P1/MeasurementData.mlf": "<a/>"},
    "load-data": {"load_data.csv": "FileName_OrigDNA,PathName_OrigDNA,Metadata_Plate,Metadata_Well\n"},
    "bbbc021": {"BBBC021_v1_image.csv": "Image_FileName_DAPI,Image_PathName_DAPI,Image_Metadata_Well_DAPI\n"},
    "bbbc022": {"BBBC022_v1_image.csv": "Image_FileName_OrigER,Image_Metadata_CPD_WELL_POSITION\n"},
    "bbbc006": {"BBBC006_v1_images_z_00/mcf-z-stacks-1_a01_s1_w1d6a3b8c4-1d5e-4c52-8ae2-6b4c3c0a3b1e.tif": ""},
    "rxrx": {"HUVEC-1/Plate1/B02_s1_w1.png": ""},
    "phenix": {"P1/Images/r01c01f01p01-ch1sk1fk1fl1.tiff": ""},
    "imagexpress": {"TimePoint_1/P1_B03_s1_w1.tif": ""},
    "ome-zarr": {"P1.zarr/zarr.json": "{}"},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_folder_of_one_layout_looks_like_it_first(tmp_path, name):
    for path, text in SMALL[name].items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    fits = [layout for layout, trial in trials(tmp_path).items() if trial.fits]
    assert fits[0] == name


def test_every_layout_says_why_an_other_folder_does_not_fit(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "index.csv").write_text("path,well\n")
    (tmp_path / "load_data.csv").write_text("FileName_DNA,Site\n")
    found = trials(tmp_path)
    assert not any(trial.fits for trial in found.values())
    assert found["index-csv"].said == "index.csv has no column plate, site, channel"
    assert found["load-data"].said.startswith("load_data.csv has no column for the well")
    assert all(trial.said for trial in found.values())


def test_zarr_chunks_are_not_listed(tmp_path):
    (tmp_path / "P1.zarr" / "A").mkdir(parents=True)
    (tmp_path / "P1.zarr" / "A" / "c0").write_text("")
    (tmp_path / "map.csv").write_text("")
    (tmp_path / ".hidden").write_text("")
    assert screen_files(SourceFolder(tmp_path)) == ["map.csv"]


@pytest.mark.parametrize("name", [" ", "a ", "C:", "a\\b", "\udcff"])
def test_a_name_that_no_table_can_have_is_reported_and_the_rest_is_listed(
    tmp_path, write_images, listed, of_screen, name
):
    good = "HUVEC-1/Plate1/B02_s1_w1.png"
    write_images(tmp_path, [good])
    folder = tmp_path / name / "Plate1"
    folder.mkdir(parents=True)
    (folder / "B03_s1_w1.png").write_bytes((tmp_path / good).read_bytes())
    (plate,) = listed(tmp_path)
    assert [site.well for site in plate.sites] == ["B02"]
    problems = of_screen(tmp_path)
    assert {problem.problem for problem in problems} == {"bad_file_name"}
    assert all(problem.file.encode() for problem in problems)
