"""Ids derived from content: ingesting the same plate again, anywhere, yields the same ids."""

from __future__ import annotations

import hashlib

DIGEST_BYTES = 16  # 128 bits: at 1e12 crops the chance of one collision is below 1e-14


def content_id(*parts: str | int) -> str:
    """Hash of the parts in order: 32 hex digits, the same on every machine and in every process.

    Each part is prefixed with its length, so `("ab", "c")` and `("a", "bc")` differ. A number counts as its decimal
    digits: `7` and `"7"` are the same part.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        text = str(part).encode()
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()


def plate_id(screen: str, plate: str) -> str:
    """Id of a plate."""
    return content_id("plate", screen, plate)


def well_id(screen: str, plate: str, well: str) -> str:
    """Id of a well."""
    return content_id("well", screen, plate, well)


def site_id(screen: str, plate: str, well: str, site: str, timepoint: int = 0, z: str = "") -> str:
    """Id of one field of view, at one time and focal plane."""
    return content_id("site", screen, plate, well, site, timepoint, z)


def crop_id(
    screen: str, plate: str, well: str, site: str, timepoint: int = 0, z: str = "", *, y: int, x: int, size: int
) -> str:
    """Id of a square window of a site: `y`, `x` its top left corner and `size` its edge, pixels."""
    return content_id("crop", screen, plate, well, site, timepoint, z, y, x, size)


def representation_id(model_id: str, block: int, pooling: str, pack_id: str) -> str:
    """Id of one block and pooling of one model over one pack."""
    return content_id("representation", model_id, block, pooling, pack_id)
