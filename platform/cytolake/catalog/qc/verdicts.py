"""Quality control: metrics of sites, wells and plates become verdicts under the rules of catalog/qc.yaml.

A verdict is a row with the value, the limit that applied and whether it passed. Nothing is excluded here: a curation
decides what verdicts mean for crops.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
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
from cytolake.catalog.qc import levels as qc_levels
from cytolake.catalog.qc.levels import Places
from cytolake.catalog.qc.metrics import METRICS
from cytolake.catalog.tables import Catalog
from cytolake.screens.plate import WELLS_ONLY

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Progress = Callable[[str, int, int], None]
"""Called with what is worked on, how much is done, how much there is."""

STATISTICS = {
    "site": ("value",),
    "well": ("value", "deviation"),
    "plate": ("separation", "edge_shift", "position_share"),
}
"""What a rule of each level may judge; the first is the default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcConfig:
    """Which rules judge the sites."""

    profile: str = "default"
    """A profile of catalog/qc.yaml."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QcRule:
    """One rule: values on one side of its limits fail. Limits and levels are explained in catalog/qc.yaml."""

    name: str
    metric: str | tuple[str, ...]
    """Column of qc_metrics; several only for `separation`."""
    fails: str
    """`below`, `above` or `outside`."""
    says: str
    """What a failure means, for people."""
    level: str = "site"
    """`site`, `well` or `plate`."""
    statistic: str = ""
    """One of STATISTICS of the level; empty for its first."""
    absolute: float | None = None
    """In the unit of what is judged; None for no absolute limit."""
    mads: float | None = None
    """Robust standard deviations from the reference's median; None for no relative limit."""
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
    channel: str = ""
    """Well and plate: only this stain, or the one of most contrast where it is missing; empty for each."""
    wells: str = "all"
    """Well: `all` or `edge` are judged."""
    against: str = "all"
    """Well: `controls`, `inner` or `all` are the reference."""
    min_wells: int = 8
    """Well and plate: wells that a reference needs."""
    with_failed_sites: bool = False
    """Well and plate: count sites that failed a rule of level `site`, too."""

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
        check(self.min_wells >= 2, f"min_wells of 2 or more, found {self.min_wells}")

    @property
    def metrics(self) -> tuple[str, ...]:
        """All of them."""
        return (self.metric,) if isinstance(self.metric, str) else self.metric

    @property
    def judged(self) -> str:
        """The statistic, `deviation` where channels are judged together."""
        return "deviation" if self.joint else self.statistic or STATISTICS[self.level][0]

    def limit(self, values: Floats, min_values: int, contrast: float = 0.0) -> float:
        """The limit for one plate and channel, NaN where the rule has none for so few values.

        Args:
            values: (N,), the metric of each of the reference's N sites or wells; NaN where there is none.
            min_values: With fewer values only the absolute limit counts.
            contrast: Of the plate in this channel, in the metric's unit; for `min_contrast_share`.
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
        """(N,), distances from the reference's median in its robust standard deviations, on the rule's scale.

        The unit is such that `min_distance` and its kin lie `mads` away at least. NaN where the reference has fewer
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
        """(N,), True where a value is on the limit or inside it, where there is no value, and where there is no limit.

        For `outside` the limit is the largest distance from 0.
        """
        distance = np.abs(values) if self.fails == "outside" else values
        failed: Flags = distance < limit if self.fails == "below" else distance > limit
        return ~failed

    def _scaled(self, values: Floats, reference: Floats) -> tuple[Floats, Callable[[float], float]]:
        """Values on the rule's scale, and the way back. A log of 0 or less is that of a millionth of the usual."""
        if self.scale == "linear":
            return values, float
        positive = reference[reference > 0]
        floor = 1e-6 * float(np.median(positive)) if len(positive) else 1.0
        return np.log(np.maximum(values, floor)), math.exp

    def _least_distance(self, median: float, contrast: float) -> float:
        return max(self.min_distance, self.min_share * abs(median), self.min_contrast_share * contrast)


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

    def judge(self, metrics: pa.Table, places: Places | None = None) -> pa.Table:
        """Judge one plate; touches no table.

        Args:
            metrics: Rows of qc_metrics, all of them of one plate.
            places: Where its sites lie. Without, only sites are judged, and their wells are unknown (empty).

        Returns:
            Rows of qc_verdicts. Level `site`: one for each site, channel and rule that applies to it (for joint rules
            one for each site). `well`: for each well that has a place. `plate`: one for each rule and channel.
            `threshold` is null, and the verdict a pass, where the plate is too small for the rule's only limit; so is
            `value` where the statistic needs more wells, or where the metric is younger than the catalog.
        """
        if not metrics.num_rows:
            return table_contract("qc_verdicts").empty()
        plate = _MeasuredPlate(metrics, places)
        blocks: list[pa.Table] = []
        for rule in self.rules:
            if rule.level == "site":
                blocks += self._judge_joint(rule, plate) if rule.joint else self._judge_channels(rule, plate)
        plate.leave_out_failed(blocks)
        for rule in self.rules:
            if rule.level == "site" or places is None or not places.wells:
                continue
            blocks += _judge_wells(rule, plate, places) if rule.level == "well" else _judge_plate(rule, plate, places)
        if not blocks:
            return table_contract("qc_verdicts").empty()
        rows = pa.concat_tables(blocks)
        n = rows.num_rows
        rows = rows.append_column("qc_id", pa.repeat(self.qc_id, n))
        rows = rows.append_column("plate_id", pa.repeat(plate.plate_id, n))
        rows = rows.append_column("judged_at", pa.repeat(datetime.now(UTC), n))
        return table_contract("qc_verdicts").conform(rows)

    def _judge_channels(self, rule: QcRule, plate: _MeasuredPlate) -> list[pa.Table]:
        blocks = []
        for channel in plate.channels_for(rule):
            here = plate.channel == channel
            values = plate.values(rule.metrics[0])[here]
            limit = rule.limit(values, self.min_sites, plate.contrast(channel))
            sites = plate.site_id[here].tolist()
            blocks.append(
                _verdicts(
                    rule,
                    values,
                    limit,
                    sites=sites,
                    wells=plate.wells_of(sites),
                    channel=channel,
                    channel_index=plate.channel_index[here],
                )
            )
        return blocks

    def _judge_joint(self, rule: QcRule, plate: _MeasuredPlate) -> list[pa.Table]:
        deviations: dict[str, list[float]] = {}
        for channel in plate.channels_for(rule):
            here = plate.channel == channel
            values = plate.values(rule.metrics[0])[here]
            found = rule.deviations(values, values, self.min_sites, plate.contrast(channel))
            for site, deviation in zip(plate.site_id[here].tolist(), found.tolist(), strict=True):
                deviations.setdefault(site, []).append(deviation)
        if not deviations or rule.mads is None:
            return []
        sites = sorted(deviations)
        known = [[value for value in deviations[site] if math.isfinite(value)] for site in sites]
        values = np.array([np.median(found) if found else math.nan for found in known])
        limit = -rule.mads if rule.fails == "below" else rule.mads
        limit = limit if np.isfinite(values).any() else math.nan
        return [_verdicts(rule, values, limit, sites=sites, wells=plate.wells_of(sites))]


