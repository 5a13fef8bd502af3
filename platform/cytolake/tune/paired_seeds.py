"""Compare two ways of training by their scores, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cytolake.statistics.intervals import student_quantile


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean difference of scores over seeds that both ways of training share."""

    mean: float
    low: float
    """Lower end of the 95 % interval, of Student's t over the seeds; NaN with one seed."""
    high: float
    n_seeds: int

    @property
    def is_evident(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0

    def __str__(self) -> str:
        interval = "" if math.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{interval}"


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Scores of the first way minus those of the second.

    Args:
        ours: One score for each seed.
        theirs: The same seeds in the same order.

    Raises:
        ValueError: Different numbers of seeds, or none.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"{len(ours)} and {len(theirs)} scores, expected one for each seed and way of training, at least one."
        )
    n = len(ours)
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    mean = math.fsum(differences) / n
    if n == 1:
        return PairedDifference(mean, float("nan"), float("nan"), n)
    variance = math.fsum((each - mean) ** 2 for each in differences) / (n - 1)
    half = student_quantile(n - 1) * math.sqrt(variance / n)
    return PairedDifference(mean, mean - half, mean + half, n)
