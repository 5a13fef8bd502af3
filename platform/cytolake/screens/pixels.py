"""Pixels of one site, from whatever format it is in.

A file's header can declare any shape, so what it declares is held against a budget before memory is taken, and a file
that is cut short is refused: part of an image is not an image. What a file is, its first bytes say, not its name.

Letters: C channels of the site, H height and W width in pixels.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import imagecodecs
import numpy as np
import tifffile

from cytolake.screens.plate import Problem, Reader, ScreenError, SiteImage

SITE_BYTES_MAX = 4 * 2**30  # decoded; 5 channels of a 20,000 x 20,000 stitched well in 16 bit are 3.7 GiB
PNG_BYTES_MAX = 2**30  # on disk, since a PNG is decoded from memory
PIXEL_KINDS = "uif"

Window = tuple[int, int, int, int]
"""(y, x, height, width) in pixels."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_site(site: SiteImage, window: Window | None = None, bytes_max: int = SITE_BYTES_MAX) -> np.ndarray:
    """(C, H, W) pixels of a site as its source holds them: same type, no scaling.

    Args:
        site: From `list_plates`, or from a row of the `sites` table through `site_image`.
        window: (y, x, height, width) in pixels; None is the whole field of view.
        bytes_max: Refuse a site whose headers declare more than this, decoded.

    Raises:
        ScreenError: With one problem: `missing_file`, `truncated_file`, `unreadable_file`, `unsupported_file`,
            `shape_mismatch` (channels, or window and image, do not fit), `mixed_pixel_type`, `too_large`.
    """
    if len(site.image_paths) != (1 if site.reader == "ome-zarr" else len(site.channels)):
        _fail(
            site,
            "shape_mismatch",
            f"{len(site.image_paths)} paths for {len(site.channels)} channels",
            "one image group (ome-zarr), or one file for each channel",
            "List the plate again.",
        )
    return _read_zarr(site, window, bytes_max) if site.reader == "ome-zarr" else _read_files(site, window, bytes_max)


def site_image(row: Mapping[str, Any]) -> SiteImage:
    """The site of a row of the `sites` table; columns it does not need are ignored.

    Raises:
        ValueError: A reader that is neither `ome-zarr` nor `files`.
    """
    reader = str(row["reader"])
    if reader not in ("ome-zarr", "files"):
        raise ValueError(
            f"plate {row['plate']}, well {row['well']}, site {row['site']}: found reader {reader!r}, "
            "expected ome-zarr or files. Ingest the screen again with this version."
        )
    return SiteImage(
        screen=str(row["screen"]),
        plate=str(row["plate"]),
        well=str(row["well"]),
        site=str(row["site"]),
        timepoint=int(row["timepoint"]),
        z=str(row["z"]),
        channels=tuple(row["channels"]),
        reader=cast(Reader, reader),
        image_paths=tuple(row["image_paths"]),
    )


