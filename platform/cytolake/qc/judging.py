"""Application of QC rules to the metrics of one plate: rows of qc_verdicts, or the reason why a rule cannot judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.qc import levels as qc_levels
from cytolake.qc.control_failures import failing_controls
from cytolake.qc.levels import Places
from cytolake.qc.modality import modality_of
from cytolake.qc.rules import QcRule

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

TOO_FEW = "the plate has too few sites or wells for the limit"
NO_VALUE = "nothing was measured"


class MeasuredPlate:
    """The metrics of one plate as arrays, one value for each site and channel."""

    def __init__(self, metrics: pa.Table, places: Places | None, modalities: Mapping[str, str]) -> None:
        self.metrics = metrics
        self.places = places
        self.plate_id: str = metrics.column("plate_id")[0].as_py()
        self.site_id = np.array(metrics.column("site_id").to_pylist(), object)
        self.channel = np.array(metrics.column("channel").to_pylist(), object)
        self.channel_index = metrics.column("channel_index").to_numpy()
        self.has_passed = np.ones(len(self.site_id), bool)
        percentiles = np.stack([self.values(name) for name in ("p01", "p50", "p99")], axis=1)
        self.modality = {
            name: modality_of(name, percentiles[self.channel == name], modalities)
            for name in sorted(set(self.channel.tolist()))
        }

    def leave_out_failed(self, verdicts: Sequence[pa.Table]) -> None:
        """Leave failed sites out of the means of wells; rules that fail most negative controls do not count."""
        failed = [rows.filter(pc.invert(rows["is_pass"])) for rows in verdicts]
        if not sum(rows.num_rows for rows in failed):
            return
        suspended = self._fail_controls(pa.concat_tables(verdicts))
        gone = {
            row["site_id"]
            for rows in failed
            for row in rows.select(["site_id", "rule", "channel"]).to_pylist()
            if (row["rule"], row["channel"]) not in suspended
        }
        self.has_passed = np.array([site not in gone for site in self.site_id.tolist()], bool)

    def _fail_controls(self, verdicts: pa.Table) -> set[tuple[str, str]]:
        """Rule and channel of the rules that fail most controls."""
        if self.places is None:
            return set()
        with duckdb.connect() as connection:
            connection.register("judged", verdicts.append_column("plate_id", pa.repeat("", verdicts.num_rows)))
            connection.register("wells", pa.table({"well_id": self.places.wells, "control": self.places.control}))
            connection.register(
                "sites", pa.table({"site_id": pa.array([], pa.string()), "well_id": pa.array([], pa.string())})
            )
            rows = connection.sql(failing_controls("judged")).to_arrow_table().to_pylist()
        return {(row["rule"], row["channel"]) for row in rows}

    def values(self, metric: str) -> Floats:
        return np.asarray(self.metrics.column(metric).to_numpy(), np.float64)

    def channels_for(self, rule: QcRule) -> list[str]:
        """Stains that the rule judges, in order."""
        names = [
            name for name in sorted(set(self.channel.tolist()) - set(rule.except_channels)) if self.suits(rule, name)
        ]
        if not rule.channel or not names:
            return names
        if rule.channel in names:
            return [rule.channel]
        return [max(names, key=self.contrast)]

    def channels_unsuited(self, rule: QcRule) -> list[str]:
        """Stains that the rule is not made for; none if the rule needs one stain and has one that it can judge."""
        names = sorted(set(self.channel.tolist()) - set(rule.except_channels))
        if rule.channel and self.channels_for(rule):
            return []
        unsuited = [name for name in names if not self.suits(rule, name)]
        return [rule.channel] if rule.channel in unsuited else unsuited[: 1 if rule.channel else None]

    def suits(self, rule: QcRule, channel: str) -> bool:
        """Whether the rule is made for the modality of the channel."""
        return not rule.modalities or self.modality[channel] in rule.modalities

    def why_unsuited(self, rule: QcRule, channel: str) -> str:
        return f"made for {' and '.join(rule.modalities)}; {channel} is {self.modality[channel]}"

    def contrast(self, channel: str) -> float:
        """Median over the sites of p99 less the background's floor, counts."""
        here = self.channel == channel
        contrast, _ = qc_levels.median_and_sd((self.values("p99") - self.values("background_floor"))[here])
        return contrast if math.isfinite(contrast) else 0.0

    def index_of(self, channel: str) -> int:
        """The most frequent index of the channel over sites."""
        return int(np.bincount(self.channel_index[self.channel == channel]).argmax())

    def wells_of(self, sites: list[str]) -> list[str]:
        return [self.places.well_of_site.get(site, "") if self.places else "" for site in sites]

    def well_means(self, rule: QcRule, channel: str, places: Places, metric: str = "") -> Floats:
        here = self.channel == channel
        if not rule.with_failed_sites:
            here = here & self.has_passed
        wells = self.wells_of(self.site_id[here].tolist())
        return qc_levels.well_means(self.values(metric or rule.metrics[0])[here], wells, places.wells)

    def objects_of_sites(self, channel: str) -> float:
        """Median over the channel's sites; NaN without counts."""
        return qc_levels.median_and_sd(self.values("object_count")[self.channel == channel])[0]

    def objects_of_wells(self, channel: str, places: Places, is_reference: Flags) -> float:
        """Median over the reference wells of the objects in all sites of a well; NaN without counts."""
        here = (self.channel == channel) & np.isfinite(self.values("object_count"))
        place = {well: index for index, well in enumerate(places.wells)}
        totals = np.zeros(len(places.wells))
        is_counted = np.zeros(len(places.wells), bool)
        wells = self.wells_of(self.site_id[here].tolist())
        for well, count in zip(wells, self.values("object_count")[here].tolist(), strict=True):
            if well in place:
                totals[place[well]] += count
                is_counted[place[well]] = True
        return qc_levels.median_and_sd(totals[is_counted & is_reference])[0]


