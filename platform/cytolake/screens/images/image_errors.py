"""The error that reports a refused image file, and the checks that raise it for every format."""

from __future__ import annotations

from typing import Any

import numpy as np

from cytolake.storage.files import is_of_storage

PIXEL_KINDS = "uif"
"""Kinds of numpy types that pixels may have."""
STORAGE_FAILED = "storage_failed"
"""Problem code of an image that the storage failed to deliver. The image itself may be whole."""

Window = tuple[int, int, int, int]
"""(y, x, height, width) in pixels."""


class ImageFileError(ValueError):
    """A refused image file; the fields of a `Problem`."""

    def __init__(self, problem: str, found: str, expected: str, next_step: str) -> None:
        self.problem, self.found, self.expected, self.next_step = problem, found, expected, next_step
        super().__init__(f"{problem}: found {found}, expected {expected}. {next_step}")


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


def not_read(error: OSError) -> ImageFileError:
    """The error of a failed read: of the file, or of its storage."""
    if is_of_storage(error):
        return ImageFileError(
            STORAGE_FAILED, one_line(error), "a storage that answers", "Mend the access, then run the job again."
        )
    return ImageFileError(
        "unreadable_file", one_line(error), "a file that can be read", "Check its permissions and the storage."
    )