def _read_zarr(site: SiteImage, window: Window | None, bytes_max: int) -> np.ndarray:
    from cytolake.screens.ome_zarr import cut_chunk, n_of, open_site, read_plane  # ngio takes 2 s to import

    path = site.image_paths[0]
    try:
        image = open_site(path)
    except Exception as error:  # ngio, zarr and pydantic each raise their own
        missing = not Path(path).is_dir()
        _fail(
            site,
            "missing_file" if missing else "unreadable_file",
            "no such image group on disk" if missing else _one_line(error),
            "an OME-Zarr image",
            "Restore or rewrite the image, then ingest the plate again.",
            file=path,
        )
    n_channels, height, width = n_of(image, "c"), n_of(image, "y"), n_of(image, "x")
    if n_channels != len(site.channels):
        _fail(
            site,
            "shape_mismatch",
            f"{n_channels} channels in the image",
            f"{len(site.channels)} ({', '.join(site.channels)})",
            "The image changed after it was listed; ingest the plate again.",
            file=path,
        )
    plane = int(site.z) if site.z else 0
    if site.timepoint >= n_of(image, "t") or plane >= n_of(image, "z"):
        _fail(
            site,
            "shape_mismatch",
            f"{n_of(image, 't')} timepoints and {n_of(image, 'z')} focal planes",
            f"timepoint {site.timepoint}, focal plane {plane}",
            "The image changed after it was listed; ingest the plate again.",
            file=path,
        )
    dtype = np.dtype(image.dtype)
    _check_pixel_type(site, path, dtype)
    whole = _check_window(site, window, height, width, path)
    # Zarr decodes whole chunks, and a chunk is at most the level: a small window of a huge chunk must not slip through
    chunk = math.prod(min(a, b) for a, b in zip(_chunk_shape(image), image.shape, strict=True))
    _check_budget(site, path, max(n_channels * whole[2] * whole[3], chunk) * dtype.itemsize, bytes_max)
    cut = cut_chunk(image, path, site.timepoint, site.z, whole)
    if cut:
        _fail(site, "truncated_file", f"chunk {cut}", "whole chunks", _COPY_AGAIN, file=path)
    try:
        pixels_CHW = read_plane(image, site.timepoint, site.z, whole)
    except MemoryError:
        raise
    except Exception as error:  # a damaged chunk: each codec raises its own
        _fail(
            site,
            "unreadable_file",
            _one_line(error),
            "chunks that decode to the declared shape",
            "A chunk is cut or damaged; copy the image again from its source.",
            file=path,
        )
    return pixels_CHW


def _chunk_shape(image: Any) -> tuple[int, ...]:
    array = image.zarr_array
    return tuple(array.shards or array.chunks)


