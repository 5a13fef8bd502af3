"""Counts as recorded: types of channels, pixels that are no number, chunks that are not stored."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
import zarr

from cytolake.catalog.ingest.site_rows import read_site_rows
from cytolake.screens.images.pixels import read_recorded, read_site
from cytolake.screens.plate import ScreenError, SiteImage
from cytolake.screens.sources import ScreenSource, list_plates

RNG = np.random.default_rng(0)
CAMERA = RNG.integers(100, 4000, (64, 64), dtype=np.uint16)


def site_of(folder, **channels):
    """A site with a TIFF for each channel."""
    for name, pixels in channels.items():
        tifffile.imwrite(folder / f"{name}.tif", pixels, photometric="minisblack")
    return SiteImage(
        screen="s", plate="P1", well="B03", site="1", channels=tuple(channels), reader="files",
        image_paths=tuple(str(folder / f"{name}.tif") for name in channels),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("types", "common"),
    [
        (("uint8", "uint16"), "uint16"),
        (("uint16", "uint8"), "uint16"),
        (("uint16", "int16"), "int32"),
        (("uint8", "uint8", "uint32"), "uint32"),
        (("uint16", "float32"), "float32"),
        (("uint32", "float32"), "float64"),
    ],
)
def test_channels_of_different_types_are_widened_without_a_change_of_value(tmp_path, types, common):
    planes = [RNG.integers(0, np.iinfo(t).max if t[0] != "f" else 9, (40, 48)).astype(t) for t in types]
    site = site_of(tmp_path, **{f"c{i}": plane for i, plane in enumerate(planes)})
    pixels = read_site(site)
    assert pixels.dtype == common == read_site(site, (3, 4, 8, 8)).dtype
    for plane, channel in zip(planes, pixels, strict=True):
        np.testing.assert_array_equal(channel, plane)
    assert [str(each) for each in read_recorded(site).types] == list(types)


def test_types_without_a_common_one_that_is_exact_are_refused(tmp_path):
    site = site_of(tmp_path, DNA=CAMERA.astype(np.float32), ER=CAMERA.astype(np.int64))
    with pytest.raises(ScreenError) as refused:
        read_site(site)
    assert [(p.problem, p.channel) for p in refused.value.problems] == [("mixed_pixel_type", "ER")]


def test_saturation_is_of_the_type_of_the_channels_own_file(tmp_path):
    white = np.full((64, 64), 255, np.uint8)
    site = site_of(tmp_path, Brightfield=white, DNA=CAMERA, Dark=np.full((64, 64), 255, np.uint16))
    rows = read_site_rows(site, "b", 32)
    assert [row["saturated_share"] for row in rows.qc_metrics][::2] == [1, 0]
    assert rows.sites[0]["dtype"] == "uint16"


def test_planes_of_different_types_are_projected_exactly(tmp_path):
    low, high = CAMERA.astype(np.uint8), CAMERA
    site = site_of(tmp_path, a=low, b=high)
    stack = SiteImage(
        screen="s", plate="P1", well="B03", site="1", channels=("DNA",), reader="files", planes=(2,), z="max",
        image_paths=site.image_paths,
    )  # fmt: skip
    np.testing.assert_array_equal(read_site(stack)[0], np.maximum(low.astype(np.uint16), high))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_number_are_reported_and_cost_the_crops_that_hold_them(tmp_path, bad):
    spoilt = CAMERA.astype(np.float32)
    spoilt[3, 3] = spoilt[4, 9] = bad
    rows = read_site_rows(site_of(tmp_path, DNA=CAMERA.astype(np.float32), ER=spoilt), "b", 32)
    assert [(p.problem, p.channel) for p in rows.problems] == [("not_a_number", "ER")]
    assert rows.problems[0].found.startswith("2 of 4096 pixels")
    assert len(rows.sites) == 1
    assert {(row["y"], row["x"]) for row in rows.crops} == {(0, 32), (32, 0), (32, 32)}


def test_whole_numbers_and_finite_floats_have_no_problem(tmp_path):
    rows = read_site_rows(site_of(tmp_path, DNA=CAMERA, ER=CAMERA.astype(np.float32)), "b", 32)
    assert (rows.problems, len(rows.crops)) == ([], 4)


def write_image(path, version, chunks, shards=None, separator="/"):
    """Turns the array of an image into other chunks, all of them stored."""
    pixels = zarr.open_array(path, mode="r")[...]
    keywords = {"zarr_format": version, "chunks": chunks, "shards": shards, "config": {"write_empty_chunks": True}}
    if version == 2:
        keywords["chunk_key_encoding"] = {"name": "v2", "separator": separator}
    array = zarr.create_array(store=str(path), shape=pixels.shape, dtype=pixels.dtype, overwrite=True, **keywords)
    array[...] = pixels


@pytest.fixture(params=["v2", "v2 dots", "v3", "v3 shards"])
def zarr_site(tmp_path, write_zarr_plate, request):
    """A site of two channels of 24 x 32 pixels in 2 x 2 chunks each, and a function that deletes some."""
    version = 2 if request.param.startswith("v2") else 3
    write_zarr_plate(tmp_path / "P1.zarr", f"0.{version + 2}", wells=["B/03"], sites=["0"])
    place = tmp_path / "P1.zarr/B/03/0/0"
    shards = (1, 12, 16) if "shards" in request.param else None
    separator = "." if "dots" in request.param else "/"
    write_image(place, version, (1, 6, 8) if shards else (1, 12, 16), shards, separator)
    ((site,),) = (plate.sites for plate in list_plates(ScreenSource(screen="s", path=str(tmp_path))))

    def lose(*keys):
        for c, y, x in keys:
            name = separator.join(map(str, (c, y, x))) if version == 2 else f"c/{c}/{y}/{x}"
            (place / name).unlink()

    return site, lose


def test_a_whole_zarr_image_has_no_problem(zarr_site):
    assert read_recorded(zarr_site[0]).problems == ()


def test_chunks_that_are_not_stored_are_reported_by_channel_and_the_site_is_kept(zarr_site):
    site, lose = zarr_site
    lose((0, 0, 1), (0, 1, 0), (1, 1, 1))
    rows = read_site_rows(site, "b", 8)
    assert [(p.problem, p.channel, p.found[:6]) for p in rows.problems] == [
        ("missing_chunk", site.channels[0], "2 of 4"),
        ("missing_chunk", site.channels[1], "1 of 4"),
    ]
    assert len(rows.sites) == 1


def test_a_channel_without_any_chunk_is_reported(zarr_site):
    site, lose = zarr_site
    lose(*((1, y, x) for y in (0, 1) for x in (0, 1)))
    assert [(p.channel, p.found[:6]) for p in read_site_rows(site, "b", 8).problems] == [(site.channels[1], "4 of 4")]


def test_an_image_without_any_chunk_is_no_site(zarr_site):
    site, lose = zarr_site
    lose(*((c, y, x) for c in (0, 1) for y in (0, 1) for x in (0, 1)))
    rows = read_site_rows(site, "b", 8)
    assert [p.problem for p in rows.problems] == ["missing_chunk"]
    assert (rows.sites, rows.crops, rows.qc_metrics) == ([], [], [])
