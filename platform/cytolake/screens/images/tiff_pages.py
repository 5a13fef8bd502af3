"""Choice of the page of a TIFF that is the image, among thumbnails, masks, pyramid levels and further images."""

from __future__ import annotations

from collections.abc import Sequence

import tifffile

from cytolake.screens.images.image_errors import ImageFileError

SUBPAGES_MAX = 64  # levels of a pyramid; 2 ** 64 pixels along an edge need no more
DERIVED = 1 | 4
"""Bits of the tag NewSubfileType: a reduced image, a mask."""


def image_page(pages: Sequence[tifffile.TiffPage]) -> tuple[tifffile.TiffPage, int]:
    """The page of full resolution, and how many there are of its size: more than one is a stack.

    Pages that NewSubfileType marks as reduced or as a mask are passed over. Where only such pages are in the chain,
    the image is looked for among their SubIFDs, as in files that begin with a thumbnail. SubIFDs of a page that is not
    reduced are its pyramid.

    Args:
        pages: Of the file's chain, in order, with headers that were checked; at least one.

    Raises:
        ImageFileError: `shape_mismatch`: several pages of full resolution and of different sizes.

    Source: TIFF 6.0, NewSubfileType and SubIFDs (Adobe PageMaker 6.0 TIFF Technical Notes).
    """
    full = [page for page in pages if not _is_derived(page)]
    if not full:
        below = [sub for page in pages for sub in _sub_pages(page)]
        full = [page for page in below if not _is_derived(page)]
    if not full and len(pages) == 1:
        return pages[0], 1  # the only page is the image, whatever it is marked as
    if not full:
        raise ImageFileError(
            "shape_mismatch",
            f"{len(pages)} pages that are all marked as reduced or masks",
            "a page of full resolution",
            "Export the image again.",
        )
    if len(full) == 1:
        larger = [sub for sub in _sub_pages(full[0]) if not _is_derived(sub) and sub.size > full[0].size]
        if not larger:
            return full[0], 1
        full += larger  # SubIFDs that are no pyramid of this page
    shapes = list(dict.fromkeys(page.shape for page in full))
    if len(shapes) == 1:
        return full[0], len(full)
    listed = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:4]) + (", ..." if len(shapes) > 4 else "")
    raise ImageFileError(
        "shape_mismatch",
        f"{len(full)} pages of different sizes ({listed}), none marked as a thumbnail",
        "one image, and thumbnails or pyramid levels marked as reduced (NewSubfileType 1)",
        "The file does not say which page is the image: export each image into a file of its own.",
    )


def _sub_pages(page: tifffile.TiffPage) -> list[tifffile.TiffPage]:
    """SubIFDs of a page; more than any pyramid has are refused."""
    if len(page.subifds or ()) > SUBPAGES_MAX:
        raise ImageFileError(
            "unreadable_file",
            f"a page with {len(page.subifds or ())} SubIFDs",
            f"at most {SUBPAGES_MAX}",
            "The file is damaged; copy it again from its source.",
        )
    return [each.aspage() for each in page.pages or ()]


def _is_derived(page: tifffile.TiffPage) -> bool:
    return bool(int(page.subfiletype) & DERIVED)
