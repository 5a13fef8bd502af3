"""Sorts names so that numbers in them are ordered by value."""

from __future__ import annotations

import re

_DIGITS = re.compile(r"([0-9]+)")


def natural_order(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key by which `"s2"` comes before `"s10"`, whatever the length of the numbers."""
    key = []
    for part in _DIGITS.split(text):
        if part and part[0] in "0123456789":
            digits = part.lstrip("0")
            key.append((0, len(digits), digits))
        elif part:
            key.append((1, 0, part))
    return tuple(key)
