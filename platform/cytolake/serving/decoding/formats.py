"""Selects the decoder of a body by its first bytes; the endpoint checks the content type."""

from __future__ import annotations

from cytolake.screens.images.bounded_tiff import TIFF_SIGNATURES
from cytolake.serving.decoding.arrays import NPY_MAGIC, ZIP_MAGIC, decode_npy, decode_npz
from cytolake.serving.decoding.arrow_stream import STREAM_MAGIC, decode_arrow_stream
from cytolake.serving.decoding.crops import DecodedCrops, DecodingBudget
from cytolake.serving.decoding.tiff import decode_tiff
from cytolake.serving.problems import ServingError

ARRAY_MEDIA_TYPE = "application/octet-stream"
"""Media type of npy and npz."""
TIFF_MEDIA_TYPE = "image/tiff"
ARROW_MEDIA_TYPE = "application/vnd.apache.arrow.stream"
PIXEL_MEDIA_TYPES = (ARRAY_MEDIA_TYPE, TIFF_MEDIA_TYPE, ARROW_MEDIA_TYPE)
"""Media types of bodies with crops."""


def decode_crops(body: bytes, budget: DecodingBudget) -> DecodedCrops:
    """Read the crops of a request.

    Args:
        body: An npy array, (B, C, H, W) or, for one crop, (C, H, W); an npz archive with an array `crops` and
            optionally one `channels`; a TIFF of grey pages; or an Arrow stream with one row for each crop.
        budget: Limits of the declared sizes, checked before memory is allocated.

    Raises:
        ServingError: 415, another format; 422, a type, shape or value that is no crop; 413, more than the budget.
    """
    if body.startswith(NPY_MAGIC):
        return decode_npy(body, budget)
    if body.startswith(ZIP_MAGIC):
        return decode_npz(body, budget)
    if body.startswith(TIFF_SIGNATURES):
        return decode_tiff(body, budget)
    if body.startswith(STREAM_MAGIC):
        return decode_arrow_stream(body, budget)
    raise ServingError(
        status=415,
        detail=f"the body starts with {body[:6]!r}, expected a numpy array (numpy.save, npy, or numpy.savez, npz), a "
        "TIFF, or an Arrow stream.",
    )
