"""TIFF files that hold several channels, focal planes or timepoints."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates

SHAPE = (8, 9)
PATTERN = r"(?P<plate>P\d)_(?P<well>[^_.]+)\.(?:ome\.)?tif"
LENGTHS = {"T": 2, "Z": 3, "C": 4}


def listed(folder, pattern=PATTERN, **fields):
    source = ScreenSource(screen="s", path=str(folder), layout="regex", pattern=pattern, **fields)
    return list_plates(source, channel_vocabulary().aliases, layout_presets())


def pixels(axes, seed=0):
    return np.random.default_rng(seed).integers(1, 60_000, [LENGTHS[a] for a in axes] + [*SHAPE], dtype=np.uint16)


def write(path, values, axes, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "imagej":
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": axes + "YX"})
    elif kind == "ome":
        tifffile.imwrite(path.with_suffix(".ome.tif"), values, photometric="minisblack", metadata={"axes": axes + "YX"})
    else:
        tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": axes + "YX"})


def expected(values, axes, *, t, z):
    """(C, H, W) of a time and plane, by moving axes about."""
    whole = values
    for axis in "TZC":
        if axis not in axes:
            whole = whole[None]
            axes = axis + axes
    return np.transpose(whole, [axes.index(a) for a in "TZC"] + [3, 4])[t, z]


AXES = [
    *itertools.chain.from_iterable(itertools.permutations("TZC", n) for n in (1, 2)),
    *(("T", "Z", "C"), ("Z", "C", "T"), ("C", "T", "Z")),
]


@pytest.mark.parametrize("kind", ["ome", "shaped"])
@pytest.mark.parametrize("axes", ["".join(axes) for axes in AXES])
def test_every_page_is_read_at_its_channel_plane_and_time(tmp_path, axes, kind):
    values = pixels(axes)
    write(tmp_path / "P1_B03.tif", values, axes, kind)
    (plate,) = listed(tmp_path)
    n_times, n_planes, n_channels = (LENGTHS[a] if a in axes else 1 for a in "TZC")
    assert len(plate.sites) == n_times * n_planes
    assert len(set(plate.channels)) == n_channels
    for site in plate.sites:
        want = expected(values, axes, t=site.timepoint, z=int(site.z or 0))
        np.testing.assert_array_equal(read_site(site), want)
        np.testing.assert_array_equal(read_site(site, (2, 3, 4, 5)), want[:, 2:6, 3:8])


@pytest.mark.parametrize("axes", ["C", "ZC", "TC", "TZC", "Z", "T"])
def test_an_imagej_hyperstack_is_read_page_by_page(tmp_path, axes):
    values = pixels(axes)
    write(tmp_path / "P1_A01.tif", values, axes, "imagej")
    (plate,) = listed(tmp_path)
    for site in plate.sites:
        np.testing.assert_array_equal(read_site(site), expected(values, axes, t=site.timepoint, z=int(site.z or 0)))


def test_planes_inside_of_files_are_joined_as_planes_in_names_are(tmp_path):
    values = pixels("ZC")
    write(tmp_path / "P1_A01.tif", values, "ZC", "imagej")
    (plate,) = listed(tmp_path, z="max")
    (site,) = plate.sites
    np.testing.assert_array_equal(read_site(site), values.max(axis=0))
    (sharpest,) = listed(tmp_path, z="sharpest")[0].sites
    assert read_site(sharpest).shape == (4, *SHAPE)


def test_channels_have_the_names_that_the_metadata_give_them(tmp_path):
    values = pixels("C")
    names = ["DAPI", "FITC", "Cy5", "odd"]
    tifffile.imwrite(
        tmp_path / "P1_A01.ome.tif",
        values,
        photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": names}, "PhysicalSizeX": 0.65, "PhysicalSizeXUnit": "µm"},
    )
    tifffile.imwrite(tmp_path / "P2_A01.tif", values, imagej=True, metadata={"axes": "CYX", "Labels": names})
    one, two = listed(tmp_path)
    assert one.channels == two.channels == ("DNA", "GFP", "FarRed", "odd")
    assert one.pixel_size_um == pytest.approx(0.65)


def test_several_files_of_a_site_give_all_their_channels(tmp_path):
    one, two = pixels("C", 1), pixels("C", 2)
    for well in ("A01", "A02"):
        write(tmp_path / f"P1_{well}_cells.tif", one, "C", "imagej")
        write(tmp_path / f"P1_{well}_spots.tif", two[0], "", "shaped")
    (plate,) = listed(tmp_path, r"(?P<plate>P\d)_(?P<well>[^_]+)_(?P<channel>[a-z]+)\.tif")
    assert plate.channels == ("cells_1", "cells_2", "cells_3", "cells_4", "spots")
    for site in plate.sites:
        np.testing.assert_array_equal(read_site(site), np.concatenate([one, two[:1]]))


def test_a_damaged_first_file_does_not_say_what_all_files_hold(tmp_path):
    for well in ("A01", "A02", "A03"):
        write(tmp_path / f"P1_{well}.tif", pixels("C"), "C", "imagej")
    (tmp_path / "P1_A01.tif").write_bytes(b"II*\0cut")
    (plate,) = listed(tmp_path)
    assert len(plate.channels) == 4
    assert read_site(plate.sites[1]).shape == (4, *SHAPE)


def test_a_file_unlike_the_others_is_a_problem_of_its_site(tmp_path):
    for well in ("A01", "A02"):
        write(tmp_path / f"P1_{well}.tif", pixels("C"), "C", "imagej")
    write(tmp_path / "P1_A03.tif", pixels("C")[:2], "C", "imagej")
    (plate,) = listed(tmp_path)
    with pytest.raises(ScreenError, match="2 channels in its files"):
        read_site(plate.sites[2])


@pytest.mark.parametrize(("pages", "n_sites", "n_channels"), [("channels", 1, 4), ("planes", 4, 1), ("times", 4, 1)])
def test_pages_without_metadata_are_what_the_screen_declares(tmp_path, pages, n_sites, n_channels):
    values = pixels("C")
    with tifffile.TiffWriter(tmp_path / "P1_A01.tif") as file:
        for page in values:
            file.write(page, photometric="minisblack", metadata=None, contiguous=False)
    (plate,) = listed(tmp_path)
    assert [problem.problem for problem in plate.problems] == ["unknown_pages"]
    (plate,) = listed(tmp_path, pages=pages)
    assert plate.problems == ()
    assert (len(plate.sites), len(plate.channels)) == (n_sites, n_channels)
    np.testing.assert_array_equal(np.concatenate([read_site(site) for site in plate.sites]), values)


def test_plain_files_stay_plain(tmp_path):
    write(tmp_path / "P1_A01.tif", pixels("")[:], "", "shaped")
    (plate,) = listed(tmp_path)
    assert (plate.reader, plate.channels) == ("files", ("ch1",))


def test_an_inspection_reads_stacks_as_an_ingest_does(tmp_path):
    write(tmp_path / "P1_A01.tif", pixels("C"), "C", "imagej")
    found = inspect_screen(ScreenSource(screen="s", path=str(tmp_path), layout="regex", pattern=PATTERN), crop_size=4)
    assert found.plates[0].sizes == ("8 x 9 uint16",)
    assert [each.problem for each in found.problems] == ["no_perturbation"]
