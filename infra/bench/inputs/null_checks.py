"""What a test gives where there is no effect, and where a known effect is planted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NullCheck:
    """One test on simulated data whose truth is known."""

    name: str
    share_below_05: float
    """Share of p < .05 where there is no effect."""
    n_simulations: int
    power: float | None
    """Share of p < .05 where an effect is planted; None where this is not measured."""
    reference_power: float | None
    """The same of the reference."""
    reference: str
    """What it is compared with; "" for nothing."""
