"""Ids derived from content: ingesting the same plate again, anywhere, yields the same ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cytolake.catalog.errors import CatalogError

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


FEWEST_DIGITS = 6
"""Of an id's beginning that stands for the id. Commands print the first 8 or 12 digits."""


def whole_id(given: str, known: Iterable[str | None], kind: str) -> str:
    """The known id that a person gives, in full or by its beginning; empty where there is none.

    Args:
        given: All digits, or the first 6 or more.
        known: Ids that it may be.
        kind: What they are ids of, for the error.

    Raises:
        CatalogError: Several ids begin so. Lists them.
    """
    there = {each for each in known if each}
    if given in there:
        return given
    found = sorted(each for each in there if len(given) >= FEWEST_DIGITS and each.startswith(given))
    if len(found) > 1:
        raise CatalogError(f"{kind} {given}: {len(found)} ids begin so: {', '.join(found[:10])}. Give more digits.")
    return found[0] if found else ""


@dataclass(frozen=True, slots=True)
class PlateIds:
    """Ids of one acquisition of a plate, and of everything in it.

    Of the first acquisition they are hashed from names alone. A later one has other pixels, so its plate, sites and
    crops have other ids; its wells are the same wells.
    """

    screen: str
    plate: str
    """Names that the plate came in under: a rename changes no id."""
    acquisition: str = ""
    """Hash of the pixels of a later acquisition; empty for the first."""

    @property
    def plate_id(self) -> str:
        """Id of the acquisition."""
        first = plate_id(self.screen, self.plate)
        return content_id("acquisition", first, self.acquisition) if self.acquisition else first

    def well_id(self, well: str) -> str:
        """Id of a well."""
        return well_id(self.screen, self.plate, well)

    def site_id(self, well: str, site: str, timepoint: int, z: str) -> str:
        """Id of a field of view."""
        first = site_id(self.screen, self.plate, well, site, timepoint, z)
        return content_id("acquisition", first, self.acquisition) if self.acquisition else first

    def crop_id(self, well: str, site: str, timepoint: int, z: str, *, y: int, x: int, size: int) -> str:
        """Id of a square window of a site."""
        first = crop_id(self.screen, self.plate, well, site, timepoint, z, y=y, x=x, size=size)
        return content_id("acquisition", first, self.acquisition) if self.acquisition else first
