"""Of a TIFF with several pages the image is read, and never a thumbnail of it."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from cytolake.screens.images.colour_files import read_colour
from cytolake.screens.images.image_errors import ImageFileError
from cytolake.screens.images.image_files import read_plane, read_shape

IMAGE = np.random.default_rng(0).integers(100, 4000, (64, 96), dtype=np.uint16)
HALF = IMAGE[::2, ::2].copy()
REDUCED, MASK = {"subfiletype": 1}, {"subfiletype": 4}


def write(path, *pages):
    with tifffile.TiffWriter(path) as tif:
        for pixels, options in pages:
            tif.write(pixels, **{"metadata": None, **options})
    return str(path)


@pytest.mark.parametrize(
    "pages",
    [
        [(HALF, REDUCED), (IMAGE, {})],
        [(IMAGE, {}), (HALF, REDUCED), (HALF[::2, ::2].copy(), REDUCED)],
        [(IMAGE, {}), (IMAGE > 2000, MASK)],
        [(IMAGE, {"subifds": 1}), (HALF, REDUCED)],
        [(IMAGE, {"subifds": 1}), (HALF, {})],
        [(HALF, {**REDUCED, "subifds": 1}), (IMAGE, {})],
        [(IMAGE, REDUCED)],
    ],
    ids=["thumbnail first", "pyramid", "mask", "pyramid in SubIFDs", "unmarked pyramid", "image in SubIFDs", "alone"],
)
def test_the_page_of_full_resolution_is_read(tmp_path, pages):
    path = write(tmp_path / "a.tif", *pages)
    pixels, shape = read_plane(path, None, 2**20)
    np.testing.assert_array_equal(pixels, IMAGE)
    assert shape == read_shape(path)[0] == IMAGE.shape
    window, _ = read_plane(path, (40, 50, 16, 8), 2**20)
    np.testing.assert_array_equal(window, IMAGE[40:56, 50:58])


@pytest.mark.parametrize(
    ("pages", "said"),
    [
        ([(HALF, {}), (IMAGE, {})], "2 pages of different sizes"),
        ([(IMAGE, {}), (IMAGE, {})], "2 pages of (64, 96)"),
        ([(HALF, {"subifds": 1}), (IMAGE, {})], "2 pages of different sizes"),
        ([(HALF, REDUCED), (HALF, REDUCED)], "all marked as reduced"),
        ([(np.dstack([IMAGE] * 3), {"photometric": "rgb"})], "a colour image"),
    ],
    ids=["two images", "stack", "larger SubIFD", "only thumbnails", "colour"],
)
def test_what_is_not_one_image_is_refused_with_the_reason(tmp_path, pages, said):
    path = write(tmp_path / "a.tif", *pages)
    for read in (lambda: read_plane(path, None, 2**20), lambda: read_shape(path)):
        with pytest.raises(ImageFileError, match="shape_mismatch") as refused:
            read()
        assert said in refused.value.found


def test_a_cut_header_of_a_sub_page_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    write(path, (HALF, {**REDUCED, "subifds": 1}), (IMAGE, {}))
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags["SubIFDs"].overwrite([path.stat().st_size - 4])
    with pytest.raises(ImageFileError, match=r"truncated_file|unreadable_file"):
        read_plane(str(path), None, 2**20)


def test_a_colour_tiff_that_begins_with_a_thumbnail_is_read_in_full(tmp_path):
    colour = np.random.default_rng(1).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    small = colour[::4, ::4].copy()
    path = write(tmp_path / "a.tif", (small, {**REDUCED, "photometric": "rgb"}), (colour, {"photometric": "rgb"}))
    pixels, shape = read_colour(path, 3, None, 2**20)
    assert shape == (40, 48)
    np.testing.assert_array_equal(pixels, colour.transpose(2, 0, 1))
    two = write(tmp_path / "b.tif", (small, {"photometric": "rgb"}), (colour, {"photometric": "rgb"}))
    with pytest.raises(ImageFileError, match="2 of them of full resolution"):
        read_colour(two, 3, None, 2**20)
