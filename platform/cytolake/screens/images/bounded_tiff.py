"""Bounded reading of TIFF pages: every header is checked against the file and a budget before memory is taken.

A header can declare any size, so what it declares is checked first, and a file that is cut short is refused: part of an
image is not an image. Readers of plates and the decoder of sent images both use this module.

Letters: H height and W width in pixels.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import tifffile

from cytolake.screens.images.image_errors import (
    ImageFileError,
    Window,
    check_budget,
    check_pixel_type,
    check_window,
    one_line,
)
from cytolake.screens.images.tiff_pages import image_page

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PAGES_MAX = 4096
"""Pages of one TIFF; a longer stack is no plane of a site."""

_JPEG = 7
LOSSLESS: Mapping[int, str] = {
    1: "none",
    5: "LZW",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
    50000: "Zstandard",
}
"""Lossless compressions whose decoders write into a buffer of the declared size, whatever the data are."""
COMPRESSIONS: Mapping[int, str] = {**LOSSLESS, _JPEG: "JPEG"}
"""Compressions of plates; their decoders are bounded in the same way."""

_COPY_AGAIN = "The file is cut short; copy it again from its source."
_DAMAGED = "The file is damaged; copy it again from its source."
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_COLOUR_SPACES = (2, 5, 6, 8)  # RGB, CMYK, YCbCr, CIELab


@contextmanager
def tiff_errors() -> Iterator[None]:
    """Turn the errors of tifffile and its codecs inside the block into one ImageFileError, `unreadable_file`."""
    try:
        yield
    except (ImageFileError, OSError, MemoryError):
        raise
    except Exception as error:  # tifffile and each codec raise their own
        raise ImageFileError(
            "unreadable_file", one_line(error), "a whole TIFF", "The file is cut or damaged; copy it again."
        ) from error


def open_tiff(file: BinaryIO, size: int) -> tifffile.TiffFile:
    """Open a TIFF after a check of its chain of headers. Other files that its metadata name are never opened.

    Args:
        file: The open file.
        size: Its length, bytes.

    Raises:
        ImageFileError: The file is cut or damaged.
    """
    with tiff_errors():
        check_tiff_headers(file, size)
        file.seek(0)
        return tifffile.TiffFile(file, _multifile=False)


@contextmanager
def opened_page(file: BinaryIO, size: int, bytes_max: int) -> Iterator[tuple[tifffile.TiffFile, tifffile.TiffPage]]:
    """The page of full resolution of a TIFF with one grey plane, checked.

    Errors of tifffile inside the block become an ImageFileError too.

    Raises:
        ImageFileError: As `check_tiff_page`, `tiff_pages.image_page` and `open_tiff`.
    """
    with tiff_errors(), open_tiff(file, size) as tif:
        pages = [each.aspage() for each in tif.pages]
        for each in pages:
            check_tiff_headers(file, size, each.subifds or ())
        page, n_alike = image_page(pages)
        check_tiff_page(page, n_alike, size, bytes_max)
        yield tif, page


def read_tiff_plane(
    file: BinaryIO, size: int, window: Window | None, bytes_max: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels in a window, in their own type, and the (H, W) of the whole; reads only strips or tiles in the window.

    Raises:
        ImageFileError: As `opened_page`, or the window leaves the image.
    """
    with opened_page(file, size, bytes_max) as (tif, page):
        shape = (page.shape[0], page.shape[1])
        y, x, height, width = check_window(window, *shape)
        if (height, width) == shape:
            pixels_HW = page.asarray(maxworkers=1)
        elif page.is_contiguous and page.dtype is not None and page.bitspersample == np.dtype(page.dtype).itemsize * 8:
            pixels_HW = _contiguous_rows(file, tif, page, y, height)[:, x : x + width]
        elif len(page.dataoffsets) == math.prod(page.chunked) and int(page.compression) != _JPEG:
            pixels_HW = _segments(tif, page, (y, x, height, width))
        else:
            pixels_HW = page.asarray(maxworkers=1)[y : y + height, x : x + width]
        return np.ascontiguousarray(pixels_HW, dtype=page.dtype), shape


