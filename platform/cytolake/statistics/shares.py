"""A share of perturbations, wells or compounds, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054  # two-sided 95 % of a normal


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many, and the range of shares that would plausibly have given it."""

    hits: int
    total: int
    value: float
    """0..1; NaN where the total is 0."""
    low: float
    high: float


def share_of(hits: int, total: int) -> Share:
    """A share with its 95 % Wilson interval, which is sound at 0 and at 1 too.

    It takes the counted things for independent; perturbations tested on one null distribution nearly are.

    Raises:
        ValueError: More hits than there are things, or a negative count.

    Source: Wilson 1927, doi:10.1080/01621459.1927.10502953.
    """
    if not 0 <= hits <= total:
        raise ValueError(
            f"{hits} hits of {total}, expected between 0 and the total. Count hits among those tested only."
        )
    if total == 0:
        return Share(0, 0, math.nan, math.nan, math.nan)
    value = hits / total
    spread = Z_95**2 / total
    middle = (value + spread / 2) / (1 + spread)
    half = Z_95 * math.sqrt(value * (1 - value) / total + spread / (4 * total)) / (1 + spread)
    # At the ends the formula gives 0 and 1 but for rounding.
    low, high = middle - half if hits else 0.0, middle + half if hits < total else 1.0
    return Share(hits, total, value, low, high)
