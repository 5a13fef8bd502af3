"""Projections, thumbnails, corrected images and masks that lie among a screen's images."""

from __future__ import annotations

import pytest

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.derived_copies import derived_word, is_derived_folder
from cytolake.screens.sources import ScreenSource, list_screen

GUID = "AA847666-9AC4-4326-A184-8FC928D4368A"
FOLDERS = ["Projection", "Projections", "MaxProjection", "max_intensity_projection", "Thumbs", "thumbnails", "MIP"]
FOLDERS += ["Illumination-corrected", "illum_corrected", "Flatfield Corrected", "corrected_images", "masks", "labels"]
FOLDERS += ["outlines", "Segmentation", "stitched", "P1_mip", "run1_registered", "Overlays"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_copies_is_known_by_its_name(name):
    assert is_derived_folder(name)


@pytest.mark.parametrize(
    "name", ["Images", "P1", "2024-01-01", "TimePoint_1", "ZStep_0", "raw", "DNA", "MitoTracker", "B03"]
)
def test_a_folder_of_images_is_none(name):
    assert not is_derived_folder(name)


@pytest.mark.parametrize(
    ("name", "word"), [("0_mip", "_mip"), ("P1", ""), ("mip", ""), ("A01_max_projection", "_max_projection")]
)
def test_the_end_of_a_name_says_what_was_made(name, word):
    assert derived_word(name) == word


def listing(folder, names, **fields):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    source = ScreenSource(screen="s", path=str(folder), **fields)
    return list_screen(source, channel_vocabulary().aliases, layout_presets())


@pytest.mark.parametrize("copies", ["Projection", "Illumination-corrected", "Thumbs"])
@pytest.mark.parametrize("name", [f"TimePoint_1/P1_A01_s1_w1{GUID}.tif", "r01c01f01p01-ch1sk1fk1fl1.tiff"])
def test_copies_next_to_the_originals_are_no_fields(tmp_path, copies, name):
    alone = listing(tmp_path, [f"P1/{name}"])
    found = listing(tmp_path, [f"P1/{copies}/{name}"])
    assert found.plates == alone.plates
    (problem,) = found.problems
    assert (problem.problem, problem.file) == ("derived_copy", f"P1/{copies}")


def test_a_plate_that_has_nothing_but_projections_is_read(tmp_path):
    found = listing(tmp_path, [f"P1/Projection/P1_A01_s1_w1{GUID}.tif"])
    assert [len(plate.sites) for plate in found.plates] == [1]
    assert found.problems == ()


def test_copies_by_the_end_of_their_names_are_left_out_under_a_pattern_too(tmp_path):
    found = listing(
        tmp_path,
        ["P1/A01_1.tif", "P1/A01_1_mip.tif"],
        layout="regex",
        pattern=r"(?P<plate>P1)/(?P<well>A01)_(?P<site>.+)\.tif",
    )
    assert [site.site for site in found.plates[0].sites] == ["1"]
    assert [(problem.problem, problem.file) for problem in found.problems] == [("derived_copy", "P1/*_mip")]


@pytest.mark.parametrize("below", ["Deconvolved", "masks/nuclei", "backup"])
def test_a_folder_below_the_images_of_a_phenix_plate_makes_no_plate_of_its_own(tmp_path, below):
    """It is of the plate around it: copies that are left out, or images that are there twice, and no plate more."""
    images = [f"P1__1/Images/r01c01f0{field}p01-ch1sk1fk1fl1.tiff" for field in (1, 2)]
    found = listing(tmp_path, [*images, *(name.replace("Images/", f"Images/{below}/") for name in images)])
    (plate,) = found.plates
    assert plate.plate == "P1"
    assert [site.image_paths for site in plate.sites] == [(str(tmp_path / name),) for name in images]
    problems = [problem.problem for problem in (*plate.problems, *found.problems)]
    assert problems == (["duplicate_image"] * 2 if below == "backup" else ["derived_copy"])
