"""TIFF files with several planes: ImageJ hyperstacks, OME-TIFF, and pages whose meaning the screen declares.

Metadata of the file assign pages to channels, focal planes and timepoints. Pages without such metadata form one axis,
which the screen's setting `pages` names; without that setting they are refused.

Letters: C channels, H height and W width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import tifffile

from cytolake.screens.images.bounded_tiff import TIFF_SIGNATURES, check_tiff_page, open_tiff, tiff_errors
from cytolake.screens.images.image_errors import (
    ImageFileError,
    Window,
    check_budget,
    check_pixel_type,
    check_window,
)
from cytolake.screens.images.image_files import opened_file, read_plane

StackReader = Literal["stack", "stack-channels", "stack-planes", "stack-times"]
"""Meaning of pages: from the file's metadata, or, without metadata, channels, focal planes or timepoints."""
STACK_READERS: frozenset[str] = frozenset(get_args(StackReader))

_UNKNOWN = "IQ"  # tifffile's axes of pages and of other dimensions
_MEANING = {"stack-channels": "C", "stack-planes": "Z", "stack-times": "T"}
_CUT = "The file is cut short; copy it again from its source."


@dataclass(frozen=True, kw_only=True, slots=True)
class TiffStack:
    """An open file of several pages."""

    file: BinaryIO
    size: int
    tif: tifffile.TiffFile
    series: tifffile.TiffPageSeries
    axes: str
    """One letter for each axis before height and width: C, Z, T, or `?` for pages without metadata."""
    lengths: tuple[int, ...]
    shape: tuple[int, int]
    """(H, W)"""
    dtype: np.dtype[Any]

    @property
    def n_pages(self) -> int:
        """Planes of all channels, focal planes and timepoints."""
        return math.prod(self.lengths)

    def n(self, axis: str) -> int:
        """Length of one of C, Z, T; 1 where the file has no such axis."""
        return self.lengths[self.axes.index(axis)] if axis in self.axes else 1

    def page_number(self, *, c: int = 0, z: int = 0, t: int = 0) -> int:
        """Number of the page at a place, in the order of the file."""
        place = {"C": c, "Z": z, "T": t}
        return int(np.ravel_multi_index([place[axis] for axis in self.axes], self.lengths)) if self.axes else 0

    def read(self, timepoint: int, plane: int, window: Window | None, bytes_max: int) -> np.ndarray:
        """(C, height, width) of one time and focal plane, in the type they are stored in.

        Raises:
            ImageFileError: A page is cut or damaged, or past the budget.
        """
        y, x, height, width = check_window(window, *self.shape)
        n_channels = self.n("C")
        check_budget(n_channels * height * width * self.dtype.itemsize, bytes_max)
        pixels_CHW = np.empty((n_channels, height, width), self.dtype)
        for channel in range(n_channels):
            page_HW = self._page(self.page_number(c=channel, z=plane, t=timepoint), bytes_max)
            pixels_CHW[channel] = page_HW[y : y + height, x : x + width]
        return pixels_CHW

    def _page(self, number: int, bytes_max: int) -> np.ndarray:
        if len(self.tif.pages) == 1:  # ImageJ writes one header for a stack of many planes
            return self._contiguous_page(number, bytes_max)
        page = self.series.pages[number]
        if page is None:
            raise ImageFileError(
                "missing_file", f"page {number} in another file", "all pages in one", "Export it anew."
            )
        whole = page.aspage()
        check_tiff_page(whole, 1, self.size, bytes_max)
        if whole.shape != self.shape:
            raise ImageFileError(
                "shape_mismatch", f"page {number} of {whole.shape}", f"{self.shape}", "Export it anew."
            )
        with tiff_errors():
            return np.asarray(whole.asarray(maxworkers=1))

    def _contiguous_page(self, number: int, bytes_max: int) -> np.ndarray:
        n_bytes = math.prod(self.shape) * self.dtype.itemsize
        check_budget(n_bytes, bytes_max)
        start = int(self.series.dataoffset or 0) + number * n_bytes
        if not self.series.dataoffset or start + n_bytes > self.size:
            raise ImageFileError("truncated_file", f"{self.size} bytes", f"at least {start + n_bytes}", _CUT)
        self.file.seek(start)
        stored = self.dtype.newbyteorder(self.tif.byteorder)
        return np.frombuffer(self.file.read(n_bytes), stored).reshape(self.shape)


@contextmanager
def opened_stack(path: str, reader: str = "stack") -> Iterator[TiffStack | None]:
    """A file of several pages; None where it is one plane, coloured, or no TIFF.

    Args:
        reader: One of `STACK_READERS`.

    Raises:
        ImageFileError: The file cannot be read, or is cut.
    """
    with opened_file(path) as (file, size, head):
        if not head.startswith(TIFF_SIGNATURES):
            yield None
            return
        with open_tiff(file, size) as tif:
            yield _stack_of(file, size, tif, reader)


def _stack_of(file: BinaryIO, size: int, tif: tifffile.TiffFile, reader: str) -> TiffStack | None:
    with tiff_errors():  # metadata may contradict the pages
        series = tif.series[0] if tif.series else None
        axes, shape, dtype = (series.axes, tuple(map(int, series.shape)), series.dtype) if series else ("", (), None)
    if series is None or dtype is None or not axes.endswith("YX") or len(shape) != len(axes):
        return None
    lead = [(axis, n) for axis, n in zip(axes[:-2], shape[:-2], strict=True) if n > 1]
    n_pages = math.prod(n for _, n in lead)
    is_contiguous = len(tif.pages) == 1 and tif.is_imagej and series.dataoffset
    if n_pages < 2 or 0 in shape or (len(tif.pages) < n_pages and not is_contiguous):
        return None  # one plane; or one file of several that hold an OME image together
    meaning = _MEANING.get(reader, "?")
    letters = "".join(meaning if axis in _UNKNOWN else axis if axis in "CZT" else "?" for axis, _ in lead)
    if len(set(letters)) != len(letters):
        letters = "?" * len(letters)
    check_pixel_type(np.dtype(dtype))
    return TiffStack(
        file=file,
        size=size,
        tif=tif,
        series=series,
        axes=letters,
        lengths=tuple(n for _, n in lead),
        shape=(shape[-2], shape[-1]),
        dtype=np.dtype(dtype).newbyteorder("="),
    )


def read_stack_planes(
    path: str, reader: str, timepoint: int, planes: range, window: Window | None, bytes_max: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """(C, height, width) of each focal plane in order, and the (H, W) of the whole. A plain file is one plane.

    Raises:
        ImageFileError: The file cannot be read, has another structure than it was listed with, or a page is damaged.
    """
    with opened_stack(path, reader) as stack:
        if stack is not None:
            if "?" in stack.axes or timepoint >= stack.n("T") or planes.stop > stack.n("Z"):
                raise ImageFileError(
                    "shape_mismatch",
                    f"{stack.n('T')} timepoints and {stack.n('Z')} focal planes ({stack.axes or 'no axes'})",
                    f"timepoint {timepoint}, focal planes to {planes.stop - 1}",
                    "The file has another structure than the others of its plate; export it like them.",
                )
            for plane in planes:
                yield stack.read(timepoint, plane, window, bytes_max), stack.shape
            return
    if timepoint or planes != range(1):
        raise ImageFileError(
            "shape_mismatch",
            "one plane",
            f"timepoint {timepoint}, focal planes to {planes.stop - 1}",
            "The file has another structure than the others of its plate; export it like them.",
        )
    plane_HW, shape = read_plane(path, window, bytes_max)
    yield plane_HW[None], shape
