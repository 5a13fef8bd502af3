"""Decodes a TIFF of grey pages: the channels of one crop, or crops by channels where the metadata declares such axes.

The header of every page is checked before a pixel is decoded. Other files that the metadata names are not read. Channel
names are those of OME metadata.

Shapes: P pages, B crops, C channels, H and W pixels.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from cytolake.screens.images.bounded_tiff import LOSSLESS, check_tiff_page, open_tiff
from cytolake.screens.images.image_errors import ImageFileError
from cytolake.serving.decoding.crops import DecodedCrops, DecodingBudget, crops_of_array, n_values_of
from cytolake.serving.problems import ServingError

MAX_DESCRIPTION = 2**20
"""Most characters of metadata; OME metadata of 4,000 planes has about 400,000."""

_OTHER_LAYOUT = "Write pages of channels, or a hyperstack with axes such as TCYX."


def decode_tiff(body: bytes, budget: DecodingBudget) -> DecodedCrops:
    """Crops of a TIFF.

    Args:
        body: The file. Its pages are the C channels of one crop; or B x C pages of an ImageJ hyperstack, an OME-TIFF
            or a (B, C, H, W) array written by tifffile. Time points and focal planes count as crops.
        budget: Limits of the declared sizes.

    Raises:
        ServingError: 422, a file that is damaged, cut, of another compression, or without grey pages of one size; 413,
            more than the budget.
    """
    try:
        with open_tiff(io.BytesIO(body), len(body)) as file:
            pages = _checked_pages(file, len(body), budget)
            description = pages[0].description
            n_crops, n_channels, order, channels = _layout(description, len(pages))
            budget.check_counts(n_crops, n_channels)
            pixels_PHW = np.empty((len(pages), *pages[0].shape), pages[0].dtype)
            for page, pixels_HW in zip(pages, pixels_PHW, strict=True):
                pixels_HW[...] = page.asarray(maxworkers=1)
    except ServingError:
        raise
    except ImageFileError as error:
        raise ServingError(
            status=413 if error.problem == "too_large" else 422,
            detail=f"the TIFF: found {error.found}, expected {error.expected}. {error.next_step}",
        ) from error
    except Exception as error:  # tifffile, each codec and each parser of metadata raise their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ServingError(status=422, detail=f"the TIFF cannot be read ({reason}). It is cut or damaged.") from error
    if list(order) != list(range(len(pages))):
        pixels_PHW = pixels_PHW[list(order)]
    return crops_of_array(pixels_PHW.reshape(n_crops, n_channels, *pixels_PHW.shape[1:]), channels, budget)


def _checked_pages(file: tifffile.TiffFile, size: int, budget: DecodingBudget) -> list[Any]:
    """The pages, checked to be grey, whole, of one shape and type, and together within the budget."""
    pages: list[Any] = []
    n_tag_bytes = 0
    n_most = min(budget.max_crops * budget.max_channels, budget.max_decoded_bytes // 4)
    for each in file.pages:
        page = each.aspage()
        if len(pages) == n_most:
            raise ServingError(status=413, detail=f"the TIFF has more than {n_most:,} pages. Send fewer crops.")
        n_tag_bytes += sum(int(tag.valuebytecount) for tag in page.tags)
        if n_tag_bytes > 2 * size + 4096:  # pages that refer to the same bytes would each hold a copy
            raise ServingError(status=422, detail="the TIFF's headers are larger than the file. It is damaged.")
        where = f"page {len(pages)} of the TIFF"
        if len(page.shape) != 2:
            raise ServingError(
                status=422,
                detail=f"{where} has shape {page.shape}, expected one grey plane (height, width). Send colours as "
                "pages of their own, one for each channel.",
            )
        if page.dtype is not None and np.dtype(page.dtype).kind in "uif":
            n_values = (len(pages) + 1) * n_values_of(page.shape)
            budget.check_values(n_values, "the TIFF", (len(pages) + 1, *page.shape), np.dtype(page.dtype).itemsize)
        check_tiff_page(page, 1, size, budget.max_decoded_bytes, LOSSLESS)
        if pages and (page.shape, page.dtype) != (pages[0].shape, pages[0].dtype):
            raise ServingError(
                status=422,
                detail=f"{where} is {page.dtype} of shape {page.shape}, the first is {pages[0].dtype} of shape "
                f"{pages[0].shape}. Send pages of one size and type; no pyramids or thumbnails.",
            )
        pages.append(page)
    return pages


def _layout(description: str, n_pages: int) -> tuple[int, int, Sequence[int], tuple[str, ...]]:
    """Numbers of crops and channels, the page of each crop and channel in order, and the channel names."""
    if len(description) > MAX_DESCRIPTION:
        raise ServingError(
            status=422,
            detail=f"the TIFF's description has {len(description):,} characters, at most {MAX_DESCRIPTION:,}.",
        )
    if description.lstrip().startswith("<") and "<OME" in description[:4096]:
        return _ome_layout(description, n_pages)
    if description.startswith("ImageJ="):
        return _imagej_layout(description, n_pages)
    n_channels = n_pages
    if description.startswith('{"shape":'):
        shape = json.loads(description)["shape"]
        # tifffile stores the shape of the array it wrote
        if isinstance(shape, list) and len(shape) == 4 and shape[0] * shape[1] == n_pages:
            n_channels = int(shape[1])
    return n_pages // n_channels, n_channels, range(n_pages), ()


def _imagej_layout(description: str, n_pages: int) -> tuple[int, int, Sequence[int], tuple[str, ...]]:
    known = {key: int(value) for key, value in re.findall(r"^(channels|slices|frames)=(\d{1,9})$", description, re.M)}
    if not known:
        return 1, n_pages, range(n_pages), ()
    n_channels = known.get("channels", 1)
    n_crops = known.get("slices", 1) * known.get("frames", 1)
    if n_crops * n_channels != n_pages:
        raise _other_pages(f"{n_crops} x {n_channels}", n_pages)
    return n_crops, n_channels, range(n_pages), ()  # channels are the fastest axis of every hyperstack


def _ome_layout(description: str, n_pages: int) -> tuple[int, int, Sequence[int], tuple[str, ...]]:
    if "<!" in re.sub(r"<!--.*?-->", "", description, flags=re.S):
        raise ServingError(status=422, detail="the TIFF's OME metadata declares entities, which are not allowed.")
    elements = list(ElementTree.fromstring(description.encode()).iter())
    pixels = [element for element in elements if _name(element) == "Pixels"]
    if len(pixels) != 1:
        raise ServingError(
            status=422, detail=f"the TIFF's OME metadata describes {len(pixels)} images. {_OTHER_LAYOUT}"
        )
    sizes = {axis: int(pixels[0].attrib[f"Size{axis}"]) for axis in "CZT"}
    axes = pixels[0].attrib["DimensionOrder"][2:]  # the fastest first, after XY
    if sorted(axes) != ["C", "T", "Z"] or min(sizes.values()) < 1 or n_values_of(list(sizes.values())) != n_pages:
        raise _other_pages(" x ".join(f"{size} {axis}" for axis, size in sizes.items()), n_pages)
    pages_TZC = np.arange(n_pages).reshape([sizes[axis] for axis in reversed(axes)])
    pages_TZC = pages_TZC.transpose([axes[::-1].index(axis) for axis in "TZC"])
    for data in (element for element in pixels[0] if _name(element) == "TiffData"):
        first = tuple(int(data.attrib.get(f"First{axis}", 0)) for axis in "TZC")
        if "IFD" in data.attrib and int(data.attrib["IFD"]) != pages_TZC[first]:
            raise ServingError(
                status=422,
                detail=f"the TIFF's pages are in another order than its OME metadata declares. {_OTHER_LAYOUT}",
            )
    found = [element.attrib.get("Name", "") for element in pixels[0] if _name(element) == "Channel"]
    channels = tuple(found) if len(found) == sizes["C"] and all(found) else ()
    return sizes["T"] * sizes["Z"], sizes["C"], pages_TZC.ravel().tolist(), channels


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _other_pages(declared: str, n_pages: int) -> ServingError:
    return ServingError(
        status=422,
        detail=f"the TIFF has {n_pages} pages, its metadata declares {declared}. It was cut, or is one of several "
        f"files. {_OTHER_LAYOUT}",
    )