def judge_sites_of(rule: QcRule, plate: MeasuredPlate, min_sites: int) -> list[pa.Table]:
    """Verdicts of a rule of level site."""
    return _judge_joint(rule, plate, min_sites) if rule.joint else _judge_channels(rule, plate, min_sites)


def _judge_channels(rule: QcRule, plate: MeasuredPlate, min_sites: int) -> list[pa.Table]:
    blocks = []
    suited = plate.channels_for(rule)
    for channel in sorted([*suited, *plate.channels_unsuited(rule)]):
        here = plate.channel == channel
        values = plate.values(rule.metrics[0])[here]
        limit, reason = math.nan, ""
        if channel in suited:
            n_objects = plate.objects_of_sites(channel)
            reason = _too_few_objects(rule, n_objects, f"sites have {n_objects:.3g} objects in the median")
            limit = math.nan if reason else rule.limit(values, min_sites, plate.contrast(channel))
        else:
            reason = plate.why_unsuited(rule, channel)
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
                reason=reason,
            )
        )
    return blocks


def _judge_joint(rule: QcRule, plate: MeasuredPlate, min_sites: int) -> list[pa.Table]:
    deviations: dict[str, list[float]] = {}
    for channel in plate.channels_for(rule):
        here = plate.channel == channel
        values = plate.values(rule.metrics[0])[here]
        found = rule.deviations(values, values, min_sites, plate.contrast(channel))
        for site, deviation in zip(plate.site_id[here].tolist(), found.tolist(), strict=True):
            deviations.setdefault(site, []).append(deviation)
    if rule.mads is None:
        return []
    if not deviations:
        sites = sorted(set(plate.site_id.tolist()))
        reason = f"made for {' and '.join(rule.modalities)}; the plate has no such channel"
        nothing = np.full(len(sites), math.nan)
        return [_verdicts(rule, nothing, math.nan, sites=sites, wells=plate.wells_of(sites), reason=reason)]
    sites = sorted(deviations)
    known = [[value for value in deviations[site] if math.isfinite(value)] for site in sites]
    values = np.array([np.median(found) if found else math.nan for found in known])
    limit = -rule.mads if rule.fails == "below" else rule.mads
    limit = limit if np.isfinite(values).any() else math.nan
    return [_verdicts(rule, values, limit, sites=sites, wells=plate.wells_of(sites))]


