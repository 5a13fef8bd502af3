"""Results of `make bench-nulls`: is a test right where there is nothing to find, and does it find what there is?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class NullCheck:
    """One test on simulated data."""

    name: str
    share_below_05: float
    """Share of p-values below 0.05 where there is no effect; 0.05 is right."""
    n_simulations: int
    """p-values behind the share."""
    power: float | None = None
    """Share of p-values below 0.05 of planted effects; None where nothing was planted."""
    reference_power: float | None = None
    """The same of the reference implementation on the same data; NaN where it is not installed, None where the test has
    no counterpart."""
    reference: str = ""
    """The reference implementation, and what was planted."""


def share_below_level(p_values: Sequence[float]) -> float:
    """Share of the p-values below 0.05; NaN where there is none."""
    return float(np.mean(np.asarray(p_values, np.float64) < LEVEL)) if len(p_values) else float("nan")
