"""Damaged and hostile images: each is an array of the declared shape or a problem, in bounded memory and time.

The named cases were found by mutating valid files for minutes; the tests with hypothesis go on looking.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache

import imagecodecs
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cytolake.screens.images.image_errors import ImageFileError
from cytolake.screens.images.pixels import read_site, resolve_sharpest
from cytolake.screens.plate import ScreenError, SiteImage
from cytolake.screens.sources import ScreenSource, list_plates

GREY = {"photometric": "minisblack"}
BYTES_MAX = 2**24
PLANE = np.random.default_rng(0).integers(0, 60_000, (33, 41), dtype=np.uint16)
FUZZING = settings(
    deadline=None, report_multiple_bugs=False, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def site_of(path, **fields):
    return SiteImage(
        screen="s", plate="P1", well="B03", site="2", reader="files", channels=("DNA",), image_paths=(str(path),)
    ) if not fields else replace(site_of(path), **fields)  # fmt: skip


def problem_of(site, *args):
    with pytest.raises(ScreenError) as caught:
        read_site(site, *args)
    (problem,) = caught.value.problems
    return problem


def tiff(plane=PLANE, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, plane, **GREY, **options)
    return file.getvalue()


TIFFS = {
    "plain": tiff(),
    "strips": tiff(rowsperstrip=7),
    "tiles": tiff(tile=(16, 16)),
    "lzw": tiff(compression="lzw", rowsperstrip=8, predictor=True),
    "deflate": tiff(compression="zlib", tile=(16, 32)),
    "packbits": tiff((PLANE >> 8).astype(np.uint8), compression="packbits", rowsperstrip=8),
    "zstd": tiff(compression="zstd"),
    "jpeg": tiff((PLANE >> 8).astype(np.uint8), compression="jpeg"),
    "big-endian": tiff(byteorder=">"),
    "bigtiff": tiff(bigtiff=True, tile=(16, 16), compression="zlib"),
    "float": tiff(PLANE.astype(np.float32), compression="zlib", predictor=True),
}
OTHERS = {
    "png": imagecodecs.png_encode(PLANE),
    "jp2": imagecodecs.jpeg2k_encode(PLANE, codecformat="jp2", reversible=True, level=0),
    "j2k": imagecodecs.jpeg2k_encode(PLANE, codecformat="j2k", reversible=True, level=0),
}


def with_tag(data, tag, value):
    """A TIFF with another value of one tag of its first page."""
    file = io.BytesIO(data)
    with tifffile.TiffFile(file, mode="r+") as tif:
        tif.pages[0].tags[tag].overwrite(value)
    return file.getvalue()


@st.composite
def mutations(draw):
    """A function that damages bytes: flips, numbers that headers fear, cuts, insertions, copies of itself."""
    numbers = st.sampled_from([0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "number", "cut", "insert", "delete", "copy"]),
                st.floats(0, 1, exclude_max=True),
                st.floats(0, 1, exclude_max=True),
                numbers,
                st.sampled_from([(2, "little"), (4, "little"), (4, "big"), (8, "little")]),
            ),
            min_size=1,
            max_size=4,
        )
    )

    def mutate(data):
        content = bytearray(data)
        for kind, where, other, number, (size, order) in steps:
            at, there = int(where * len(content)), int(other * len(content))
            if kind == "flip" and content:
                content[at] ^= 1 << int(other * 8)
            elif kind == "number":
                content[at : at + size] = (number % 2 ** (8 * size)).to_bytes(size, order)
            elif kind == "cut":
                del content[at:]
            elif kind == "insert":
                content[at:at] = bytes(number % 40)
            elif kind == "delete":
                del content[at : at + 1 + number % 40]
            else:
                content[at : at + size] = content[there : there + size]
        return bytes(content)

    return mutate


def check_read(site, n_channels=1):
    """What every read must give: pixels of as many channels and of the window, or one problem."""
    for window in (None, (1, 2, 5, 6)):
        try:
            pixels = read_site(site, window, BYTES_MAX)
        except ScreenError as error:
            (problem,) = error.problems
            assert problem.found
            assert "memory" not in problem.found
        else:
            assert pixels.ndim == 3
            assert pixels.shape[0] == n_channels
            assert min(pixels.shape) > 0
            assert pixels.nbytes <= BYTES_MAX
            assert window is None or pixels.shape[1:] == (5, 6)


@FUZZING
@given(name=st.sampled_from([*TIFFS, *OTHERS]), mutate=mutations())
def test_a_damaged_image_is_pixels_of_its_shape_or_a_problem(tmp_path, name, mutate):
    (tmp_path / "a").write_bytes(mutate((TIFFS | OTHERS)[name]))
    check_read(site_of(tmp_path / "a"))


@FUZZING
@given(
    data=st.binary(max_size=300),
    head=st.sampled_from([b"II*\0", b"MM\0+", b"\x89PNG\r\n\x1a\n", b"\xff\x4f\xff\x51", b""]),
)
def test_any_bytes_are_pixels_or_a_problem(tmp_path, data, head):
    (tmp_path / "a").write_bytes(head + data)
    check_read(site_of(tmp_path / "a"))


@FUZZING
@given(mutate=mutations())
def test_a_damaged_illumination_function_is_values_or_a_problem(tmp_path, mutate):
    (tmp_path / "a").write_bytes(TIFFS["plain"])
    file = io.BytesIO()
    np.save(file, np.ones(PLANE.shape))
    (tmp_path / "f").write_bytes(mutate(file.getvalue()))
    check_read(site_of(tmp_path / "a", illumination_paths=(str(tmp_path / "f"),)))


@pytest.mark.parametrize("tag", ["ImageWidth", "ImageLength"])
def test_an_image_of_no_pixels_is_refused(tmp_path, tag):
    (tmp_path / "a.tif").write_bytes(with_tag(TIFFS["zstd"], tag, 0))
    assert problem_of(site_of(tmp_path / "a.tif")).problem in ("unreadable_file", "shape_mismatch", "truncated_file")


def test_a_function_whose_header_is_a_cut_literal_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(TIFFS["plain"])
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (33, 41"
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    site = site_of(tmp_path / "a.tif", illumination_paths=(str(tmp_path / "f.npy"),))
    assert problem_of(site).problem == "unreadable_file"


def test_a_function_that_promises_terabytes_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(TIFFS["plain"])
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000)}"
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header)
    site = site_of(tmp_path / "a.tif", illumination_paths=(str(tmp_path / "f.npy"),))
    assert problem_of(site).problem == "shape_mismatch"


def j2k_with(**fields):
    """The small codestream with other numbers in its size header or coding style."""
    data = bytearray(OTHERS["j2k"])
    places = {"width": (8, ">I"), "height": (12, ">I"), "tile_width": (24, ">I"), "tile_height": (28, ">I")}
    style = data.index(b"\xff\x52")
    places |= {"layers": (style + 6, ">H"), "levels": (style + 9, ">B")}
    for name, value in fields.items():
        struct.pack_into(places[name][1], data, places[name][0], value)
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"width": 2**31, "height": 2**31, "tile_width": 2**31, "tile_height": 2**31}, "unreadable_file"),
        ({"width": 60_000, "height": 60_000, "tile_width": 60_000, "tile_height": 60_000}, "too_large"),
        ({"tile_width": 1, "tile_height": 1, "width": 10_000, "height": 10_000}, "unreadable_file"),
        ({"layers": 65_535, "width": 20_000, "tile_width": 20_000, "levels": 32}, "unreadable_file"),
        ({"width": 0}, "unreadable_file"),
        ({"tile_width": 0}, "unreadable_file"),
        ({"levels": 200}, "unreadable_file"),
    ],
)
def test_a_jpeg_2000_whose_headers_ask_for_too_much_is_refused(tmp_path, fields, problem):
    (tmp_path / "a.j2k").write_bytes(j2k_with(**fields))
    assert problem_of(site_of(tmp_path / "a.j2k"), None, 2**28).problem == problem


def test_floats_that_are_no_numbers_are_read_as_they_are_and_do_not_decide_the_focus(tmp_path):
    plane = PLANE.astype(np.float32)
    bad = plane.copy()
    bad[3, 4], bad[10] = np.nan, np.inf
    for z, pixels in enumerate((bad, plane)):
        tifffile.imwrite(tmp_path / f"{z}.tif", pixels, **GREY)
    np.testing.assert_array_equal(read_site(site_of(tmp_path / "0.tif"))[0], bad)
    paths = (str(tmp_path / "0.tif"), str(tmp_path / "1.tif"))
    stack = site_of(paths[0], z="sharpest", image_paths=paths, planes=(2,), plane_names=("a", "b"))
    assert resolve_sharpest(stack).z == "b"


def test_an_image_that_is_a_link_to_nothing_or_a_folder_is_a_problem(tmp_path):
    (tmp_path / "a.tif").symlink_to(tmp_path / "gone")
    (tmp_path / "loop.tif").symlink_to(tmp_path / "loop.tif")
    assert problem_of(site_of(tmp_path / "a.tif")).problem == "missing_file"
    assert problem_of(site_of(tmp_path / "loop.tif")).problem == "unreadable_file"
    assert problem_of(site_of(tmp_path)).problem == "unreadable_file"


# OME-Zarr: metadata and chunks

COMPRESSORS = {
    "blosc": (numcodecs.Blosc("lz4"), lambda: zarr.codecs.BloscCodec(cname="zstd")),
    "zstd": (numcodecs.Zstd(), lambda: zarr.codecs.ZstdCodec()),
    "gzip": (numcodecs.GZip(), lambda: zarr.codecs.GzipCodec()),
    "lz4": (numcodecs.LZ4(), None),
}
AXES = [{"name": name, "type": "space", "unit": "micrometer"} for name in "czyx"]
ZARRS = [(2, name) for name in COMPRESSORS] + [(3, "blosc"), (3, "zstd"), (3, "gzip"), (3, "shards")]


def write_zarr(folder, zarr_format, compressor, size=(24, 32), chunk=None):
    """A plate of one image (2 channels, 3 planes); `chunk` is what each chunk file holds, None for its pixels."""
    path = folder / f"{compressor}{zarr_format}.zarr"
    image = {
        "multiscales": [{"axes": AXES, "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1, 0.65, 0.65]}]}]}],
        "omero": {"channels": [{"label": "DNA"}, {"label": "ER"}]},
    }  # fmt: skip
    groups = {
        "": {"plate": {"wells": [{"path": "B/03"}], "rows": [{"name": "B"}], "columns": [{"name": "03"}]}},
        "B/03": {"well": {"images": [{"path": "0"}]}},
        "B/03/0": image,
    }
    for place, ome in groups.items():
        (path / place).mkdir(parents=True)
        if zarr_format == 2:
            (path / place / ".zattrs").write_text(json.dumps(ome))
        else:
            document = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
            (path / place / "zarr.json").write_text(json.dumps(document))
    shards = {"chunks": (1, 1, 8, 8), "shards": (2, 3, *size)} if compressor == "shards" else {"chunks": (1, 2, *size)}
    v2, v3 = COMPRESSORS["zstd" if compressor == "shards" else compressor]
    array = zarr.create_array(
        path / "B/03/0/0", shape=(2, 3, *size), dtype="u2", zarr_format=zarr_format,
        compressors=v2 if zarr_format == 2 else v3(), **shards,
    )  # fmt: skip
    if chunk is None:
        array[:] = np.random.default_rng(0).integers(0, 60_000, array.shape, dtype=np.uint16)
        return path
    for channel in range(2):
        name = f"{channel}.0.0.0" if zarr_format == 2 else f"c/{channel}/0/0/0"
        (path / "B/03/0/0" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "B/03/0/0" / name).write_bytes(chunk)
    return path


@pytest.fixture(scope="module")
def zarr_screens(tmp_path_factory):
    """One screen for each Zarr format and compressor, with its sites and files."""
    folder = tmp_path_factory.mktemp("zarrs")
    found = {}
    for zarr_format, compressor in ZARRS:
        path = write_zarr(folder, zarr_format, compressor)
        (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
        found[zarr_format, compressor] = path, plate.sites, sorted(file for file in path.rglob("*") if file.is_file())
    return lambda which: found[which]  # a function is short where hypothesis shows a failing case


def check_zarr(path, sites):
    """Whatever is listed reads as pixels of its channels or as a problem; so do the sites of an older listing."""
    with suppress(ScreenError):
        (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
        sites = [*sites[:1], *plate.sites[:1], *plate.sites[-1:]]
    for site in sites:
        check_read(site, len(site.channels))


@FUZZING
@given(which=st.sampled_from(ZARRS), where=st.floats(0, 1, exclude_max=True), mutate=mutations())
def test_a_damaged_zarr_file_is_pixels_or_a_problem(zarr_screens, which, where, mutate):
    path, sites, files = zarr_screens(which)
    file = files[int(where * len(files))]
    content = file.read_bytes()
    try:
        file.write_bytes(mutate(content))
        check_zarr(path, sites)
    finally:
        file.write_bytes(content)


def leaves(document, place=()):
    """Where each part of a JSON document lies."""
    if place:
        yield place
    for key, part in document.items() if isinstance(document, dict) else enumerate(document):
        if isinstance(part, (dict, list)):
            yield from leaves(part, (*place, key))
        else:
            yield (*place, key)


STRANGE = [
    *(0, -1, 1, 3, 2**31, 2**63, 10**30, 1.5, None, True, "", "a", "..", "../../x", "/etc", "\0", "\ud800"),
    *("<f8", "|O", "|V9", "zstd", "gzip", "bytes", "sharding_indexed", "F"),
    *([], {}, [0], [1], [[]], [1, 1, 1, 1], [2**20] * 4, [1] * 9),
    *({"name": "zstd", "configuration": {}}, {"id": "lzma"}, {"id": "blosc"}, "NaN", float("inf")),
]


@FUZZING
@given(
    which=st.sampled_from(ZARRS),
    where=st.floats(0, 1, exclude_max=True),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(STRANGE)), min_size=1, max_size=3),
)
def test_strange_zarr_metadata_are_pixels_or_a_problem(zarr_screens, which, where, changes):
    path, sites, files = zarr_screens(which)
    documents = [file for file in files if file.name in ("zarr.json", ".zattrs", ".zarray")]
    file = documents[int(where * len(documents))]
    content = file.read_bytes()
    document = json.loads(content)
    for place, strange in changes:
        places = list(leaves(document))
        if not places:
            break
        *above, key = places[int(place * len(places))]
        part = document
        for step in above:
            part = part[step]
        part[key] = deepcopy(strange)
    try:
        file.write_text(json.dumps(document))
        check_zarr(path, sites)
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("strange", [3, 1.5, True, None, {"path": "0"}, [3], [{"path": 3}], [{}]])
def test_a_list_of_wells_or_images_that_is_none_is_a_problem(tmp_path, strange):
    for place, kind, name in (("", "plate", "wells"), ("B/03", "well", "images")):
        path = write_zarr(tmp_path, 2, "zstd")
        file = path / place / ".zattrs"
        document = json.loads(file.read_text())
        document[kind][name] = strange
        file.write_text(json.dumps(document))
        with pytest.raises(ScreenError) as caught:
            list_plates(ScreenSource(screen="s", path=str(path)))
        assert "unreadable_file" in [problem.problem for problem in caught.value.problems]
        shutil.rmtree(path)


BOMB = bytes(2**28)  # of zeros: 256 MiB


@lru_cache
def bomb(kind):
    """A chunk of at most a MiB that decodes to 256 MiB, or that says so."""
    return {
        "deflate": lambda: zlib.compress(BOMB, 1),
        "gzip": lambda: gzip.compress(BOMB, 1),
        "zstd": lambda: numcodecs.Zstd(1).encode(BOMB),
        "blosc": lambda: bytes(numcodecs.Blosc("zstd", clevel=1).encode(BOMB)),
        "lz4": lambda: struct.pack("<I", 2**31 - 1) + bytes(numcodecs.LZ4().encode(bytes(2**20)))[4:],
    }[kind]()


@pytest.mark.parametrize(("zarr_format", "kind"), [z for z in ZARRS if z[1] != "shards"])
def test_a_zarr_chunk_that_decodes_to_more_than_a_chunk_is_refused(tmp_path, zarr_format, kind):
    path = write_zarr(tmp_path, zarr_format, kind, size=(1024, 1024), chunk=bomb(kind))
    (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
    problem = problem_of(plate.sites[0])
    assert problem.problem in ("too_large", "unreadable_file")
    assert "more than" in problem.found or "too small" in problem.found


def test_a_zarr_chunk_larger_than_any_that_decodes_to_it_is_not_even_loaded(tmp_path):
    path = write_zarr(tmp_path, 2, "zstd", chunk=bytes(2**20))
    (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
    assert "found more than" in problem_of(plate.sites[0]).found


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"compressor": {"id": "lzma", "preset": 9}}, "unsupported_file"),
        ({"compressor": {"id": "pickle"}}, "unsupported_file"),
        ({"filters": [{"id": "pickle"}]}, "unsupported_file"),
        ({"dtype": "|O", "filters": [{"id": "pickle"}]}, "unsupported_file"),
        ({"dtype": "<M8[ns]"}, "unsupported_file"),
        ({"chunks": [1, 1, 1, 1], "shape": [2, 3, 10_000, 10_000]}, "too_large"),
        ({"chunks": [1, 1, 20_000, 20_000], "shape": [2, 3, 20_000, 20_000]}, "too_large"),
        ({"chunks": [0, 1, 24, 32]}, "unreadable_file"),
        ({"shape": [2, 3, 24]}, "unreadable_file"),
        ({"shape": [2, 3, 2**62, 2**62]}, "unreadable_file"),
    ],
)
def test_a_zarr_array_that_asks_for_what_is_not_safe_is_refused(tmp_path, changes, problem):
    path = write_zarr(tmp_path, 2, "zstd")
    (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
    file = path / "B/03/0/0/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    assert problem_of(plate.sites[0], None, 2**28).problem == problem


PLAIN = [{"name": "bytes", "configuration": {"endian": "little"}}]


def shards(chunk_shape, codecs=PLAIN, **settings):
    return [{"name": "sharding_indexed", "configuration": {"chunk_shape": chunk_shape, "codecs": codecs, **settings}}]


@pytest.mark.parametrize(
    "codecs",
    [
        [*PLAIN, {"name": "numcodecs.lzma", "configuration": {}}],
        [{"name": "vlen-utf8", "configuration": {}}],
        [],
        3,
        shards([1, 2, 7, 32]),
        shards([1, 2, 24, 32], shards([1, 1, 24, 32])),
        shards([1, 2, 24, 32], index_codecs=[*PLAIN, {"name": "gzip"}]),
    ],
)
def test_zarr_codecs_that_cannot_be_bounded_are_refused(tmp_path, codecs):
    path = write_zarr(tmp_path, 3, "zstd")
    (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
    file = path / "B/03/0/0/zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"codecs": codecs}))
    assert problem_of(plate.sites[0]).problem in ("unsupported_file", "unreadable_file")


def test_json_nested_past_all_measure_is_a_problem_and_no_crash(tmp_path):
    path = write_zarr(tmp_path, 2, "zstd")
    (plate,) = list_plates(ScreenSource(screen="s", path=str(path)))
    (path / "B/03/0/.zattrs").write_text("[" * 100_000)
    assert problem_of(plate.sites[0]).problem == "unreadable_file"


# memory

READ = """
import resource, sys
from cytolake.screens.images import zarr_images
from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import ScreenError, SiteImage
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 192 * 2**20,) * 2)
for line in sys.stdin:
    reader, path = line.split()
    channels = ("DNA", "ER") if reader == "ome-zarr" else ("DNA",)
    z = "0" if reader == "ome-zarr" else ""
    site = SiteImage(
        screen="s", plate="P", well="B03", site="1", reader=reader, channels=channels, image_paths=(path,), z=z
    )
    for window in (None, (0, 0, 4, 4)):
        try:
            print(path, "pixels", read_site(site, window, 2**26).shape)
        except ScreenError as error:
            print(path, error.problems[0].problem, error.problems[0].found)
