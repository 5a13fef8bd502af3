"""Crops that come as the body of a request, of any kind that is taken, and how their channels are named."""

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
    """Of the body, without parameters; empty where the header is missing."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def sent_crops(request: Request, body: bytes, channels: str, budget: DecodingBudget) -> DecodedCrops:
    """The crops of a body, their channels named by the query, the header `X-Channels`, or the body itself.

    Args:
        request: Whose headers tell what the body is.
        body: All of it.
        channels: Names behind commas, for every crop; "" leaves those that came with the pixels.
        budget: Limits on what is decoded.

    Raises:
        ServingError: 415 a media type that is not taken; else as `decode_crops`.
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
