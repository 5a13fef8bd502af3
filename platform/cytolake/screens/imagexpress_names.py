"""File names of an ImageXpress export, by the grammar of MetaXpress.

`<plate>_<well>[_s<site>][_w<wavelength>][_thumb][<GUID>].tif`. A plate's name may hold anything, also what looks like a
well, so that a name is read from its end: the well is the first part after which nothing but these marks follow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_HEX = "[0-9A-Fa-f]"
_GUID = rf"(?P<guid>{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}})?"
_WELL = r"(?P<plate>.+?)_(?P<well>(?:[A-Z]{1,2}|[a-z]{1,2})[0-9]{2})"
_END = rf"(?P<thumbnail>_(?i:thumb))?{_GUID}\.(?i:tiff?)"
_NAMES = (
    # both marks in capitals: `_S10_W10` is no well W10
    re.compile(rf"{_WELL}_S(?P<site>[0-9]+)_W(?P<wavelength>[0-9]+){_END}"),
    # MetaXpress writes them small, so that `_S10` is a well of a 1536-well plate and `_s10` a site
    re.compile(rf"{_WELL}(?:_s(?P<site>[0-9]+))?(?:_w(?P<wavelength>[0-9]+))?{_END}"),
    re.compile(rf"{_WELL}(?:_[sS](?P<site>[0-9]+))?(?:_[wW](?P<wavelength>[0-9]+))?{_END}"),
)


@dataclass(frozen=True, slots=True)
class ImageName:
    """Parts of a file name."""

    plate: str
    well: str
    """As written."""
    site: str
    """Empty where wells have one site."""
    wavelength: int
    """1 where the plate has one."""
    is_thumbnail: bool
    has_guid: bool


@lru_cache(maxsize=2**16)  # a folder is looked at for its layout, and then listed
def parse_image_name(name: str) -> ImageName | None:
    """What the name of an image says, without folders; None where it is no such name."""
    match = next((match for pattern in _NAMES if (match := pattern.fullmatch(name))), None)
    if match is None:
        return None
    digits = match["wavelength"] or "1"
    if len(digits) > 4:
        return None
    return ImageName(
        match["plate"], match["well"], match["site"] or "", int(digits), bool(match["thumbnail"]), bool(match["guid"])
    )