class _MeasuredPlate:
    """The metrics of one plate as arrays, one value for each site and channel."""

    def __init__(self, metrics: pa.Table, places: Places | None) -> None:
        self.metrics = metrics
        self.places = places
        self.plate_id: str = metrics.column("plate_id")[0].as_py()
        self.site_id = np.array(metrics.column("site_id").to_pylist(), object)
        self.channel = np.array(metrics.column("channel").to_pylist(), object)
        self.channel_index = metrics.column("channel_index").to_numpy()
        self.has_passed = np.ones(len(self.site_id), bool)

    def leave_out_failed(self, verdicts: Sequence[pa.Table]) -> None:
        """Let wells be the means of the sites that passed these verdicts."""
        failed = {site for rows in verdicts for site in rows.filter(pc.invert(rows["is_pass"]))["site_id"].to_pylist()}
        self.has_passed = np.array([site not in failed for site in self.site_id.tolist()], bool)

    def values(self, metric: str) -> Floats:
        return np.asarray(self.metrics.column(metric).to_numpy(), np.float64)

    def channels_for(self, rule: QcRule) -> list[str]:
        """Stains that the rule applies to, in order."""
        names = sorted(set(self.channel.tolist()) - set(rule.except_channels))
        if not rule.channel or not names:
            return names
        if rule.channel in names:
            return [rule.channel]
        return [max(names, key=self.contrast)]

    def contrast(self, channel: str) -> float:
        """Median over the sites of p99 less the background's floor, counts."""
        here = self.channel == channel
        contrast, _ = qc_levels.median_and_sd((self.values("p99") - self.values("background_floor"))[here])
        return contrast if math.isfinite(contrast) else 0.0

    def index_of(self, channel: str) -> int:
        """Where most sites have the channel."""
        return int(np.bincount(self.channel_index[self.channel == channel]).argmax())

    def wells_of(self, sites: list[str]) -> list[str]:
        return [self.places.well_of_site.get(site, "") if self.places else "" for site in sites]

    def well_means(self, rule: QcRule, channel: str, places: Places, metric: str = "") -> Floats:
        here = self.channel == channel
        if not rule.with_failed_sites:
            here = here & self.has_passed
        wells = self.wells_of(self.site_id[here].tolist())
        return qc_levels.well_means(self.values(metric or rule.metrics[0])[here], wells, places.wells)


