"""One grey plane from one image file: TIFF, PNG or JPEG-2000, on a disk or in a bucket.

A file's header can declare any shape, so what it declares is held against a budget before memory is taken, and a file
that is cut short is refused: part of an image is not an image. What a file is, its first bytes say, not its name.

Letters: H height and W width in pixels.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import tifffile

from cytolake.screens.images import jpeg2000
from cytolake.screens.images.image_errors import ImageFileError as ImageFileError
from cytolake.screens.images.tiff_pages import image_page
from cytolake.storage.files import is_of_storage, open_file

PIXEL_KINDS = "uif"
STORAGE_FAILED = "storage_failed"
"""The problem of an image whose storage failed. It may be whole: nobody can tell."""
ENCODED_BYTES_MAX = 2**30  # a PNG or JPEG-2000 file is decoded from memory
PAGES_MAX = 4096  # of one TIFF; a stack of more is no plane of a site

Window = tuple[int, int, int, int]
"""(y, x, height, width) in pixels."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD_BYTES = 64
_COPY_AGAIN = "The file is cut short; copy it again from its source."
_DAMAGED = "The file is damaged; copy it again from its source."
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_JPEG = 7
_COLOUR_SPACES = (2, 5, 6, 8)  # RGB, CMYK, YCbCr, CIELab
_COMPRESSIONS = {
    1: "none",
    5: "LZW",
    8: "deflate",
    32946: "deflate",
    32773: "PackBits",
    50000: "Zstandard",
    _JPEG: "JPEG",
}
"""Those that decode into a buffer of the declared size, whatever the data say."""