def check_tiff_headers(file: BinaryIO, size: int, sub_pages: Sequence[int] | None = None) -> None:
    """Follow the chain of pages and check what tifffile does not.

    Args:
        size: Its length, bytes.
        sub_pages: Offsets of the SubIFDs of one page, which are checked instead of the chain.

    Raises:
        ImageFileError: A circular chain, more than PAGES_MAX pages, a tag with more values than the file has bytes
            (tifffile would allocate them), or a header beyond the end of the file.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2:4] in (b"+\0", b"\0+")
    count_form, entry_form, next_form = ("Q", "HHQQ", "Q") if is_big else ("H", "HHII", "I")
    count_bytes, entry_bytes, next_bytes = (
        struct.calcsize(order + form) for form in (count_form, entry_form, next_form)
    )
    try:
        (offset,) = struct.unpack_from(order + next_form, head, 8 if is_big else 4)
    except struct.error:
        offset = size
    seen: set[int] = set()
    waiting = [] if sub_pages is None else list(reversed(sub_pages))
    if sub_pages is not None:
        offset = waiting.pop() if waiting else 0
    while offset:
        if offset + count_bytes > size:
            where = "the first page's header" if not seen else f"the header of page {len(seen) + 1}"
            raise ImageFileError(
                "truncated_file", f"{size} bytes, which end before {where}", "a whole TIFF", _COPY_AGAIN
            )
        if offset in seen or len(seen) == PAGES_MAX:
            found = "a chain of pages in a circle" if offset in seen else f"more than {PAGES_MAX} pages"
            raise ImageFileError("unreadable_file", found, "a TIFF of one page", _DAMAGED)
        seen.add(offset)
        file.seek(offset)
        (n_entries,) = struct.unpack(order + count_form, file.read(count_bytes))
        end = offset + count_bytes + n_entries * entry_bytes
        if end > size:
            raise ImageFileError("truncated_file", f"{size} bytes", f"a header to byte {end}", _COPY_AGAIN)
        entries = file.read(n_entries * entry_bytes)
        for _, kind, count, _ in struct.iter_unpack(order + entry_form, entries):
            if count * _TAG_BYTES.get(kind, 1) > size:
                raise ImageFileError(
                    "truncated_file", f"{size} bytes", f"a tag of {count} values", "The file is cut or damaged."
                )
        following = file.read(next_bytes)
        if sub_pages is not None:
            offset = waiting.pop() if waiting else 0
        else:
            offset = struct.unpack(order + next_form, following)[0] if len(following) == next_bytes else 0


def check_tiff_page(
    page: tifffile.TiffPage,
    n_alike: int,
    size: int,
    bytes_max: int,
    compressions: Mapping[int, str] = COMPRESSIONS,
) -> None:
    """Check that a page can be decoded into at most `bytes_max` bytes, completely, and is one grey plane.

    Args:
        page: Its header; no pixel is read.
        n_alike: Number of full-resolution pages of the image, expected 1.
        size: Length of the file, bytes.
        bytes_max: Budget of the decoded page, and of any tile.
        compressions: Accepted compressions, code to name.

    Raises:
        ImageFileError: The page is no grey plane, too large, cut, sparse, inverted, coloured by a palette, or of
            another compression.
    """
    if len(page.shape) != 2 or n_alike > 1:
        is_colour = page.photometric is not None and int(page.photometric) in _COLOUR_SPACES
        planes = f"{n_alike} pages of {page.shape}" if n_alike > 1 else f"shape {page.shape}"
        raise ImageFileError(
            "shape_mismatch",
            f"a colour image, {planes}" if is_colour else planes,
            "one grey plane (height, width)",
            "Split stacks and colour images into one file for each channel, time and focal plane.",
        )
    if int(page.compression) not in compressions:
        raise ImageFileError(
            "unsupported_file",
            f"TIFF compression {int(page.compression)}",
            ", ".join(dict.fromkeys(compressions.values())),
            "Export the image again with one of these.",
        )
    if 0 in page.shape:
        raise ImageFileError("unreadable_file", f"{page.shape[0]} x {page.shape[1]} pixels", "at least one", _DAMAGED)
    if page.dtype is None:
        raise ImageFileError("unsupported_file", "an unknown pixel type", "8 or 16 bit, or float", "Convert it.")
    dtype = np.dtype(page.dtype)
    check_pixel_type(dtype)
    n_bytes = math.prod(page.shape) * dtype.itemsize
    # a tile is decoded whole, and can be declared larger than the image
    check_budget(max(n_bytes, math.prod(page.chunks) * dtype.itemsize), bytes_max)
    if page.is_tiled:
        check_budget(page.tilewidth * page.tilelength * max(page.tiledepth, 1) * dtype.itemsize, bytes_max)
    if page.colormap is not None and not _is_grey(page.colormap):
        raise ImageFileError(
            "unsupported_file",
            "a palette of colours",
            "grey values",
            "Export the image as grey values; its pixels are colour numbers, not intensities.",
        )
    if page.photometric is not None and int(page.photometric) == 0:  # MINISWHITE
        raise ImageFileError(
            "unsupported_file",
            "inverted grey values (0 is white)",
            "grey values with 0 black",
            "Export the image again without inversion.",
        )
    n_segments = math.prod(math.ceil(a / b) for a, b in zip(page.shape, page.chunks, strict=False))
    offsets, counts = page.dataoffsets, page.databytecounts
    # tifffile describes an uncompressed image in one piece as one segment, whatever its number of strips
    n_expected = {1, n_segments} if int(page.compression) == 1 else {n_segments}
    if len(offsets) != len(counts) or len(offsets) not in n_expected or not all(counts) or not all(offsets):
        raise ImageFileError(
            "truncated_file",
            f"{sum(1 for count in counts if count)} strips or tiles with data",
            f"{n_segments}",
            "The file was not written to its end; copy or export it again.",
        )
    end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    if end > size:
        raise ImageFileError("truncated_file", f"{size} bytes", f"at least {end} bytes", _COPY_AGAIN)
    if int(page.compression) == 1 and sum(counts) * 8 < math.prod(page.shape) * page.bitspersample:
        raise ImageFileError(
            "truncated_file",
            f"{sum(counts)} bytes of pixels",
            f"{n_bytes} bytes for {page.shape[0]} x {page.shape[1]} pixels",
            _COPY_AGAIN,
        )


def _contiguous_rows(
    file: BinaryIO, tif: tifffile.TiffFile, page: tifffile.TiffPage, y: int, n_rows: int
) -> np.ndarray:
    dtype = np.dtype(page.dtype).newbyteorder(tif.byteorder)
    row_bytes = page.shape[1] * dtype.itemsize
    file.seek(page.dataoffsets[0] + y * row_bytes)
    rows_HW: np.ndarray = np.frombuffer(file.read(n_rows * row_bytes), dtype).reshape(n_rows, page.shape[1])
    return rows_HW


def _segments(tif: tifffile.TiffFile, page: tifffile.TiffPage, window: Window) -> np.ndarray:
    """The window of an image in strips or tiles; only those that it touches are read."""
    y, x, height, width = window
    pixels_HW = np.empty((height, width), page.dtype)
    rows, columns = page.chunks[0], page.chunks[1]
    n_across = page.chunked[1]
    for down in range(y // rows, (y + height - 1) // rows + 1):
        for across in range(x // columns, (x + width - 1) // columns + 1):
            index = down * n_across + across
            tif.filehandle.seek(page.dataoffsets[index])
            segment, _, _ = page.decode(tif.filehandle.read(page.databytecounts[index]), index)
            if segment is None:
                raise ValueError(f"strip or tile {index} is empty")
            top, left = down * rows, across * columns
            first_row, first_column = max(y, top), max(x, left)
            last_row, last_column = min(y + height, top + rows), min(x + width, left + columns)
            pixels_HW[first_row - y : last_row - y, first_column - x : last_column - x] = segment[
                0, first_row - top : last_row - top, first_column - left : last_column - left, 0
            ]
    return pixels_HW


def _is_grey(colormap: np.ndarray) -> bool:
    """Whether a palette (3, n) is a ramp from black: red, green and blue equal and rising."""
    red, green, blue = colormap
    return bool((red == green).all() and (red == blue).all() and (np.diff(red.astype(np.int64)) >= 0).all())
