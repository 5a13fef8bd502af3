from __future__ import annotations

import struct
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile
from scipy.ndimage import gaussian_filter
from tests.fast_cases import fast_cases

from cytolake.screens.images import image_files
from cytolake.screens.images.focus import focus_of
from cytolake.screens.images.image_files import read_shape
from cytolake.screens.images.pixels import read_site, resolve_sharpest, site_image
from cytolake.screens.plate import ScreenError, SiteImage
from cytolake.storage import files as storage

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


@pytest.mark.parametrize("window", [(0, 0, 51, 70), (-1, 0, 5, 5), (0, 66, 5, 5), (0, 0, 0, 5)])
def test_a_window_outside_the_site_is_refused(tmp_path, plane, window):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    assert problem_of(site_of(tmp_path / "a.tif"), window).problem == "shape_mismatch"


def test_channels_of_different_shape_are_refused(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    tifffile.imwrite(tmp_path / "b.tif", plane[1:], **GREY)
    problem = problem_of(site_of(tmp_path / "a.tif", tmp_path / "b.tif", channels=("DNA", "ER")))
    assert (problem.problem, problem.channel) == ("shape_mismatch", "ER")
    assert (problem.found, problem.expected) == ("49 x 70 pixels", "50 x 70, as in channel DNA")


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


def test_a_file_that_is_no_image_or_is_gone_is_reported(tmp_path):
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


def test_rows_written_before_projections_and_correction_were_known_are_plain_sites(tmp_path):
    site = site_of(tmp_path / "a")
    row = {name: getattr(site, name) for name in SiteImage.__dataclass_fields__}
    old = {**row, "planes": None, "illumination_paths": None}
    del old["plane_names"]
    assert site_image(old) == site
    assert site_image({name: cell for name, cell in old.items() if cell is not None}) == site
    projected = replace(site, z="max", planes=(2,), image_paths=("a", "b"), illumination_paths=("f",))
    row = {name: getattr(projected, name) for name in SiteImage.__dataclass_fields__}
    assert site_image({**row, "planes": np.array([2])}) == projected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_window_of_a_tiff_is_that_part_of_the_whole(tmp_path, plane, layout):
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY, **LAYOUTS[layout])
    site = site_of(tmp_path / "a.tif")
    rng = np.random.default_rng(1)
    for _ in range(20):
        (top, bottom), (left, right) = (np.sort(rng.choice(n + 1, 2, replace=False)) for n in plane.shape)
        window = (int(top), int(left), int(bottom - top), int(right - left))
        np.testing.assert_array_equal(read_site(site, window)[0], plane[top:bottom, left:right])


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"rowsperstrip": 4}, {"rowsperstrip": 4, "compression": None}])
def test_a_window_reads_only_the_part_of_the_file_that_it_touches(tmp_path, options):
    plane = np.random.default_rng(0).integers(0, 60_000, (512, 512), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY, **{"compression": "lzw", **options})
    segments = sorted(_segments(tmp_path / "a.tif"))
    whole = bytearray((tmp_path / "a.tif").read_bytes())
    first, last = segments[0][0], segments[-1][0] + segments[-1][1]
    middle = (first + last) // 2
    whole[middle:last] = bytes(last - middle)  # the lower half is lost
    (tmp_path / "a.tif").write_bytes(whole)
    np.testing.assert_array_equal(read_site(site_of(tmp_path / "a.tif"), (0, 0, 64, 64))[0], plane[:64, :64])


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_lossless_jpeg_2000_reads_as_it_was_written(tmp_path, plane, codec, dtype):
    plane = plane.astype(dtype)
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(plane, codecformat=codec, reversible=True, level=0))
    site = site_of(tmp_path / "a.jp2")
    np.testing.assert_array_equal(read_site(site)[0], plane)
    np.testing.assert_array_equal(read_site(site, (5, 6, 20, 30))[0], plane[5:25, 6:36])
    assert read_shape(str(tmp_path / "a.jp2")) == (plane.shape, plane.dtype)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("codec", ["jp2", "j2k"])
