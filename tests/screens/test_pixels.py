from __future__ import annotations

import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile

from cytolake.screens.pixels import read_site, site_image
from cytolake.screens.plate import ScreenError, SiteImage

GREY = {"photometric": "minisblack"}
LAYOUTS = {
    "plain": {},
    "strips": {"rowsperstrip": 7},
    "tiles": {"tile": (16, 16)},
    "lzw": {"compression": "lzw", "rowsperstrip": 8, "predictor": True},
    "deflate": {"compression": "zlib", "tile": (16, 32)},
    "packbits": {"compression": "packbits", "rowsperstrip": 8},
    "zstd": {"compression": "zstd"},
    "big-endian": {"byteorder": ">"},
    "bigtiff": {"bigtiff": True},
}


@pytest.fixture
def plane():
    return np.random.default_rng(0).integers(0, 60_000, (50, 70), dtype=np.uint16)


def site_of(*paths, channels=None):
    return SiteImage(
        screen="s",
        plate="P1",
        well="B03",
        site="2",
        channels=channels or tuple(f"stain{i}" for i in range(len(paths))),
        reader="files",
        image_paths=tuple(str(path) for path in paths),
    )


def problem_of(site, *args):
    with pytest.raises(ScreenError) as caught:
        read_site(site, *args)
    (problem,) = caught.value.problems
    assert (problem.screen, problem.plate, problem.well, problem.site) == ("s", "P1", "B03", "2")
    assert problem.found
    assert problem.expected
    assert problem.next_step
    return problem


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_tiff_reads_as_it_was_written(tmp_path, plane, layout, dtype):
    plane = plane.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY, **LAYOUTS[layout])
    pixels = read_site(site_of(tmp_path / "a.tif"))
    np.testing.assert_array_equal(pixels, plane[None])
    assert pixels.dtype == dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.7, 0.95, 0.99, 0.999])
def test_a_cut_tiff_is_never_read(tmp_path, plane, layout, share):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY, **LAYOUTS[layout])
    whole = (tmp_path / "a.tif").read_bytes()
    last = max(o + n for o, n in _segments(tmp_path / "a.tif"))
    (tmp_path / "a.tif").write_bytes(whole[: min(int(len(whole) * share), last - 1)])
    problem = problem_of(site_of(tmp_path / "a.tif"))
    assert problem.problem == ("truncated_file" if share in (0.0, 0.7, 0.95, 0.99, 0.999) else problem.problem)
    assert problem.problem in ("truncated_file", "unreadable_file", "unsupported_file")
    assert problem.file == str(tmp_path / "a.tif")
    assert problem.channel == "stain0"


def _segments(path):
    with tifffile.TiffFile(path) as tif:
        return list(zip(tif.pages[0].dataoffsets, tif.pages[0].databytecounts, strict=True))


def test_a_tiff_with_fewer_bytes_than_pixels_is_never_read(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        tif.pages[0].tags["StripByteCounts"].overwrite(100)
    assert problem_of(site_of(tmp_path / "a.tif")).problem == "truncated_file"


def test_a_tiff_with_a_strip_that_was_never_written_is_not_read(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY, compression="zlib", rowsperstrip=10)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        counts = list(tif.pages[0].databytecounts)
        tif.pages[0].tags["StripByteCounts"].overwrite([*counts[:-1], 0])
    assert problem_of(site_of(tmp_path / "a.tif")).problem == "truncated_file"


def test_a_window_is_that_part_of_the_site(tmp_path, plane):
    for i in range(3):
        tifffile.imwrite(tmp_path / f"{i}.tif", plane + i, **GREY, compression="lzw", rowsperstrip=8)
    site = site_of(*(tmp_path / f"{i}.tif" for i in range(3)))
    np.testing.assert_array_equal(read_site(site, (5, 6, 20, 30)), read_site(site)[:, 5:25, 6:36])


@pytest.mark.parametrize("window", [(0, 0, 51, 70), (-1, 0, 5, 5), (0, 66, 5, 5), (0, 0, 0, 5)])
def test_a_window_outside_the_site_is_refused(tmp_path, plane, window):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    assert problem_of(site_of(tmp_path / "a.tif"), window).problem == "shape_mismatch"


def test_channels_of_different_shape_or_type_are_refused(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    tifffile.imwrite(tmp_path / "b.tif", plane[1:], **GREY)
    tifffile.imwrite(tmp_path / "c.tif", plane.astype(np.uint8), **GREY)
    problem = problem_of(site_of(tmp_path / "a.tif", tmp_path / "b.tif", channels=("DNA", "ER")))
    assert (problem.problem, problem.channel) == ("shape_mismatch", "ER")
    assert (problem.found, problem.expected) == ("49 x 70 pixels", "50 x 70, as in channel DNA")
    assert problem_of(site_of(tmp_path / "a.tif", tmp_path / "c.tif")).problem == "mixed_pixel_type"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_png_reads_as_it_was_written_whatever_its_name(tmp_path, plane, dtype):
    plane = plane.astype(dtype)
    (tmp_path / "a.tif").write_bytes(imagecodecs.png_encode(plane))
    tifffile.imwrite(tmp_path / "b.png", plane, **GREY)
    for name in ("a.tif", "b.png"):
        np.testing.assert_array_equal(read_site(site_of(tmp_path / name))[0], plane)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.99, 0.999])
