"""Hostile TIFF headers: the reader of plates and the decoder of sent crops refuse them for the same reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import tifffile

from cytolake.screens.images.bounded_tiff import read_tiff_plane
from cytolake.screens.images.image_errors import ImageFileError
from cytolake.serving.decoding.crops import DecodingBudget
from cytolake.serving.decoding.tiff import decode_tiff
from cytolake.serving.problems import ServingError

PLANE = np.random.default_rng(0).integers(0, 60_000, (33, 41), dtype=np.uint16)
BYTES_MAX = 2**24
BUDGET = DecodingBudget(max_decoded_bytes=BYTES_MAX)


def read_as_plate(data: bytes) -> np.ndarray:
    return read_tiff_plane(io.BytesIO(data), len(data), None, BYTES_MAX)[0]


def decode_as_crop(data: bytes) -> np.ndarray:
    return decode_tiff(data, BUDGET).images[0][0]


READERS = [read_as_plate, decode_as_crop]


def refusal(read: Callable[[bytes], np.ndarray], data: bytes) -> str:
    with pytest.raises((ImageFileError, ServingError)) as caught:
        read(data)
    return str(caught.value)


def tiff(plane: np.ndarray = PLANE, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, plane, photometric="minisblack", metadata=None, **options)
    return file.getvalue()


def with_tags(data: bytes, **tags: object) -> bytes:
    """A TIFF with other values of tags of its first page."""
    for tag, value in tags.items():
        file = io.BytesIO(data)
        with tifffile.TiffFile(file, mode="r+") as tif:
            tif.pages[0].tags[tag].overwrite(value)
        data = file.getvalue()
    return data


def pages(n: int, *, circle: bool) -> bytes:
    """A TIFF of n empty pages, the last of which points to the first or to nothing."""
    page = struct.pack("<HHHII", 1, 256, 4, 1, 41)
    chain = b"".join(page + struct.pack("<I", 8 + (i + 1) * 18) for i in range(n - 1))
    return b"II*\0" + struct.pack("<I", 8) + chain + page + struct.pack("<I", 8 if circle else 0)


TILES = tiff(tile=(16, 16), compression="zlib")
N_TILES = 9
HOSTILE = {
    "circle of one page": (pages(1, circle=True), "in a circle"),
    "circle of pages": (pages(3, circle=True), "in a circle"),
    "too many pages": (pages(5000, circle=False), "more than 4096 pages"),
    "tag of too many values": (
        b"II*\0" + struct.pack("<IHHHII", 8, 1, 273, 4, 2**31, 8) + bytes(4),
        "a tag of 2147483648 values",
    ),
    "tiles behind the end": (with_tags(TILES, TileOffsets=[2**31] * N_TILES), "at least 2147"),
    "tiles longer than the file": (with_tags(TILES, TileByteCounts=[60_000] * N_TILES), "at least 6"),
    "tiles without data": (with_tags(TILES, TileOffsets=[0] * N_TILES), "strips or tiles with data"),
    "large tile of a small image": (with_tags(TILES, TileWidth=60_000, TileLength=60_000), "bytes declared"),
    "compression without a bound": (with_tags(tiff(compression="lzw"), Compression=34925), "TIFF compression 34925"),
    "cut file": (TILES[: len(TILES) - 40], "bytes"),
    "inverted grey": (with_tags(tiff(), PhotometricInterpretation=0), "0 is white"),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused(name, read):
    data, found = HOSTILE[name]
    assert found in refusal(read, data)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits"])
def test_an_image_beyond_the_budget_is_refused_at_its_header(compression, read):
    data = tiff(np.zeros((3000, 6000), np.uint8), compression=compression)
    tracemalloc.start()
    try:
        refusal(read, data)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(data) + 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("read", READERS)
def test_a_compressed_image_with_fewer_strips_than_its_size_needs_is_refused(read):
    """tifffile leaves the strips that are not listed black; part of an image is not an image."""
    whole = tiff(compression="zlib", rowsperstrip=8)
    with tifffile.TiffFile(io.BytesIO(whole)) as tif:
        first = [tif.pages[0].dataoffsets[0]], [tif.pages[0].databytecounts[0]]
    np.testing.assert_array_equal(read(whole), PLANE)
    assert "strips or tiles with data" in refusal(
        read, with_tags(whole, StripOffsets=first[0], StripByteCounts=first[1])
    )


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits", None])
@pytest.mark.parametrize("read", READERS)
def test_whole_images_are_read(compression, read):
    plane = (PLANE >> 8).astype(np.uint8)
    np.testing.assert_array_equal(read(tiff(plane, compression=compression, rowsperstrip=8)), plane)
