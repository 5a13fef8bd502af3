"""Projections and copies among the ZStep folders of an ImageXpress export."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.images.pixels import read_site
from cytolake.screens.sources import ScreenSource, list_screen

HTD = '"HTSInfoFile", Version 1.0\n"ZSeries", TRUE\n"ZSteps", {steps}\n"ZProjection", {projection}\n"EndFile"\n'


def listing(folder, **fields):
    source = ScreenSource(screen="s", path=str(folder), layout="imagexpress", **fields)
    return list_screen(source, channel_vocabulary().aliases, layout_presets())


@pytest.fixture
def export(tmp_path):
    """P1: w1 in two planes and their projection, w2 in one, copied into each step; two wells."""
    planes = {}
    for well, wavelength, step in np.ndindex(2, 2, 3):
        folder = tmp_path / "P1" / "TimePoint_1" / f"ZStep_{step}"
        folder.mkdir(parents=True, exist_ok=True)
        seed = (well, wavelength, step if wavelength == 0 else 0)
        pixels = np.random.default_rng(seed).integers(1, 999, (8, 9), dtype=np.uint16)
        if wavelength == 0 and step == 0:
            pixels = np.maximum(
                *(np.random.default_rng((well, 0, s)).integers(1, 999, (8, 9), np.uint16) for s in (1, 2))
            )
        planes[f"A0{well + 1}", wavelength, step] = pixels
        tifffile.imwrite(folder / f"P1_A0{well + 1}_s1_w{wavelength + 1}.TIF", pixels, photometric="minisblack")
    return tmp_path, planes


def declare(folder, projection="TRUE", steps=2):
    (folder / "P1" / "P1.HTD").write_text(HTD.format(projection=projection, steps=steps))


def test_a_declared_projection_is_no_plane_and_copies_count_once(export):
    folder, planes = export
    declare(folder)
    found = listing(folder)
    (plate,) = found.plates
    assert [(site.well, site.z, site.channels) for site in plate.sites] == [
        (well, *rest) for well in ("A01", "A02") for rest in (("", ("w2",)), ("1", ("w1",)), ("2", ("w1",)))
    ]
    for site in plate.sites:
        np.testing.assert_array_equal(
            read_site(site)[0], planes[site.well, int(site.channels[0][1]) - 1, int(site.z or 1)]
        )
    assert [problem.problem for problem in found.problems] == ["not_a_focal_plane"]
    assert "ZStep_0" in found.problems[0].found
    for z in ("max", "sharpest"):
        joined = listing(folder, z=z).plates[0]
        assert [site.well for site in joined.sites] == ["A01", "A02"]
        assert all(site.planes == (2, 1) for site in joined.sites)


def test_steps_that_count_from_0_are_planes_where_the_header_says_so(export):
    folder, _ = export
    declare(folder, projection="FALSE", steps=3)
    (plate,) = listing(folder).plates
    assert {site.z for site in plate.sites if "w1" in site.channels} == {"0", "1", "2"}


def test_a_zeroth_step_of_which_nothing_is_said_is_read_and_reported(export):
    folder, _ = export
    found = listing(folder)
    assert {site.z for site in found.plates[0].sites if "w1" in site.channels} == {"0", "1", "2"}
    assert "ZStep_0" in found.problems[0].found


def test_a_channel_that_has_a_projection_alone_is_one_plane(export):
    folder, _ = export
    declare(folder)
    for step in (1, 2):
        for well in ("A01", "A02"):
            (folder / f"P1/TimePoint_1/ZStep_{step}/P1_{well}_s1_w2.TIF").unlink()
    (plate,) = listing(folder).plates
    assert {site.z for site in plate.sites if "w2" in site.channels} == {""}


@pytest.mark.real_data
def test_the_planes_of_a_real_export_are_planes(real_data):
    folder = real_data / "imagexpress_exported_3434"
    if not folder.is_dir():
        pytest.skip("the export is not among the real screens here")
    (plate,) = listing(folder).plates
    assert plate.channels == ("DNA", "GFP", "Red")
    assert {(site.z, site.channels) for site in plate.sites} == {("", ("GFP", "Red")), ("1", ("DNA",)), ("2", ("DNA",))}
    assert len(listing(folder, z="sharpest").plates[0].sites) == 4
