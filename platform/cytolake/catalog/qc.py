"""Quality control: metrics of a site and channel become verdicts under the rules of catalog/qc.yaml.

A verdict is a row with the value, the limit that applied and whether it passed. Nothing is excluded here: a curation
decides what verdicts mean for crops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray

from cytolake.catalog.declared import declared_path, table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import content_id
from cytolake.catalog.qc_metrics import METRICS
from cytolake.catalog.tables import Catalog

Progress = Callable[[str, int, int], None]
"""Called with what is worked on, how much is done, how much there is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcConfig:
    """Which rules judge the sites."""

    profile: str = "default"
    """A profile of catalog/qc.yaml."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcRule:
    """One rule: values on one side of its limits fail. Limits are explained in catalog/qc.yaml."""

    name: str
    metric: str
    """Column of qc_metrics."""
    fails: str
    """`below` or `above`."""
    says: str
    """What a failure means, for people."""
    absolute: float | None = None
    """In the metric's unit; None for no absolute limit."""
    mads: float | None = None
    """Robust standard deviations from the plate's median; None for no relative limit."""
    min_distance: float = 0.0
    """The relative limit is at least this far from the median, in the metric's unit."""
    min_share: float = 0.0
    """The relative limit is at least this share of the median away from it."""
    except_channels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        def check(is_good: bool, expected: str) -> None:
            if not is_good:
                raise CatalogError(f"catalog/qc.yaml, rule {self.name}: expected {expected}. Correct the rule.")

        check(bool(self.name and self.says), "a name, and a sentence `says` for people")
        check(self.metric in METRICS, f"metric {self.metric!r} to be one of {', '.join(METRICS)}")
        check(self.fails in ("below", "above"), f"fails to be below or above, found {self.fails!r}")
        check(self.absolute is not None or self.mads is not None, "a limit: absolute, mads or both")
        check(self.mads is None or self.mads > 0, f"mads above 0, found {self.mads}")
        check(self.min_distance >= 0 and self.min_share >= 0, "min_distance and min_share of 0 or more")

    def limit(self, values: NDArray[np.float64], min_sites: int) -> float:
        """The limit for one plate and channel, NaN where the rule has none for so few sites.

        Args:
            values: (N,), the metric of each of the plate's N sites.
            min_sites: With fewer sites only the absolute limit counts.
        """
        limits = [] if self.absolute is None else [self.absolute]
        if self.mads is not None and len(values) >= min_sites:
            median = float(np.median(values))
            deviation = 1.4826 * float(np.median(np.abs(values - median)))  # 1.4826: MAD -> sd of a normal
            distance = max(self.mads * deviation, self.min_distance, self.min_share * abs(median))
            limits.append(median - distance if self.fails == "below" else median + distance)
        if not limits:
            return math.nan
        return max(limits) if self.fails == "below" else min(limits)

    def passes(self, values: NDArray[np.float64], limit: float) -> NDArray[np.bool_]:
        """(N,), True where a value is on the limit or inside it, and everywhere when the limit is NaN."""
        failed: NDArray[np.bool_] = values < limit if self.fails == "below" else values > limit
        return ~failed


