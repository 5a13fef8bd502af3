from __future__ import annotations

import pytest

from cytolake.screens.length_units import micrometres


@pytest.mark.parametrize(
    "unit",
    ["um", "\u00b5m", "\u03bcm", "micrometer", "Micrometer", "micrometre", "micrometers", "micron", "microns", " UM "],
)
def test_every_spelling_of_a_micrometre_is_one(unit):
    assert micrometres(unit) == 1.0


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("nm", 0.001),
        ("nanometer", 0.001),
        ("mm", 1000.0),
        ("m", 1000000.0),
        ("Å", 0.0001),
        ("ångström", None),
        ("angstrom", 0.0001),
        ("pixel", None),
        ("", None),
        (None, None),
        ("uM/l", None),
    ],
)
def test_other_lengths_are_converted_and_what_is_none_is_unknown(unit, expected):
    assert micrometres(unit) == expected