def _judge_wells(rule: QcRule, plate: _MeasuredPlate, places: Places) -> list[pa.Table]:
    blocks = []
    judged: Flags = places.is_edge if rule.wells == "edge" else np.ones(len(places.wells), bool)
    for channel in plate.channels_for(rule):
        values = plate.well_means(rule, channel, places)
        reference = values[_reference(rule, values, places)]
        contrast = plate.contrast(channel)
        if rule.judged == "deviation":
            values = rule.deviations(values, reference, rule.min_wells, contrast)
            limit = rule.mads if rule.fails != "below" else -(rule.mads or 0)
            limit = math.nan if limit is None or not np.isfinite(values).any() else limit
        else:
            limit = rule.limit(reference, rule.min_wells, contrast)
        blocks.append(
            _verdicts(
                rule,
                values[judged],
                limit,
                wells=[well for well, is_judged in zip(places.wells, judged.tolist(), strict=True) if is_judged],
                channel=channel,
                channel_index=plate.index_of(channel),
            )
        )
    return blocks


def _reference(rule: QcRule, values: Floats, places: Places) -> Flags:
    everything = np.ones(len(places.wells), bool)
    if rule.against == "inner":
        return ~places.is_edge
    if rule.against == "controls":
        controls = places.is_control("negative")
        return controls if np.isfinite(values[controls]).sum() >= rule.min_wells else everything
    return everything


def _judge_plate(rule: QcRule, plate: _MeasuredPlate, places: Places) -> list[pa.Table]:
    if rule.judged == "separation":
        return [_judge_separation(rule, plate, places)]
    blocks = []
    for channel in plate.channels_for(rule):
        values = plate.well_means(rule, channel, places)
        known = np.isfinite(values)
        value = math.nan
        if rule.judged == "edge_shift":
            edge, inner = (known & places.is_edge).sum(), (known & ~places.is_edge).sum()
            if min(edge, inner) >= rule.min_wells:
                value = qc_levels.edge_shift(values, places.is_edge)
        elif known.sum() >= rule.min_wells:
            value = qc_levels.position_share(values, places.row, places.column)
        limit = rule.absolute if rule.absolute is not None and math.isfinite(value) else math.nan
        blocks.append(_verdicts(rule, np.array([value]), limit, channel=channel, channel_index=plate.index_of(channel)))
    return blocks


def _judge_separation(rule: QcRule, plate: _MeasuredPlate, places: Places) -> pa.Table:
    """One verdict: the metric and channel that tell the controls apart best stand for the plate."""
    names = [(metric, channel) for metric in rule.metrics for channel in plate.channels_for(rule)]
    values_KN = np.stack([plate.well_means(rule, channel, places, metric) for metric, channel in names])
    is_measured: Flags = np.asarray(np.isfinite(values_KN).any(axis=1))  # else the catalog is older than the metric
    values_KN, names = values_KN[is_measured], [name for name, kept in zip(names, is_measured, strict=True) if kept]
    known = np.isfinite(values_KN).all(axis=0)
    positive, negative = known & places.is_control("positive"), known & places.is_control("negative")
    if not len(values_KN) or min(positive.sum(), negative.sum()) < rule.min_wells:
        return _verdicts(rule, np.array([math.nan]), math.nan)
    found = np.abs(qc_levels.separation(values_KN, positive, negative))
    if not np.isfinite(found).any():
        return _verdicts(rule, np.array([math.nan]), math.nan)
    best = int(np.nanargmax(found))
    limit = max(rule.absolute or 0.0, qc_levels.separation_by_chance(values_KN, positive, negative))
    return _verdicts(rule, found[[best]], limit, metric=names[best][0])