def test_a_cut_png_is_never_read(tmp_path, plane, share):
    whole = imagecodecs.png_encode(plane)
    (tmp_path / "a.png").write_bytes(whole[: int(len(whole) * share)])
    expected = ("truncated_file",) if share != 0.001 else ("unsupported_file",)
    assert problem_of(site_of(tmp_path / "a.png")).problem in expected


def test_a_damaged_png_is_never_read(tmp_path, plane):
    damaged = bytearray(imagecodecs.png_encode(plane))
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(damaged)
    assert problem_of(site_of(tmp_path / "a.png")).problem == "unreadable_file"


def test_colours_and_stacks_are_not_one_grey_plane(tmp_path):
    colours = np.zeros((20, 30, 3), np.uint8)
    tifffile.imwrite(tmp_path / "rgb.tif", colours, photometric="rgb")
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(colours))
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((4, 20, 30), np.uint16), **GREY)
    palette = np.random.default_rng(0).integers(0, 65_535, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", colours[..., 0], photometric="palette", colormap=palette)
    tifffile.imwrite(tmp_path / "inverted.tif", colours[..., 0], photometric="miniswhite")
    found = [problem_of(site_of(tmp_path / name)) for name in ("rgb.tif", "stack.tif", "rgb.png")]
    assert [problem.problem for problem in found] == ["shape_mismatch", "shape_mismatch", "unsupported_file"]
    assert "4 pages" in found[1].found
    assert problem_of(site_of(tmp_path / "palette.tif")).problem == "unsupported_file"
    assert problem_of(site_of(tmp_path / "inverted.tif")).problem == "unsupported_file"


def test_a_grey_palette_is_grey(tmp_path, plane):
    plane = plane.astype(np.uint8)
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 256, (3, 1))
    tifffile.imwrite(tmp_path / "a.tif", plane, photometric="palette", colormap=ramp)
    np.testing.assert_array_equal(read_site(site_of(tmp_path / "a.tif"))[0], plane)


def test_a_declared_shape_past_the_budget_is_refused_before_memory_is_taken(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tif:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            if tif.pages[0].tags[tag].dtype == 4:
                tif.pages[0].tags[tag].overwrite(2_000_000)
            else:
                tif.pages[0].tags[tag].overwrite(65_000)
    png = bytearray(imagecodecs.png_encode(plane))
    png[16:24] = struct.pack(">II", 2_000_000, 2_000_000)
    (tmp_path / "a.png").write_bytes(png)
    assert problem_of(site_of(tmp_path / "a.tif")).problem == "too_large"
    assert problem_of(site_of(tmp_path / "a.png")).problem == "too_large"


def test_a_file_that_is_no_image_or_is_gone_is_told(tmp_path):
    (tmp_path / "a.tif").write_text("<html>404</html>")
    assert problem_of(site_of(tmp_path / "a.tif")).problem == "unsupported_file"
    assert problem_of(site_of(tmp_path / "gone.tif")).problem == "missing_file"
    assert problem_of(site_of(tmp_path)).problem == "unreadable_file"


def test_a_site_with_other_numbers_of_paths_and_channels_is_refused(tmp_path):
    assert problem_of(site_of(tmp_path / "a", channels=("DNA", "ER"))).problem == "shape_mismatch"


def test_a_row_of_the_sites_table_is_the_site_it_came_from(tmp_path):
    site = replace(site_of(tmp_path / "a", tmp_path / "b"), timepoint=3, z="7")
    fields = {name: getattr(site, name) for name in SiteImage.__dataclass_fields__}
    row = {
        **fields,
        "channels": list(site.channels),
        "image_paths": list(site.image_paths),
        "site_id": "x",
        "height": 4,
    }
    assert site_image(row) == site
    with pytest.raises(ValueError, match=r"well B03.*reader 'dicom'"):
        site_image({**row, "reader": "dicom"})