def read_plane(path: str, window: Window | None, bytes_max: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels of a file in a window, in the type they are stored in, and the (H, W) of the whole.

    Of a TIFF only the strips or tiles that the window touches are read and decoded.

    Raises:
        ImageFileError: The file cannot be read, is damaged or cut, is not one grey plane, is past `bytes_max` decoded,
            or ends before the window does.
    """
    with opened_file(path) as (file, size, head):
        if head.startswith(_TIFF_SIGNATURES):
            return _read_tiff(file, size, window, bytes_max)
        if head.startswith(_PNG_SIGNATURE):
            shape, dtype = _png_header(head, size)
        elif head.startswith((jpeg2000.FILE_SIGNATURE, jpeg2000.CODESTREAM_SIGNATURE)):
            check_budget(size, ENCODED_BYTES_MAX)
            data = file.read()
            shape, dtype = _jpeg2000_header(data, size)
            window = check_window(window, *shape)
            check_budget(math.prod(shape) * 8, bytes_max)  # OpenJPEG keeps 32 bits a pixel beside the result
            return _window_of(_decoded(imagecodecs.jpeg2k_decode, data, shape, dtype, "JPEG-2000"), window), shape
        else:
            raise _unknown_format(head)
        window = check_window(window, *shape)
        check_budget(math.prod(shape) * dtype.itemsize, bytes_max)
        check_budget(size, ENCODED_BYTES_MAX)
        data = file.read()
        if b"IEND" not in data[-64:]:
            raise ImageFileError("truncated_file", f"{size} bytes without an end mark", "a whole PNG", _COPY_AGAIN)
        return _window_of(_decoded(imagecodecs.png_decode, data, shape, dtype, "PNG"), window), shape


def read_shape(path: str) -> tuple[tuple[int, int], np.dtype[Any]]:
    """(H, W) and pixel type of a file, from its header alone where the format allows that.

    Raises:
        ImageFileError: As for `read_plane`.
    """
    with opened_file(path) as (file, size, head):
        if head.startswith(_TIFF_SIGNATURES):
            with _tiff_page(file, size, 2**63) as (_, page):
                return (page.shape[0], page.shape[1]), np.dtype(page.dtype)
        if head.startswith(_PNG_SIGNATURE):
            return _png_header(head, size)
        if head.startswith((jpeg2000.FILE_SIGNATURE, jpeg2000.CODESTREAM_SIGNATURE)):
            check_budget(size, ENCODED_BYTES_MAX)
            return _jpeg2000_header(file.read(), size)
        raise _unknown_format(head)


def read_function_image(path: str, shape: tuple[int, int], bytes_max: int) -> np.ndarray:
    """An illumination function, (H, W) float32, that raw counts are divided by: `.npy` or TIFF.

    Raises:
        ImageFileError: It cannot be read, has another shape than the images, or a value that is not above 0.
    """
    with opened_file(path) as (file, _, head):
        values = _read_npy(file, shape, bytes_max) if head.startswith(b"\x93NUMPY") else None
    if values is None:
        values, found = read_plane(path, None, bytes_max)
        _check_function_shape(found, shape)
    with np.errstate(over="ignore"):
        function_HW = np.ascontiguousarray(values, dtype=np.float32)
    if not (np.isfinite(function_HW).all() and function_HW.min() > 0):  # in 32 bits, where 1e-50 is 0
        raise ImageFileError(
            "bad_illumination",
            "values that are 0, negative or not finite",
            "an illumination function above 0 everywhere",
            "Compute the illumination function again, or read the screen without it.",
        )
    return function_HW


def check_window(window: Window | None, height: int, width: int) -> Window:
    """The window, or the whole image for None.

    Raises:
        ImageFileError: The window is empty or leaves the image.
    """
    if window is None:
        return 0, 0, height, width
    y, x, n_rows, n_columns = window
    if min(y, x) < 0 or min(n_rows, n_columns) < 1 or y + n_rows > height or x + n_columns > width:
        raise ImageFileError(
            "shape_mismatch",
            f"{height} x {width} pixels",
            f"at least rows {y} to {y + n_rows} and columns {x} to {x + n_columns}",
            "The image changed after it was ingested, or the window is wrong; ingest the plate again.",
        )
    return window


def check_budget(n_bytes: int, bytes_max: int) -> None:
    """Refuses more bytes than the budget.

    Raises:
        ImageFileError: `too_large`.
    """
    if n_bytes > bytes_max:
        raise ImageFileError(
            "too_large",
            f"{n_bytes} bytes declared",
            f"at most {bytes_max}",
            "If the header is right, cut the image into sites; if not, the file is damaged.",
        )


def check_pixel_type(dtype: np.dtype[Any]) -> None:
    """Refuses pixels that are not numbers.

    Raises:
        ImageFileError: `unsupported_file`.
    """
    if dtype.kind not in PIXEL_KINDS:
        raise ImageFileError("unsupported_file", f"pixels of type {dtype}", "whole numbers or floats", "Convert it.")


def one_line(error: BaseException) -> str:
    """An error's type and text, short and without line ends."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextmanager
def opened_file(path: str) -> Iterator[tuple[BinaryIO, int, bytes]]:
    """The open file at its start, its size and its first bytes."""
    try:
        with open_file(path) as file:
            head = file.read(_HEAD_BYTES)
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            if size == 0:
                raise ImageFileError("truncated_file", "0 bytes", "an image", _COPY_AGAIN)
            yield file, size, head
    except FileNotFoundError as error:
        found = "no such file on disk" if error.errno else one_line(error)
        raise ImageFileError("missing_file", found, "the file that was listed", "Copy it back.") from error
    except OSError as error:
        raise not_read(error) from error


def not_read(error: OSError) -> ImageFileError:
    """What a failed read is told as: a fault of the file, or of the storage that it lies on."""
    if is_of_storage(error):
        return ImageFileError(
            STORAGE_FAILED, one_line(error), "a storage that answers", "Mend the access, then run the job again."
        )
    return ImageFileError(
        "unreadable_file", one_line(error), "a file that can be read", "Check its permissions and the storage."
    )


def _unknown_format(head: bytes) -> ImageFileError:
    return ImageFileError(
        "unsupported_file",
        f"a file that starts with bytes {head[:8].hex(' ')}",
        "TIFF, PNG or JPEG-2000",
        "Convert the image, or copy the file again if it is damaged.",
    )


def _read_tiff(file: BinaryIO, size: int, window: Window | None, bytes_max: int) -> tuple[np.ndarray, tuple[int, int]]:
    with _tiff_page(file, size, bytes_max) as (tif, page):
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


@contextmanager
def _tiff_page(file: BinaryIO, size: int, bytes_max: int) -> Iterator[tuple[tifffile.TiffFile, tifffile.TiffPage]]:
    """The page of full resolution of a TIFF, checked."""
    try:
        check_tiff_headers(file, size)
        file.seek(0)
        with tifffile.TiffFile(file) as tif:
            pages = [each.aspage() for each in tif.pages]
            for each in pages:
                check_tiff_headers(file, size, each.subifds or ())
            page, n_alike = image_page(pages)
            check_tiff_page(page, n_alike, size, bytes_max)
            yield tif, page
    except (ImageFileError, OSError, MemoryError):
        raise
    except Exception as error:  # tifffile and each codec raise their own
        raise ImageFileError(
            "unreadable_file", one_line(error), "a whole TIFF", "The file is cut or damaged; copy it again."
        ) from error


def check_tiff_headers(file: BinaryIO, size: int, sub_pages: Sequence[int] | None = None) -> None:
    """Follows the chain of pages, and refuses what tifffile would take on trust.

    A chain that runs in a circle or has more pages than a plane can have, a tag with more values than the file has
    bytes (its length alone would be allocated), or a header behind the end of the file.

    Args:
        file: The TIFF.
        size: Its bytes.
        sub_pages: Offsets of the SubIFDs of one page, each of which is checked in place of the chain.
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


def check_tiff_page(page: tifffile.TiffPage, n_alike: int, size: int, bytes_max: int) -> None:
    """Refuse a page that is not one grey plane, too large, cut, sparse, or coloured by its palette."""
    if len(page.shape) != 2 or n_alike > 1:
        is_colour = page.photometric is not None and int(page.photometric) in _COLOUR_SPACES
        planes = f"{n_alike} pages of {page.shape}" if n_alike > 1 else f"shape {page.shape}"
        raise ImageFileError(
            "shape_mismatch",
            f"a colour image, {planes}" if is_colour else planes,
            "one grey plane (height, width)",
            "Split stacks and colour images into one file for each channel, time and focal plane.",
        )
    if int(page.compression) not in _COMPRESSIONS:
        raise ImageFileError(
            "unsupported_file",
            f"TIFF compression {int(page.compression)}",
            ", ".join(dict.fromkeys(_COMPRESSIONS.values())),
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
    # an uncompressed image in one piece is described by tifffile as such, whatever its number of strips
    if not (len(offsets) == len(counts) and len(offsets) in (1, n_segments)) or not all(counts) or not all(offsets):
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


def _is_grey(colormap: np.ndarray) -> bool:
    """Whether a palette (3, n) is a ramp from black: red, green and blue equal and rising."""
    red, green, blue = colormap
    return bool((red == green).all() and (red == blue).all() and (np.diff(red.astype(np.int64)) >= 0).all())


def _png_header(head: bytes, size: int) -> tuple[tuple[int, int], np.dtype[Any]]:
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise ImageFileError("truncated_file", f"{size} bytes", "a PNG header", _COPY_AGAIN)
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if colour != 0 or bits not in (8, 16) or not width or not height:
        raise ImageFileError(
            "unsupported_file",
            f"PNG colour type {colour} with {bits} bits",
            "one grey value of 8 or 16 bits for each pixel",
            "Export each channel as its own grey image.",
        )
    return (height, width), np.dtype(f"u{bits // 8}")


def _jpeg2000_header(data: bytes, size: int) -> tuple[tuple[int, int], np.dtype[Any]]:
    try:
        header = jpeg2000.read_header(data)
    except jpeg2000.CutError as error:
        raise ImageFileError("truncated_file", str(error), "a whole JPEG-2000 image", _COPY_AGAIN) from error
    except (ValueError, IndexError) as error:
        raise ImageFileError("unreadable_file", str(error), "a JPEG-2000 image", _DAMAGED) from error
    if header.n_components != 1 or header.bits > 16 or header.is_signed or header.has_palette:
        colours = "a palette" if header.has_palette else f"{header.n_components} values of {header.bits} bits"
        raise ImageFileError(
            "unsupported_file",
            f"JPEG-2000 with {'signed ' if header.is_signed else ''}{colours} for each pixel",
            "one grey value of at most 16 bits",
            "Export each channel as its own grey image.",
        )
    return (header.height, header.width), np.dtype("u1" if header.bits <= 8 else "u2")


def _decoded(decode: Any, data: bytes, shape: tuple[int, int], dtype: np.dtype[Any], kind: str) -> np.ndarray:
    try:
        pixels_HW: np.ndarray = decode(data)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageFileError("unreadable_file", one_line(error), f"a {kind} image that decodes", _DAMAGED) from error
    if pixels_HW.shape != shape or pixels_HW.dtype != dtype:
        raise ImageFileError(
            "unreadable_file",
            f"{pixels_HW.dtype} pixels of shape {pixels_HW.shape}",
            f"{dtype} of shape {shape}, as the header says",
            _DAMAGED,
        )
    return pixels_HW


def _window_of(pixels_HW: np.ndarray, window: Window) -> np.ndarray:
    y, x, height, width = window
    return pixels_HW[y : y + height, x : x + width]


def _read_npy(file: BinaryIO, shape: tuple[int, int], bytes_max: int) -> np.ndarray:
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        found, is_fortran, dtype = read(file)
    except Exception as error:  # the header is a Python literal, which fails in many ways
        raise ImageFileError("unreadable_file", one_line(error), "a .npy header", _DAMAGED) from error
    if dtype.kind not in PIXEL_KINDS:
        raise ImageFileError("unsupported_file", f"values of type {dtype}", "numbers", "Save it as float32.")
    _check_function_shape(found, shape)
    n_bytes = math.prod(found) * dtype.itemsize
    check_budget(n_bytes, bytes_max)
    content = file.read(n_bytes)
    if len(content) != n_bytes:
        raise ImageFileError("truncated_file", f"{len(content)} bytes of values", f"{n_bytes}", _COPY_AGAIN)
    return np.frombuffer(content, dtype).reshape(found, order="F" if is_fortran else "C")


def _check_function_shape(found: tuple[int, ...], shape: tuple[int, int]) -> None:
    if tuple(found) != shape:
        raise ImageFileError(
            "shape_mismatch",
            f"an illumination function of {' x '.join(map(str, found))}",
            f"{shape[0]} x {shape[1]}, as the image",
            "Compute it from images of this size, or read the screen without it.",
        )