"""


def test_hostile_images_are_refused_in_a_process_with_little_memory(tmp_path):
    """Each file is small and promises or decodes to more than the 192 MiB that the process may still take."""
    hostile = {
        "shape.tif": with_tag(with_tag(TIFFS["deflate"], "ImageWidth", 60_000), "ImageLength", 60_000),
        "deflate.tif": _with_one_strip(bomb("deflate"), 8),
        "zstd.tif": _with_one_strip(bomb("zstd"), 50_000),
        "lzw.tif": _with_one_strip(imagecodecs.lzw_encode(BOMB[: 2**26]) * 4, 5),
        "tag.tif": b"II*\0" + struct.pack("<IHHHII", 8, 1, 273, 4, 2**31 - 1, 8) + bytes(4),
        "shape.png": _png(60_000, 60_000),
        "inflate.png": _png(33, 41, bomb("deflate")),
        "shape.j2k": j2k_with(width=60_000, height=60_000, tile_width=60_000, tile_height=60_000),
        "tiles.j2k": j2k_with(width=2_000_000, height=33, tile_width=1, tile_height=1),
        "layers.j2k": j2k_with(layers=65_535, levels=32),
    }
    lines = []
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
        lines.append(f"files {tmp_path / name}")
    for zarr_format, kind in ZARRS:
        if kind != "shards":
            path = write_zarr(tmp_path, zarr_format, kind, size=(1024, 1024), chunk=bomb(kind))
        else:
            path = write_zarr(tmp_path, zarr_format, kind)
            file = path / "B/03/0/0/zarr.json"
            document = json.loads(file.read_text())
            document["shape"] = document["chunk_grid"]["configuration"]["chunk_shape"] = [2, 3, 24_000, 32_000]
            file.write_text(json.dumps(document))
        lines.append(f"ome-zarr {path}/B/03/0")
    done = subprocess.run(
        [sys.executable, "-c", READ],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},  # or each thread would set 64 MiB of addresses aside
    )
    assert done.returncode == 0, done.stderr[-2000:]
    problems = [line.split()[1] for line in done.stdout.splitlines()]
    assert len(problems) == 2 * len(lines)
    assert set(problems) <= {"too_large", "truncated_file", "unreadable_file", "shape_mismatch", "pixels"}
    assert problems.count("pixels") <= 6  # a strip or PNG that holds more than its image is cut to it, unread
    assert "more declared than this process has memory for" not in done.stdout


def _with_one_strip(strip, compression):
    data = bytearray(tiff(PLANE, compression="zlib" if compression == 8 else "lzw"))
    start = len(data)
    data += strip
    data = bytearray(with_tag(bytes(data), "StripOffsets", [start]))
    data = bytearray(with_tag(bytes(data), "StripByteCounts", [len(strip)]))
    return with_tag(bytes(data), "Compression", compression)


def _png(width, height, idat=b""):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def test_an_image_file_error_says_what_to_do():
    error = ImageFileError("too_large", "9 bytes", "at most 8", "Cut it.")
    assert str(error) == "too_large: found 9 bytes, expected at most 8. Cut it."