def judge_wells_of(rule: QcRule, plate: MeasuredPlate, places: Places) -> list[pa.Table]:
    """Verdicts of a rule of level well."""
    blocks = []
    judged: Flags = places.is_edge if rule.wells == "edge" else np.ones(len(places.wells), bool)
    wells = [well for well, is_judged in zip(places.wells, judged.tolist(), strict=True) if is_judged]
    suited = plate.channels_for(rule)
    for channel in sorted([*suited, *plate.channels_unsuited(rule)]):
        values = plate.well_means(rule, channel, places)
        limit, reason = math.nan, ""
        if channel in suited:
            is_reference = _reference(rule, values, places)
            reference = values[is_reference]
            contrast = plate.contrast(channel)
            n_objects = plate.objects_of_wells(channel, places, is_reference)
            named = {"controls": "reference wells (controls)", "inner": "inner wells", "all": "wells"}[rule.against]
            reason = _too_few_objects(rule, n_objects, f"{named} have {n_objects:.3g} objects in the median")
            if rule.judged == "deviation":
                values = rule.deviations(values, reference, rule.min_wells, contrast)
                limit = (rule.mads or 0) if rule.fails != "below" else -(rule.mads or 0)
                limit = limit if np.isfinite(values).any() else math.nan
            else:
                limit = rule.limit(reference, rule.min_wells, contrast)
            limit = math.nan if reason else limit
        else:
            reason = plate.why_unsuited(rule, channel)
        index = plate.index_of(channel)
        blocks.append(
            _verdicts(rule, values[judged], limit, wells=wells, channel=channel, channel_index=index, reason=reason)
        )
    return blocks


def _too_few_objects(rule: QcRule, found: float, says: str) -> str:
    """Reason why counts are too small to judge; empty if they are not, or without counts."""
    return f"{says}, expected {rule.min_count:g} or more" if found < rule.min_count else ""


def _reference(rule: QcRule, values: Floats, places: Places) -> Flags:
    everything = np.ones(len(places.wells), bool)
    if rule.against == "inner":
        return ~places.is_edge
    if rule.against == "controls":
        controls = places.is_control("negative")
        return controls if np.isfinite(values[controls]).sum() >= rule.min_wells else everything
    return everything


def judge_plate_of(rule: QcRule, plate: MeasuredPlate, places: Places) -> list[pa.Table]:
    """Verdicts of a rule of level plate."""
    if rule.judged == "separation":
        return [_judge_separation(rule, plate, places)]
    blocks = []
    suited = plate.channels_for(rule)
    for channel in sorted([*suited, *plate.channels_unsuited(rule)]):
        value, reason = math.nan, ""
        if channel in suited:
            values = plate.well_means(rule, channel, places)
            known = np.isfinite(values)
            if rule.judged == "edge_shift":
                edge, inner = (known & places.is_edge).sum(), (known & ~places.is_edge).sum()
                if min(edge, inner) >= rule.min_wells:
                    value = qc_levels.edge_shift(values, places.is_edge)
            elif known.sum() >= rule.min_wells:
                value = qc_levels.position_share(values, places.row, places.column)
        else:
            reason = plate.why_unsuited(rule, channel)
        limit = rule.absolute if rule.absolute is not None and math.isfinite(value) else math.nan
        index = plate.index_of(channel)
        blocks.append(_verdicts(rule, np.array([value]), limit, channel=channel, channel_index=index, reason=reason))
    return blocks


def _judge_separation(rule: QcRule, plate: MeasuredPlate, places: Places) -> pa.Table:
    """One verdict for the plate, on the metric and channel that separate the controls best."""
    names = [(metric, channel) for metric in rule.metrics for channel in plate.channels_for(rule)]
    nothing = np.array([math.nan])
    if not names:
        return _verdicts(rule, nothing, math.nan, reason="the plate has no channel that the rule is made for")
    values_KN = np.stack([plate.well_means(rule, channel, places, metric) for metric, channel in names])
    is_measured: Flags = np.asarray(np.isfinite(values_KN).any(axis=1))  # else the catalog is older than the metric
    values_KN, names = values_KN[is_measured], [name for name, kept in zip(names, is_measured, strict=True) if kept]
    known = np.isfinite(values_KN).all(axis=0)
    positive, negative = known & places.is_control("positive"), known & places.is_control("negative")
    if not len(values_KN) or min(positive.sum(), negative.sum()) < rule.min_wells:
        return _verdicts(rule, nothing, math.nan, reason="too few positive or negative controls")
    found = np.abs(qc_levels.separation(values_KN, positive, negative))
    if not np.isfinite(found).any():
        return _verdicts(rule, nothing, math.nan, reason="the controls do not vary")
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
    reason: str = "",
) -> pa.Table:
    n = len(values)
    is_measured = np.isfinite(values)
    if math.isnan(limit):
        too_few = rule.level == "plate" or bool(is_measured.any())
        reasons = [reason or (TOO_FEW if too_few else NO_VALUE)] * n
    else:
        reasons = np.where(is_measured, "", NO_VALUE).tolist()
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
            "reason": pa.array(reasons, pa.string()),
        }
    )