@dataclass(frozen=True, kw_only=True, slots=True)
class QcProfile:
    """Rules that judge together."""

    name: str
    min_sites: int
    """Sites that a plate needs in a channel for limits relative to the plate."""
    rules: tuple[QcRule, ...]

    @property
    def qc_id(self) -> str:
        """Hash of the rules and their limits; the profile's name and the sentences do not count."""
        rules = [{key: value for key, value in asdict(rule).items() if key != "says"} for rule in self.rules]
        return content_id("qc", json.dumps([self.min_sites, rules], sort_keys=True))

    def judge(self, metrics: pa.Table) -> pa.Table:
        """Judge the sites of one plate; touches no table.

        Args:
            metrics: Rows of qc_metrics, all of them of one plate.

        Returns:
            Rows of qc_verdicts: one for each row and rule that applies to its channel. `threshold` is null, and the
            verdict a pass, where the plate is too small for the rule's only limit.
        """
        judged_at = datetime.now(UTC)
        verdicts = []
        for channel in sorted(set(metrics.column("channel").to_pylist())):
            of_channel = metrics.filter(pc.field("channel") == channel)
            for rule in self.rules:
                if channel in rule.except_channels:
                    continue
                values = of_channel.column(rule.metric).to_numpy().astype(np.float64)
                limit = rule.limit(values, self.min_sites)
                n = len(values)
                verdicts.append(
                    pa.table(
                        {
                            "qc_id": pa.repeat(self.qc_id, n),
                            "site_id": of_channel.column("site_id"),
                            "plate_id": of_channel.column("plate_id"),
                            "channel": of_channel.column("channel"),
                            "channel_index": of_channel.column("channel_index"),
                            "rule": pa.repeat(rule.name, n),
                            "metric": pa.repeat(rule.metric, n),
                            "value": values,
                            "threshold": np.full(n, limit),
                            "is_pass": rule.passes(values, limit),
                            "judged_at": pa.repeat(judged_at, n),
                        }
                    )
                )
        if not verdicts:
            return table_contract("qc_verdicts").empty()
        return table_contract("qc_verdicts").conform(pa.concat_tables(verdicts))


def qc_profile(name: str) -> QcProfile:
    """Load a profile of catalog/qc.yaml.

    Raises:
        CatalogError: No such profile, or a rule in it that is not sound.
    """
    profiles: dict[str, Any] = yaml.safe_load(declared_path("qc.yaml").read_text(encoding="utf-8"))["profiles"]
    if name not in profiles:
        raise CatalogError(f"QC profile {name}: not in catalog/qc.yaml. There are: {', '.join(sorted(profiles))}.")
    return parse_profile(name, profiles[name])


def parse_profile(name: str, declared: dict[str, Any]) -> QcProfile:
    """Turn the content of one entry of catalog/qc.yaml's `profiles` into a profile.

    Raises:
        CatalogError: Unknown keys, a rule twice, or a rule that is not sound.
    """
    place = f"catalog/qc.yaml, profile {name}"
    rules = []
    for entry in declared.get("rules", ()):
        unknown = sorted(set(entry) - set(QcRule.__dataclass_fields__))
        missing = sorted({"name", "metric", "fails", "says"} - set(entry))
        if unknown or missing:
            raise CatalogError(
                f"{place}, rule {entry.get('name', '?')}: unknown keys {unknown or 'none'}, missing keys "
                f"{missing or 'none'}. A rule may have {', '.join(QcRule.__dataclass_fields__)}."
            )
        rules.append(QcRule(**entry | {"except_channels": tuple(entry.get("except_channels", ()))}))
    names = [rule.name for rule in rules]
    if not rules or len(set(names)) < len(names):
        raise CatalogError(f"{place}: found the rules {', '.join(names) or 'none'}; expected some, each name once.")
    return QcProfile(name=name, min_sites=int(declared.get("min_sites", 8)), rules=tuple(rules))


def judge_sites(catalog: Catalog, config: QcConfig, progress: Progress | None = None) -> str:
    """Write the verdicts of every plate that the profile has not judged yet; one commit for each plate.

    Args:
        catalog: Where metrics are read and verdicts written.
        config: Which profile.
        progress: Called after each plate.

    Returns:
        The qc_id of the verdicts, which is the same for the same rules.

    Raises:
        CatalogError: The profile is not sound, or the catalog holds no plate.
    """
    profile = qc_profile(config.profile)
    plates = catalog.table("plates", columns=["plate_id"]).column("plate_id").to_pylist()
    if not plates:
        raise CatalogError(f"{catalog.root}: no plate to judge. Ingest a screen first: jobs/ingest.py.")
    judged = set(
        catalog.sql(f"SELECT DISTINCT plate_id FROM qc_verdicts WHERE qc_id = '{profile.qc_id}'")
        .column("plate_id")
        .to_pylist()
    )
    for done, plate in enumerate(sorted(plates), start=1):
        if plate not in judged:
            metrics = catalog.table("qc_metrics", where=f"plate_id = '{plate}'")
            catalog.append(
                "qc_verdicts", profile.judge(metrics), transaction=content_id("qc_verdicts", profile.qc_id, plate)
            )
        if progress:
            progress("plates judged", done, len(plates))
    return profile.qc_id