def _verdicts(
    rule: QcRule,
    values: Floats,
    limit: float,
    *,
    sites: Sequence[str] | None = None,
    wells: Sequence[str] | None = None,
    channel: str = "",
    channel_index: int | NDArray[Any] = -1,
    metric: str = "",
) -> pa.Table:
    n = len(values)
    return pa.table(
        {
            "level": pa.repeat(rule.level, n),
            "site_id": pa.array([""] * n if sites is None else sites, pa.string()),
            "well_id": pa.array([""] * n if wells is None else wells, pa.string()),
            "channel": pa.repeat(channel, n),
            "channel_index": np.broadcast_to(np.asarray(channel_index, np.int32), (n,)).copy(),
            "rule": pa.repeat(rule.name, n),
            "metric": pa.repeat(metric or rule.metrics[0], n),
            "value": values,
            "threshold": np.full(n, limit, np.float64),
            "is_pass": rule.passes(values, limit),
        }
    )


def qc_profile(name: str) -> QcProfile:
    """Load a profile of catalog/qc.yaml.

    Raises:
        CatalogError: No such profile, or a rule in it that is not sound.
    """
    profiles = _declared_profiles()
    if name not in profiles:
        raise CatalogError(f"QC profile {name}: not in catalog/qc.yaml. There are: {', '.join(sorted(profiles))}.")
    return parse_profile(name, profiles[name], profiles)


def profile_of(qc_id: str) -> QcProfile | None:
    """The profile of catalog/qc.yaml that writes these verdicts; None where none does, or does no longer."""
    profiles = _declared_profiles()
    parsed = (parse_profile(name, declared, profiles) for name, declared in profiles.items())
    return next((profile for profile in parsed if profile.qc_id == qc_id), None)


def _declared_profiles() -> dict[str, Any]:
    profiles: dict[str, Any] = yaml.safe_load(declared_path("qc.yaml").read_text(encoding="utf-8"))["profiles"]
    return profiles


def _with_limits(place: str, declared: dict[str, Any], profiles: Mapping[str, Any]) -> dict[str, Any]:
    """The profile that this one is like, with the limits that this one sets anew."""
    base = profiles.get(declared["like"], {})
    limits = declared.get("limits", {})
    unknown = sorted(set(limits) - {rule["name"] for rule in base.get("rules", ())})
    if "rules" not in base or unknown or set(declared) - {"like", "limits"}:
        raise CatalogError(
            f"{place}: found {', '.join(declared)}, like {declared['like']}, limits of {', '.join(limits)}; "
            f"expected `like` a profile with rules, and `limits` of rules of it. Unknown there: {unknown or 'none'}."
        )
    return {**base, "rules": [rule | limits.get(rule["name"], {}) for rule in base["rules"]]}


def parse_profile(name: str, declared: dict[str, Any], profiles: Mapping[str, Any] | None = None) -> QcProfile:
    """Turn the content of one entry of catalog/qc.yaml's `profiles` into a profile.

    Args:
        name: Of the profile.
        declared: Its entry.
        profiles: All entries, one of which it may be like.

    Raises:
        CatalogError: Unknown keys, a rule twice, or a rule that is not sound.
    """
    place = f"catalog/qc.yaml, profile {name}"
    if "like" in declared:
        declared = _with_limits(place, declared, profiles or {})
    rules = []
    for entry in declared.get("rules", ()):
        unknown = sorted(set(entry) - set(QcRule.__dataclass_fields__))
        missing = sorted({"name", "metric", "fails", "says"} - set(entry))
        if unknown or missing:
            raise CatalogError(
                f"{place}, rule {entry.get('name', '?')}: unknown keys {unknown or 'none'}, missing keys "
                f"{missing or 'none'}. A rule may have {', '.join(QcRule.__dataclass_fields__)}."
            )
        metric = entry["metric"]
        lists = {
            "metric": metric if isinstance(metric, str) else tuple(metric),
            "except_channels": tuple(entry.get("except_channels", ())),
        }
        rules.append(QcRule(**entry | lists))
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
    with_images = f"reader is distinct from '{WELLS_ONLY}'"
    plates = catalog.table("plates", columns=["plate_id"], where=with_images)["plate_id"].to_pylist()
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
            places = qc_levels.places(
                catalog.sql(
                    'SELECT s.site_id, s.well_id, w.row, w."column", w.control FROM sites s '
                    f"LEFT JOIN wells w USING (well_id) WHERE s.plate_id = '{plate}'"
                )
            )
            verdicts = profile.judge(metrics, places)
            catalog.append("qc_verdicts", verdicts, transaction=content_id("qc_verdicts", profile.qc_id, plate))
        if progress:
            progress("plates judged", done, len(plates))
    return profile.qc_id