def _read_files(site: SiteImage, window: Window | None, bytes_max: int) -> np.ndarray:
    pixels_CHW: np.ndarray | None = None
    shape: tuple[int, int] = (0, 0)
    for i, (channel, path) in enumerate(zip(site.channels, site.image_paths, strict=True)):
        pixels_HW = _read_file(site, channel, path, bytes_max // len(site.channels))
        if pixels_CHW is None:
            shape = (pixels_HW.shape[0], pixels_HW.shape[1])
            y, x, height, width = _check_window(site, window, *shape, path)
            pixels_CHW = np.empty((len(site.channels), height, width), pixels_HW.dtype)
        if pixels_HW.shape != shape:
            _fail(
                site,
                "shape_mismatch",
                f"{pixels_HW.shape[0]} x {pixels_HW.shape[1]} pixels",
                f"{shape[0]} x {shape[1]}, as in channel {site.channels[0]}",
                "All channels of a site must be one size; export them again, or list them as two sites.",
                channel=channel,
                file=path,
            )
        if pixels_HW.dtype != pixels_CHW.dtype:
            _fail(
                site,
                "mixed_pixel_type",
                str(pixels_HW.dtype),
                f"{pixels_CHW.dtype}, as in channel {site.channels[0]}",
                "Export all channels of a site with the same bit depth.",
                channel=channel,
                file=path,
            )
        pixels_CHW[i] = pixels_HW[y : y + height, x : x + width]
    if pixels_CHW is None:
        _fail(site, "missing_channel", "no channel", "at least one", "List the plate again.")
    return pixels_CHW


def _read_file(site: SiteImage, channel: str, path: str, bytes_max: int) -> np.ndarray:
    """(H, W) of one file; a problem is told with its channel and file."""
    site = replace(site, channels=(channel,), image_paths=(path,))
    try:
        size = os.stat(path).st_size  # noqa: PTH116 - one call for each file of a screen
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(33)
    except FileNotFoundError:
        _fail(site, "missing_file", "no such file on disk", "the file that was listed", "Copy it back.", file=path)
    except OSError as error:
        _fail(site, "unreadable_file", _one_line(error), "a file that can be read", "Check its permissions.", file=path)
    if size == 0:
        _fail(site, "truncated_file", "0 bytes", "an image", _COPY_AGAIN, file=path)
    if head.startswith(_TIFF_SIGNATURES):
        return _read_tiff(site, path, size, bytes_max)
    if not head.startswith(_PNG_SIGNATURE):
        _fail(
            site,
            "unsupported_file",
            f"a file that starts with bytes {head[:8].hex(' ')}",
            "TIFF or PNG",
            "Convert the image, or copy the file again if it is damaged.",
            file=path,
        )
    return _read_png(site, path, size, head, bytes_max)


_COPY_AGAIN = "The file is cut short; copy it again from its source."


def _read_tiff(site: SiteImage, path: str, size: int, bytes_max: int) -> np.ndarray:
    try:
        with tifffile.TiffFile(path) as tif:
            pages = tif.pages
            page = cast(tifffile.TiffPage, pages[0])  # the first is never a mere frame
            n_alike = sum(1 for other in pages if other.shape == page.shape)
            _check_tiff_page(site, path, page, n_alike, size, bytes_max)
            return np.ascontiguousarray(page.asarray(maxworkers=1))
    except (ScreenError, MemoryError):
        raise
    except Exception as error:  # tifffile and each codec raise their own
        is_cut = _first_page_offset(path) >= size
        _fail(
            site,
            "truncated_file" if is_cut else "unreadable_file",
            f"{size} bytes, which end before the first page's header" if is_cut else _one_line(error),
            "a whole TIFF",
            _COPY_AGAIN if is_cut else "The file is cut or damaged; copy it again from its source.",
            file=path,
        )


def _check_tiff_page(
    site: SiteImage, path: str, page: tifffile.TiffPage, n_alike: int, size: int, bytes_max: int
) -> None:
    """Refuse a page that is not one grey plane, too large, cut, sparse, or coloured by its palette."""
    if len(page.shape) != 2 or n_alike > 1:
        planes = f"{n_alike} pages of {page.shape}" if n_alike > 1 else f"shape {page.shape}"
        _fail(
            site,
            "shape_mismatch",
            planes,
            "one grey plane (height, width)",
            "Split stacks and colour images into one file for each channel, time and focal plane.",
            file=path,
        )
    if page.dtype is None:
        _fail(site, "unsupported_file", "an unknown pixel type", "8 or 16 bit, or float", "Convert it.", file=path)
    dtype = np.dtype(page.dtype)
    _check_pixel_type(site, path, dtype)
    n_bytes = math.prod(page.shape) * dtype.itemsize
    _check_budget(site, path, n_bytes, bytes_max)
    if page.colormap is not None and not _is_grey(page.colormap):
        _fail(
            site,
            "unsupported_file",
            "a palette of colours",
            "grey values",
            "Export the image as grey values; its pixels are colour numbers, not intensities.",
            file=path,
        )
    if page.photometric is not None and int(page.photometric) == 0:  # MINISWHITE
        _fail(
            site,
            "unsupported_file",
            "inverted grey values (0 is white)",
            "grey values with 0 black",
            "Export the image again without inversion.",
            file=path,
        )
    n_segments = math.prod(math.ceil(a / b) for a, b in zip(page.shape, page.chunks, strict=False))
    offsets, counts = page.dataoffsets, page.databytecounts
    # an uncompressed image in one piece is described by tifffile as such, whatever its number of strips
    if not (len(offsets) == len(counts) and len(offsets) in (1, n_segments)) or not all(counts) or not all(offsets):
        _fail(
            site,
            "truncated_file",
            f"{sum(1 for count in counts if count)} strips or tiles with data",
            f"{n_segments}",
            "The file was not written to its end; copy or export it again.",
            file=path,
        )
    end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
    if end > size:
        _fail(site, "truncated_file", f"{size} bytes", f"at least {end} bytes", _COPY_AGAIN, file=path)
    if int(page.compression) == 1 and sum(counts) * 8 < math.prod(page.shape) * page.bitspersample:
        _fail(
            site,
            "truncated_file",
            f"{sum(counts)} bytes of pixels",
            f"{n_bytes} bytes for {page.shape[0]} x {page.shape[1]} pixels",
            _COPY_AGAIN,
            file=path,
        )


def _is_grey(colormap: np.ndarray) -> bool:
    """Whether a palette (3, n) is a ramp from black: red, green and blue equal and rising."""
    red, green, blue = colormap
    return bool((red == green).all() and (red == blue).all() and (np.diff(red.astype(np.int64)) >= 0).all())


def _first_page_offset(path: str) -> int:
    """Where the header says its first page is described; past any file where the header itself is cut."""
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    is_big = head[2:4] in (b"+\0", b"\0+")
    try:
        return int(struct.unpack_from(order + ("Q" if is_big else "I"), head, 8 if is_big else 4)[0])
    except struct.error:
        return 2**63


def _read_png(site: SiteImage, path: str, size: int, head: bytes, bytes_max: int) -> np.ndarray:
    if len(head) < 33 or head[12:16] != b"IHDR":
        _fail(site, "truncated_file", f"{size} bytes", "a PNG header", _COPY_AGAIN, file=path)
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if colour != 0 or bits not in (8, 16):
        _fail(
            site,
            "unsupported_file",
            f"PNG colour type {colour} with {bits} bits",
            "one grey value of 8 or 16 bits for each pixel",
            "Export each channel as its own grey image.",
            file=path,
        )
    _check_budget(site, path, width * height * bits // 8, bytes_max)
    _check_budget(site, path, size, PNG_BYTES_MAX)
    data = Path(path).read_bytes()
    if b"IEND" not in data[-64:]:
        _fail(site, "truncated_file", f"{size} bytes without an end mark", "a whole PNG", _COPY_AGAIN, file=path)
    try:
        pixels_HW: np.ndarray = imagecodecs.png_decode(data)
    except MemoryError:
        raise
    except Exception as error:
        _fail(
            site,
            "unreadable_file",
            _one_line(error),
            "a PNG that decodes",
            "The file is damaged; copy it again from its source.",
            file=path,
        )
    return pixels_HW


def _check_pixel_type(site: SiteImage, path: str, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in PIXEL_KINDS:
        _fail(site, "unsupported_file", f"pixels of type {dtype}", "whole numbers or floats", "Convert it.", file=path)


def _check_budget(site: SiteImage, path: str, n_bytes: int, bytes_max: int) -> None:
    if n_bytes > bytes_max:
        _fail(
            site,
            "too_large",
            f"{n_bytes} bytes declared",
            f"at most {bytes_max}",
            "If the header is right, cut the image into sites; if not, the file is damaged.",
            file=path,
        )


def _check_window(site: SiteImage, window: Window | None, height: int, width: int, path: str) -> Window:
    if window is None:
        return 0, 0, height, width
    y, x, n_rows, n_columns = window
    if min(y, x) < 0 or min(n_rows, n_columns) < 1 or y + n_rows > height or x + n_columns > width:
        _fail(
            site,
            "shape_mismatch",
            f"{height} x {width} pixels",
            f"at least rows {y} to {y + n_rows} and columns {x} to {x + n_columns}",
            "The image changed after it was ingested, or the window is wrong; ingest the plate again.",
            file=path,
        )
    return window


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _fail(
    site: SiteImage, problem: str, found: str, expected: str, next_step: str, *, channel: str = "", file: str = ""
) -> NoReturn:
    raise ScreenError(
        Problem(
            screen=site.screen,
            plate=site.plate,
            well=site.well,
            site=site.site,
            channel=channel or (site.channels[0] if site.reader == "files" and len(site.channels) == 1 else ""),
            file=file,
            problem=problem,
            found=found,
            expected=expected,
            next_step=next_step,
        )
    )
