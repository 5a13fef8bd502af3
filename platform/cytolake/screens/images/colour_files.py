"""Reader of natural images: one file with all channels of a site, red, green and blue or grey.

Pillow decodes them; the size in a header is checked against a budget before memory is taken, as in `image_files`.

Letters: C channels, H height and W width in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, UnidentifiedImageError

from cytolake.screens.images.bounded_tiff import PAGES_MAX
from cytolake.screens.images.image_errors import ImageFileError, Window, check_budget, check_window, one_line
from cytolake.screens.images.image_files import opened_file
from cytolake.screens.images.tiff_pages import DERIVED

COLOUR = ("RGB_R", "RGB_G", "RGB_B")
"""Channels of a colour image, as catalog/channels.yaml has them."""
GREY = ("Gray",)

_NEW_SUBFILE_TYPE = 254
_OF_COLOUR = frozenset({"RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV"})
_OF_GREY = frozenset({"1", "L", "LA"})
_OF_MANY_BITS = frozenset({"I;16", "I;16L", "I;16B", "I", "F"})


def read_colour(
    path: str, n_channels: int, window: Window | None, bytes_max: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """(C, H, W) pixels of a file in a window, and the (H, W) of the whole.

    Args:
        path: PNG, JPEG or TIFF.
        n_channels: 3 for red, green and blue, uint8: a grey image then has the same in all three. 1 for grey: uint8, or
            the file's own type where it has more bits.
        window: In pixels; None is all of it.
        bytes_max: Decoded.

    Raises:
        ImageFileError: The file cannot be read, is damaged or cut, of no such format, colour where grey is expected,
            past the budget, or ends before the window does.
    """
    with _opened(path) as image:
        shape = (image.height, image.width)
        y, x, height, width = check_window(window, *shape)
        check_budget(math.prod(shape) * 4 * max(n_channels, len(image.getbands())), bytes_max)
        if n_channels == len(COLOUR):
            pixels_HWC = np.asarray(image.convert("RGB"))
        elif is_colour(image):
            raise ImageFileError(
                "unsupported_file",
                f"a colour image ({image.mode})",
                "grey, as the images that the folder was listed by",
                "List the folder again, or convert the image.",
            )
        else:
            grey_HW = np.asarray(image if image.mode in _OF_MANY_BITS else image.convert("L"))
            if grey_HW.dtype == np.int32 and grey_HW.min() >= 0 and grey_HW.max() < 2**16:
                grey_HW = grey_HW.astype(np.uint16)  # Pillow's type for a PNG of 16 bits, in some versions
            pixels_HWC = grey_HW[:, :, None]
        return np.ascontiguousarray(pixels_HWC[y : y + height, x : x + width].transpose(2, 0, 1)), shape


def colour_header(path: str) -> tuple[int, tuple[int, int], np.dtype[np.generic]]:
    """Channels (3 or 1), (H, W) and pixel type that `read_colour` gives of a file, from its header.

    Raises:
        ImageFileError: As for `read_colour`.
    """
    with _opened(path) as image:
        shape = (image.height, image.width)
        if is_colour(image):
            return len(COLOUR), shape, np.dtype(np.uint8)
        if image.mode == "F":
            return len(GREY), shape, np.dtype(np.float32)
        return len(GREY), shape, np.dtype(np.uint16 if image.mode in _OF_MANY_BITS else np.uint8)


def is_colour(image: Image.Image) -> bool:
    """Whether an image has colours, by its mode, or by the entries of its palette."""
    if image.mode == "P":
        palette = np.asarray(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette != palette[:, :1]).any())
    return image.mode in _OF_COLOUR


def _seek_full_resolution(image: Image.Image) -> None:
    """Goes to the one page of a TIFF that is not marked as reduced or as a mask; see `tiff_pages.image_page`."""
    n_pages = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or n_pages == 1:
        return
    full = []
    for page in range(min(n_pages, PAGES_MAX)):
        image.seek(page)
        if not int(getattr(image, "tag_v2", {}).get(_NEW_SUBFILE_TYPE, 0)) & DERIVED:
            full.append(page)
    if len(full) != 1:
        raise ImageFileError(
            "shape_mismatch",
            f"{n_pages} pages, {len(full)} of them of full resolution",
            "one image, and thumbnails marked as reduced (NewSubfileType 1)",
            "Export each image into a file of its own.",
        )
    image.seek(full[0])


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    with opened_file(path) as (file, size, head):
        try:
            with Image.open(file) as image:
                if image.mode not in _OF_COLOUR | _OF_GREY | _OF_MANY_BITS | {"P"}:
                    raise ImageFileError(
                        "unsupported_file", f"an image of mode {image.mode}", "colour or grey", "Convert the image."
                    )
                _seek_full_resolution(image)
                yield image
        except ImageFileError:
            raise
        except UnidentifiedImageError as error:
            raise ImageFileError(
                "unsupported_file",
                f"a file that starts with bytes {head[:8].hex(' ')}",
                "PNG, JPEG or TIFF",
                "Convert the image, or copy the file again if it is damaged.",
            ) from error
        except Exception as error:  # each of Pillow's decoders raises its own
            is_cut = "truncated" in str(error)
            raise ImageFileError(
                "truncated_file" if is_cut else "unreadable_file",
                f"{size} bytes ({one_line(error)})",
                "a whole image",
                "The file is cut or damaged; copy it again from its source.",
            ) from error
