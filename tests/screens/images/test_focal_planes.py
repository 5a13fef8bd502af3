from __future__ import annotations

import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter

from cytolake.screens.images.pixels import read_site, resolve_sharpest
from cytolake.screens.sources import ScreenSource, list_plates


def listed(folder, z, **fields):
    (plate,) = list_plates(ScreenSource(screen="s", path=str(folder), z=z, **fields))
    return plate


def stacks(plate):
    """(well, site, timepoint, channel) -> (N, H, W) pixels of its planes in the plate's order."""
    found = {}
    for site in plate.sites:
        for channel, pixels in zip(site.channels, read_site(site), strict=True):
            found.setdefault((site.well, site.site, site.timepoint, channel), []).append(pixels)
    return {place: np.stack(planes) for place, planes in found.items()}


ROWS = [
    {"well": well, "site": site, "timepoint": t, "z": z, "channel": channel}
    for well in ("B02", "C03")
    for site in ("1", "2")
    for t in ("0", "1")
    for z in ("2", "10", "1")
    for channel in ("DNA", "ER")
]


def test_the_projection_is_the_maximum_over_the_planes_that_keep_lists(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, ROWS)
    kept = stacks(listed(tmp_path, "keep"))
    projected = listed(tmp_path, "max")
    assert len(projected.sites) == 2 * 2 * 2
    assert all(site.z == "max" and site.planes == (3, 3) for site in projected.sites)
    assert all(site.plane_names == ("1", "2", "10") for site in projected.sites)
    found = stacks(projected)
    assert found.keys() == kept.keys()
    for place, planes in found.items():
        np.testing.assert_array_equal(planes[0], kept[place].max(axis=0))


def test_the_sharpest_plane_is_one_of_those_that_keep_lists_for_all_channels(tmp_path, write_indexed_screen):
    write_indexed_screen(tmp_path, ROWS[:6])
    blurs_px = {"1": 8, "2": 0, "10": 4}
    rng = np.random.default_rng(0)
    for channel in ("DNA", "ER"):
        cells = gaussian_filter(rng.normal(size=(24, 32)), 1.5)
        for z, blur_px in blurs_px.items():
            pixels = (10_000 + 20_000 * gaussian_filter(cells, blur_px)).astype(np.uint16)
            tifffile.imwrite(tmp_path / f"images/P1_B02_1_0_{z}_{channel}.tif", pixels, photometric="minisblack")
    (site,) = listed(tmp_path, "sharpest").sites
    assert (site.z, site.planes) == ("sharpest", (3, 3))
    sharpest = resolve_sharpest(site)
    (kept,) = [each for each in listed(tmp_path, "keep").sites if each.z == "2"]
    assert sharpest == kept


@pytest.mark.parametrize("z", ["max", "sharpest"])
def test_a_plate_without_planes_is_listed_as_ever(tmp_path, write_indexed_screen, z):
    write_indexed_screen(tmp_path, [{}, {"well": "B03"}])
    assert listed(tmp_path, z) == listed(tmp_path, "keep")


def test_a_channel_of_one_plane_counts_in_full_next_to_channels_of_many(tmp_path, write_indexed_screen):
    rows = [{"channel": "DNA", "z": z} for z in ("1", "2")] + [{"channel": "Brightfield", "z": ""}]
    write_indexed_screen(tmp_path, rows)
    kept = stacks(listed(tmp_path, "keep"))
    (site,) = listed(tmp_path, "max").sites
    assert (site.channels, site.planes) == (("DNA", "Brightfield"), (2, 1))
    dna, brightfield = read_site(site)
    np.testing.assert_array_equal(dna, kept["B02", "1", 0, "DNA"].max(axis=0))
    np.testing.assert_array_equal(brightfield, kept["B02", "1", 0, "Brightfield"][0])


@pytest.mark.parametrize("z", ["max", "sharpest"])
def test_a_plane_that_one_channel_lost_does_not_lose_the_site(tmp_path, write_indexed_screen, z):
    rows = [{"channel": channel, "z": plane} for plane in ("1", "2", "3") for channel in ("DNA", "ER")]
    write_indexed_screen(tmp_path, rows, absent=["images/P1_B02_1_1_ER.tif"])
    plate = listed(tmp_path, z)
    (site,) = plate.sites
    assert site.planes == {"max": (3, 2), "sharpest": (2, 2)}[z]
    assert read_site(site).shape == (2, 24, 32)
    assert [problem.problem for problem in plate.problems] == ["missing_file"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_projection_of_an_ome_zarr_plate_is_the_maximum_too(tmp_path, write_zarr_plate, site_pixels, version):
    axes, sizes = "tczyx", {"t": 2, "z": 3}
    write_zarr_plate(tmp_path / "P1.zarr", version, wells=("B/02",), sites=("0",), axes=axes, sizes=sizes)
    pixels = site_pixels("P1", "B/02", "0", axes=axes, sizes=sizes)
    plate = listed(tmp_path, "max")
    assert [(site.timepoint, site.z, site.planes) for site in plate.sites] == [(0, "max", (3, 3)), (1, "max", (3, 3))]
    for site in plate.sites:
        np.testing.assert_array_equal(read_site(site), pixels[site.timepoint].max(axis=1))


def test_the_real_mix_of_planes_becomes_one_site_for_each_time(real_data):
    folder = real_data / "imagexpress_timelapse"
    if not folder.is_dir():
        pytest.skip("the ImageXpress export is not among the real screens here")
    kept, projected = listed(folder, "keep"), listed(folder, "max")
    places = {(site.well, site.site, site.timepoint) for site in kept.sites}
    assert [(site.well, site.site, site.timepoint) for site in projected.sites] == sorted(places)
    expected = stacks(kept)
    for place, planes in stacks(projected).items():
        np.testing.assert_array_equal(planes[0], expected[place].max(axis=0))
