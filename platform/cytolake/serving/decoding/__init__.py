"""Decodes crops from the bytes of a request (npy, npz, TIFF, Arrow stream) within a size budget, running no code."""

from cytolake.serving.decoding.crops import DecodedCrops, DecodingBudget
from cytolake.serving.decoding.formats import (
    ARRAY_MEDIA_TYPE,
    ARROW_MEDIA_TYPE,
    PIXEL_MEDIA_TYPES,
    TIFF_MEDIA_TYPE,
    decode_crops,
)

__all__ = [
    "ARRAY_MEDIA_TYPE",
    "ARROW_MEDIA_TYPE",
    "PIXEL_MEDIA_TYPES",
    "TIFF_MEDIA_TYPE",
    "DecodedCrops",
    "DecodingBudget",
    "decode_crops",
]
