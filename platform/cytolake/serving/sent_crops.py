"""Decodes the crops in the body of a request, and finds the names of their channels."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request

from cytolake.serving.decoding import (
    ARRAY_MEDIA_TYPE,
    ARROW_MEDIA_TYPE,
    PIXEL_MEDIA_TYPES,
    TIFF_MEDIA_TYPE,
    DecodedCrops,
    DecodingBudget,
    decode_crops,
)
from cytolake.serving.problems import ServingError

JSON_MEDIA_TYPE = "application/json"


def media_type_of(request: Request) -> str:
    """Media type of the body, without parameters; empty where the header is missing."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def sent_crops(request: Request, body: bytes, channels: str, budget: DecodingBudget) -> DecodedCrops:
    """The crops of a body, with channel names of the query, of the header `X-Channels`, or of the body itself.

    Args:
        request: The request, for its headers.
        body: The whole body.
        channels: Names of the query, separated by commas, for every crop; "" for none.
        budget: Limits of the decoded arrays.

    Raises:
        ServingError: 415, an unsupported media type; else as `decode_crops`.
    """
    media_type = media_type_of(request)
    if media_type not in PIXEL_MEDIA_TYPES:
        raise ServingError(
            status=415,
            detail=f"content type {media_type or 'missing'!r}: send {JSON_MEDIA_TYPE} with ids, or pixels as "
            f"{ARRAY_MEDIA_TYPE} (npy or npz), {TIFF_MEDIA_TYPE} or {ARROW_MEDIA_TYPE}.",
        )
    crops = decode_crops(body, budget)
    named = channels or request.headers.get("x-channels", "")
    if not named:
        return crops
    names = tuple(name.strip() for name in named.split(","))
    return replace(crops, channels=(names,) * len(crops.images))
