"""A QC rule: its limits, and the values that fail. catalog/qc.yaml explains limits and levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.errors import CatalogError
from cytolake.qc import levels as qc_levels
from cytolake.qc.metrics import METRICS
from cytolake.qc.modality import MODALITIES

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

STATISTICS = {
    "site": ("value",),
    "well": ("value", "deviation"),
    "plate": ("separation", "edge_shift", "position_share"),
}
"""Statistics that a rule of each level may judge; the first is the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcRule:
    """One rule: values beyond its limits fail. catalog/qc.yaml explains limits and levels."""

    name: str
    metric: str | tuple[str, ...]
    """Column of qc_metrics; several only for `separation`."""
    fails: str
    """`below`, `above` or `outside`."""
    says: str
    """Meaning of a failure."""
    level: str = "site"
    """`site`, `well` or `plate`."""
    statistic: str = ""
    """One of STATISTICS of the level; empty for its first."""
    absolute: float | None = None
    """Absolute limit, in the unit of the judged statistic; None for none."""
    mads: float | None = None
    """Relative limit, robust standard deviations from the reference's median; None for none."""
    min_distance: float = 0.0
    """The relative limit is at least this far from the median, in the metric's unit."""
    min_share: float = 0.0
    """The relative limit is at least this share of the median away from it."""
    min_contrast_share: float = 0.0
    """The relative limit is at least this share of the plate's contrast in the channel away from the median."""
    scale: str = "linear"
    """`linear` or `log`."""
    joint: bool = False
    """Judge all channels of a site as one."""
    except_channels: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    """Modalities of channels that the rule judges; empty for any."""
    min_count: float = 0.0
    """Fewest objects (object_count) for the rule to judge. Site: median of the plate's sites. Well: median of the
    reference wells, over all sites of a well."""
    channel: str = ""
    """Well and plate: judge this stain only, or the one of highest contrast if it is missing; empty for each stain."""
    wells: str = "all"
    """Well: wells that are judged, `all` or `edge`."""
    against: str = "all"
    """Well: reference wells, `controls`, `inner` or `all`."""
    min_wells: int = 8
    """Well and plate: fewest wells of a reference."""
    with_failed_sites: bool = False
    """Well and plate: include sites that failed a rule of level `site`."""

    def __post_init__(self) -> None:
        def check(is_good: bool, expected: str) -> None:
            if not is_good:
                raise CatalogError(f"catalog/qc.yaml, rule {self.name}: expected {expected}. Correct the rule.")

        def check_one(name: str, expected: Sequence[str]) -> None:
            found = getattr(self, name)
            check(found in expected, f"{name} to be one of {', '.join(expected)}, found {found!r}")

        check(bool(self.name and self.says), "a name, and a sentence `says` for people")
        for metric in self.metrics:
            check(metric in METRICS, f"metric {metric!r} to be one of {', '.join(METRICS)}")
        check_one("level", tuple(STATISTICS))
        if self.statistic:
            check_one("statistic", STATISTICS[self.level])
        check_one("fails", ("below", "above", "outside"))
        check_one("scale", ("linear", "log"))
        check_one("wells", ("all", "edge"))
        check_one("against", ("controls", "inner", "all"))
        is_signed = self.judged == "deviation" or self.judged == "edge_shift"
        check(self.fails != "outside" or is_signed, "outside only with statistic deviation or edge_shift")
        check(self.absolute is not None or self.mads is not None, "a limit: absolute, mads or both")
        check(self.mads is None or self.mads > 0, f"mads above 0, found {self.mads}")
        check(
            self.level != "plate" or (self.mads is None and self.absolute is not None),
            "absolute and no mads where a plate is judged: it has no reference",
        )
        check(
            self.judged != "deviation" or (self.mads is not None and self.absolute is None),
            "mads and no absolute where deviations are judged",
        )
        check(not self.joint or self.level == "site", "joint only with level site")
        check(len(self.metrics) == 1 or self.judged == "separation", "one metric, or statistic separation")
        least = min(self.min_distance, self.min_share, self.min_contrast_share)
        check(least >= 0, "min_distance, min_share and min_contrast_share of 0 or more")
        wrong = sorted(set(self.modalities) - set(MODALITIES))
        check(not wrong, f"modalities of {', '.join(MODALITIES)}, found {', '.join(wrong)}")
        check(self.min_count >= 0, f"min_count of 0 or more, found {self.min_count}")
        check(self.min_count == 0 or (self.level != "plate" and not self.joint), "min_count only with single values")
        check(self.min_wells >= 2, f"min_wells of 2 or more, found {self.min_wells}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics of the rule."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def judged(self) -> str:
        """The judged statistic; `deviation` if channels are judged together."""
        return "deviation" if self.joint else self.statistic or STATISTICS[self.level][0]

    def limit(self, values: Floats, min_values: int, contrast: float = 0.0) -> float:
        """The limit for one plate and channel; NaN if the rule has none for so few values.

        Args:
            values: (N,), the metric of each reference site or well; NaN if missing.
            min_values: With fewer values only the absolute limit applies.
            contrast: Contrast of the plate in this channel, in the metric's unit; for `min_contrast_share`.
        """
        limits = [] if self.absolute is None else [self.absolute]
        known = values[np.isfinite(values)]
        if self.mads is not None and len(known) >= min_values:
            scaled, unscale = self._scaled(known, known)
            median, sd = qc_levels.median_and_sd(scaled)
            distance = max(self.mads * sd, self._least_distance(median, contrast))
            limits.append(unscale(median - distance if self.fails == "below" else median + distance))
        if not limits:
            return math.nan
        return max(limits) if self.fails == "below" else min(limits)

    def deviations(self, values: Floats, reference: Floats, min_values: int, contrast: float = 0.0) -> Floats:
        """(N,), distances from the reference's median, in its robust standard deviations, on the rule's scale.

        The unit is so large that `min_distance` and similar are at least `mads` away. NaN if the reference has fewer
        than `min_values` values.
        """
        known = reference[np.isfinite(reference)]
        if self.mads is None or len(known) < min_values:
            return np.full(len(values), math.nan)
        scaled, _ = self._scaled(values, known)
        scaled_reference, _ = self._scaled(known, known)
        median, _ = qc_levels.median_and_sd(scaled_reference)
        return qc_levels.robust_deviations(scaled, scaled_reference, self._least_distance(median, contrast) / self.mads)

    def passes(self, values: Floats, limit: float) -> Flags:
        """(N,), True where a value is within the limit, missing, or without a limit.

        For `outside` the limit is the largest distance from 0.
        """
        distance = np.abs(values) if self.fails == "outside" else values
        failed: Flags = distance < limit if self.fails == "below" else distance > limit
        return ~failed

    def _scaled(self, values: Floats, reference: Floats) -> tuple[Floats, Callable[[float], float]]:
        """Values on the rule's scale, and the inverse. Values of 0 or less become a millionth of the median."""
        if self.scale == "linear":
            return values, float
        positive = reference[reference > 0]
        floor = 1e-6 * float(np.median(positive)) if len(positive) else 1.0
        return np.log(np.maximum(values, floor)), math.exp

    def _least_distance(self, median: float, contrast: float) -> float:
        return max(self.min_distance, self.min_share * abs(median), self.min_contrast_share * contrast)