def test_a_cut_jpeg_2000_is_never_read(tmp_path, plane, codec, share):
    whole = imagecodecs.jpeg2k_encode(plane, codecformat=codec, reversible=True, level=0)
    (tmp_path / "a.jp2").write_bytes(whole[: int(len(whole) * share)])
    problem = problem_of(site_of(tmp_path / "a.jp2")).problem
    assert problem == "truncated_file" if share > 0.05 else problem in ("truncated_file", "unsupported_file")


def test_a_jpeg_2000_of_colours_is_not_one_grey_plane(tmp_path):
    (tmp_path / "a.jp2").write_bytes(imagecodecs.jpeg2k_encode(np.zeros((20, 30, 3), np.uint8)))
    assert problem_of(site_of(tmp_path / "a.jp2")).problem == "unsupported_file"


def test_the_shape_of_a_file_is_read_from_its_header(tmp_path, plane):
    tifffile.imwrite(tmp_path / "a.tif", plane.astype(np.float32), **GREY, compression="lzw")
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(plane))
    assert read_shape(str(tmp_path / "a.tif")) == (plane.shape, np.float32)
    assert read_shape(str(tmp_path / "a.png")) == (plane.shape, np.uint16)


WRITERS = {
    "a.tif": lambda path, plane: tifffile.imwrite(path, plane, **GREY, compression="lzw", rowsperstrip=7),
    "b.tif": lambda path, plane: tifffile.imwrite(path, plane, **GREY),
    "a.png": lambda path, plane: path.write_bytes(imagecodecs.png_encode(plane)),
    "a.jp2": lambda path, plane: path.write_bytes(imagecodecs.jpeg2k_encode(plane, reversible=True, level=0)),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("whole_object", fast_cases([2**24, 64], 64))
def test_an_image_in_a_bucket_reads_as_on_a_disk(tmp_path, plane, s3_bucket, monkeypatch, name, whole_object):
    monkeypatch.setattr(storage, "WHOLE_OBJECT_BYTES_MAX", whole_object)
    WRITERS[name](tmp_path / name, plane)
    storage.file_system(s3_bucket).pipe_file(f"{s3_bucket}/{name}", (tmp_path / name).read_bytes())
    local, remote = site_of(tmp_path / name), site_of(f"{s3_bucket}/{name}")
    np.testing.assert_array_equal(read_site(remote), read_site(local))
    np.testing.assert_array_equal(read_site(remote, (5, 6, 20, 30)), read_site(local, (5, 6, 20, 30)))
    assert read_shape(remote.image_paths[0]) == read_shape(local.image_paths[0])


def test_an_object_that_was_deleted_after_listing_is_a_missing_file(s3_bucket):
    problem = problem_of(site_of(f"{s3_bucket}/gone.tif"))
    assert (problem.problem, problem.file) == ("missing_file", f"{s3_bucket}/gone.tif")


@pytest.fixture
def stack(tmp_path):
    """A site of two channels, DNA in 3 planes with the middle one sharp and ER in one, with its pixels."""
    rng = np.random.default_rng(0)
    sharp = gaussian_filter(rng.normal(size=(60, 80)), 1) * 8000 + 20_000
    dna = [gaussian_filter(sharp, blur).astype(np.uint16) for blur in (3, 0, 5)]
    planes = [*dna, rng.integers(0, 60_000, (60, 80), dtype=np.uint16)]
    for i, plane in enumerate(planes):
        tifffile.imwrite(tmp_path / f"{i}.tif", plane, **GREY, compression="lzw", rowsperstrip=8)
    site = site_of(*(tmp_path / f"{i}.tif" for i in range(4)), channels=("DNA", "ER"))
    return replace(site, planes=(3, 1), plane_names=("a", "b", "c")), planes


@pytest.mark.parametrize("window", [None, (5, 6, 20, 30)])
def test_a_projection_is_the_maximum_over_the_planes_of_each_channel(stack, window):
    site, planes = stack
    expected = np.stack([np.max(planes[:3], axis=0), planes[3]])
    y, x, height, width = window or (0, 0, 60, 80)
    projected = read_site(replace(site, z="max"), window)
    np.testing.assert_array_equal(projected, expected[:, y : y + height, x : x + width])
    assert projected.dtype == np.uint16


def test_the_sharpest_plane_is_taken_for_all_channels_that_have_it(stack):
    site, planes = stack
    resolved = resolve_sharpest(replace(site, z="sharpest"))
    assert (resolved.z, resolved.planes, resolved.plane_names) == ("b", (), ())
    np.testing.assert_array_equal(read_site(resolved), np.stack([planes[1], planes[3]]))
    np.testing.assert_array_equal(read_site(replace(site, z="sharpest")), read_site(resolved))
    assert resolve_sharpest(resolved) is resolved


def test_a_bright_blurred_channel_has_no_more_to_say_about_focus_than_a_faint_sharp_one(tmp_path):
    rng = np.random.default_rng(0)
    field = gaussian_filter(rng.normal(size=(60, 80)), 1)
    sharp, blurred, more = (gaussian_filter(field, blur) for blur in (0, 2, 2.1))
    # faint: sharp in plane 1; bright: next to no difference, a little better in plane 0
    for channel, planes, scale in (("faint", (blurred, sharp), 100), ("bright", (blurred, more), 20_000)):
        for z, plane in enumerate(planes):
            tifffile.imwrite(tmp_path / f"{channel}{z}.tif", (plane * scale + 30_000).astype(np.uint16), **GREY)
    paths = [tmp_path / f"{channel}{z}.tif" for channel in ("faint", "bright") for z in (0, 1)]
    site = replace(site_of(*paths, channels=("faint", "bright")), z="sharpest", planes=(2, 2), plane_names=("0", "1"))
    assert resolve_sharpest(site).z == "1"


def test_planes_without_any_structure_resolve_to_the_first(tmp_path):
    for z in range(2):
        tifffile.imwrite(tmp_path / f"{z}.tif", np.full((20, 30), 7, np.uint8), **GREY)
    site = site_of(*(tmp_path / f"{z}.tif" for z in range(2)), channels=("DNA",))
    assert resolve_sharpest(replace(site, z="sharpest", planes=(2,), plane_names=("5", "6"))).z == "5"


def test_focus_falls_with_blur_and_does_not_change_with_an_offset():
    plane = np.random.default_rng(0).normal(size=(50, 60)).astype(np.float32) * 100
    focus = [focus_of(gaussian_filter(plane, blur)) for blur in (0, 0.5, 1, 2, 4)]
    assert focus == sorted(focus, reverse=True)
    assert focus_of(plane + 1000) == pytest.approx(focus_of(plane), rel=1e-4)
    assert focus_of(np.full((9, 9), 5, np.uint8)) == 0
    assert focus_of(np.ones((1, 1), np.uint8)) == 0


def test_a_plane_of_another_size_is_reported_by_its_channel_and_file(stack, tmp_path):
    site, planes = stack
    tifffile.imwrite(tmp_path / "2.tif", planes[2][1:], **GREY)
    problem = problem_of(replace(site, z="max"))
    assert (problem.problem, problem.channel, problem.file) == ("shape_mismatch", "DNA", str(tmp_path / "2.tif"))


@pytest.fixture
def lit(tmp_path, plane):
    """A site whose first channel is divided by an illumination function; the function has fields of 0.5 and 2."""
    function = np.where(np.arange(70) < 35, 0.5, 2.0) * np.ones((50, 1))
    np.save(tmp_path / "f.npy", function)
    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    tifffile.imwrite(tmp_path / "b.tif", plane, **GREY)
    site = site_of(tmp_path / "a.tif", tmp_path / "b.tif")
    return replace(site, illumination_paths=(str(tmp_path / "f.npy"), "")), function


def test_counts_are_divided_rounded_and_clipped_to_their_type(lit, plane):
    site, function = lit
    expected = np.clip(np.rint(plane / function), 0, 65_535).astype(np.uint16)
    assert (expected == 65_535).any()
    np.testing.assert_array_equal(read_site(site), np.stack([expected, plane]))
    np.testing.assert_array_equal(read_site(site, (5, 30, 20, 10)), np.stack([expected, plane])[:, 5:25, 30:40])
    np.testing.assert_array_equal(read_site(site, is_corrected=False), np.stack([plane, plane]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_stay_floats(lit, plane, tmp_path, dtype):
    site, function = lit
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", plane.astype(dtype), **GREY)
    pixels = read_site(site)
    np.testing.assert_allclose(pixels[0], plane / function, rtol=1e-6)
    assert pixels.dtype == dtype


def test_a_function_may_be_a_tiff_in_any_order_of_bytes_or_axes(lit, tmp_path, s3_bucket):
    site, function = lit
    expected = read_site(site)
    np.save(tmp_path / "f.npy", np.asfortranarray(function.astype(">f4")))
    np.testing.assert_array_equal(read_site(site), expected)
    tifffile.imwrite(tmp_path / "f.tif", function.astype(np.float32), **GREY)
    np.testing.assert_array_equal(read_site(replace(site, illumination_paths=(str(tmp_path / "f.tif"), ""))), expected)
    storage.file_system(s3_bucket).pipe_file(f"{s3_bucket}/f.npy", (tmp_path / "f.npy").read_bytes())
    np.testing.assert_array_equal(read_site(replace(site, illumination_paths=(f"{s3_bucket}/f.npy", ""))), expected)


def test_a_function_that_was_written_again_is_read_again(lit, tmp_path):
    site, _ = lit
    before = read_site(site)
    np.save(tmp_path / "f.npy", np.full((50, 70), 100.0))
    assert read_site(site)[0].max() < before[0].max()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda function: function[1:], "shape_mismatch"),
        (lambda function: function[None], "shape_mismatch"),
        (lambda function: np.where(function > 1, 0, function), "bad_illumination"),
        (lambda function: -function, "bad_illumination"),
        (lambda function: np.where(function > 1, np.nan, function), "bad_illumination"),
        (lambda function: np.where(function > 1, np.inf, function), "bad_illumination"),
        (lambda function: function.astype(str), "unsupported_file"),
        (lambda function: function.astype(complex), "unsupported_file"),
    ],
)
def test_a_function_that_cannot_be_divided_by_is_reported(lit, tmp_path, change, problem):
    site, function = lit
    np.save(tmp_path / "f.npy", change(function))
    found = problem_of(site)
    assert (found.problem, found.channel, found.file) == (problem, "stain0", str(tmp_path / "f.npy"))
    assert read_site(site, is_corrected=False).shape == (2, 50, 70)


