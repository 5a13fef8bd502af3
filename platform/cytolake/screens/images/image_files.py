"""Reader of one grey plane from an image file: TIFF, PNG or JPEG-2000, on disk or in a bucket.

The first bytes of a file decide its format, not its name. Sizes that a header declares are checked against a budget
before memory is taken, and a file that is cut short is refused.

Letters: H height and W width in pixels.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import imagecodecs
import numpy as np

from cytolake.screens.images import jpeg2000
from cytolake.screens.images.bounded_tiff import TIFF_SIGNATURES, opened_page, read_tiff_plane
from cytolake.screens.images.image_errors import (
    PIXEL_KINDS,
    ImageFileError,
    Window,
    check_budget,
    check_window,
    not_read,
    one_line,
)
from cytolake.storage.files import open_file

ENCODED_BYTES_MAX = 2**30  # a PNG or JPEG-2000 file is decoded from memory

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD_BYTES = 64
_COPY_AGAIN = "The file is cut short; copy it again from its source."
_DAMAGED = "The file is damaged; copy it again from its source."


def read_plane(path: str, window: Window | None, bytes_max: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Pixels of a file in a window, in the type they are stored in, and the (H, W) of the whole.

    Of a TIFF only the strips or tiles that the window touches are read and decoded.

    Raises:
        ImageFileError: The file cannot be read, is damaged or cut, is not one grey plane, is past `bytes_max` decoded,
            or ends before the window does.
    """
    with opened_file(path) as (file, size, head):
        if head.startswith(TIFF_SIGNATURES):
            return read_tiff_plane(file, size, window, bytes_max)
        if head.startswith(_PNG_SIGNATURE):
            shape, dtype = _png_header(head, size)
        elif head.startswith((jpeg2000.FILE_SIGNATURE, jpeg2000.CODESTREAM_SIGNATURE)):
            check_budget(size, ENCODED_BYTES_MAX)
            data = file.read()
            shape, dtype = _jpeg2000_header(data, size)
            window = check_window(window, *shape)
            check_budget(math.prod(shape) * 8, bytes_max)  # OpenJPEG holds 32 bits a pixel in addition to the result
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
        if head.startswith(TIFF_SIGNATURES):
            with opened_page(file, size, 2**63) as (_, page):
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


def _unknown_format(head: bytes) -> ImageFileError:
    return ImageFileError(
        "unsupported_file",
        f"a file that starts with bytes {head[:8].hex(' ')}",
        "TIFF, PNG or JPEG-2000",
        "Convert the image, or copy the file again if it is damaged.",
    )


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
