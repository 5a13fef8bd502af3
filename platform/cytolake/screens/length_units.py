"""Lengths as vendors and OME metadata write their units."""

from __future__ import annotations

import unicodedata

_MICROMETRES = {
    "m": 1e6, "cm": 1e4, "mm": 1e3, "um": 1.0, "nm": 1e-3, "pm": 1e-6,
    "meter": 1e6, "centimeter": 1e4, "millimeter": 1e3, "micrometer": 1.0, "nanometer": 1e-3, "picometer": 1e-6,
    "micron": 1.0, "angstrom": 1e-4, "a": 1e-4, "inch": 25_400.0, "in": 25_400.0,
}  # fmt: skip


def micrometres(unit: object) -> float | None:
    """Micrometres of one unit of length, such as um, micrometer, microns or its sign; None where it is unknown."""
    text = unicodedata.normalize("NFKC", str(unit)).strip().casefold()  # one code point for micro, and for angstrom
    text = text.replace("\N{GREEK SMALL LETTER MU}", "u").replace("\N{LATIN SMALL LETTER A WITH RING ABOVE}", "a")
    text = text.replace("metre", "meter")
    return _MICROMETRES.get(text) or _MICROMETRES.get(text.removesuffix("s"))