def test_a_function_that_holds_objects_is_never_loaded(lit, tmp_path):
    site, function = lit
    np.save(tmp_path / "f.npy", function.astype(object), allow_pickle=True)
    assert problem_of(site).problem == "unsupported_file"


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.001, 0.5, 0.999])
def test_a_cut_function_is_reported(lit, tmp_path, share):
    site, _ = lit
    whole = (tmp_path / "f.npy").read_bytes()
    (tmp_path / "f.npy").write_bytes(whole[: int(len(whole) * share)])
    assert problem_of(site).problem in ("truncated_file", "unreadable_file", "unsupported_file")


def test_a_function_that_is_gone_is_reported(lit, tmp_path):
    site, _ = lit
    (tmp_path / "f.npy").unlink()
    assert problem_of(site).problem == "missing_file"


def test_a_projection_is_corrected_after_it_was_projected(stack, tmp_path):
    site, planes = stack
    np.save(tmp_path / "f.npy", np.full((60, 80), 3.0))
    site = replace(site, z="max", illumination_paths=(str(tmp_path / "f.npy"), ""))
    np.testing.assert_array_equal(read_site(site)[0], np.rint(np.max(planes[:3], axis=0) / 3.0))
    assert resolve_sharpest(replace(site, z="sharpest")).illumination_paths == site.illumination_paths


def test_planes_and_functions_that_fit_no_channels_are_refused(stack):
    site, _ = stack
    for wrong in ({"planes": (3, 2)}, {"planes": (4,)}, {"planes": (4, 0)}, {"illumination_paths": ("", "", "")}):
        assert problem_of(replace(site, z="max", **wrong)).problem == "shape_mismatch"


def test_memory_that_is_not_there_is_no_fault_of_the_file(tmp_path, plane, monkeypatch):
    def refuse(*_):
        raise MemoryError

    tifffile.imwrite(tmp_path / "a.tif", plane, **GREY)
    monkeypatch.setattr(image_files, "read_tiff_plane", refuse)
    with pytest.raises(MemoryError):
        read_site(site_of(tmp_path / "a.tif"))
