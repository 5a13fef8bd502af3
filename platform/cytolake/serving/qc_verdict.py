"""Quality control of an image that is sent, and of sites that are stored.

A sent image is measured and judged by the code that ingest and `jobs/curate.py` use, under the same rules. What a rule
says of a site's place among its plate cannot be said of one image; those rules are named, not passed.

Shapes: C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog import Catalog, channel_vocabulary, table_contract
from cytolake.qc.metrics import METRICS, measure_site
from cytolake.qc.newest import newest_of
from cytolake.qc.rules import QcRule
from cytolake.qc.verdicts import QcProfile, profile_of
from cytolake.serving.problems import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleVerdict:
    """What one rule says of a channel of a site, of a site, a well or a plate."""

    rule: str
    """Name in catalog/qc.yaml."""
    level: str
    """`site`, `well` or `plate`."""
    channel: str
    """Stain; empty where the channels are judged together."""
    channel_index: int
    """Place of the channel in the image; -1 where they are judged together."""
    metric: str
    """One of `METRICS`."""
    value: float | None
    """Measured; None where there was too little to measure."""
    threshold: float | None
    """Limit that applied; None where the rule had none, so that it passed without being judged."""
    is_pass: bool
    says: str
    """What a failure means, for people; empty for rules that catalog/qc.yaml does not have."""

    @property
    def reason(self) -> str:
        """A sentence for people, for a failure."""
        of_channel = f"{self.channel}: " if self.channel else ""
        numbers = f"{self.metric} {_short(self.value)}, limit {_short(self.threshold)}"
        return f"{of_channel}{self.says or self.rule} ({numbers})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelQuality:
    """One channel of a sent image."""

    channel: str
    """Stain, as catalog/channels.yaml spells it."""
    metrics: Mapping[str, float]
    """Every one of `METRICS`, in the units of catalog/tables/qc_metrics.yaml."""
    is_pass: bool
    """It failed no rule that could be judged."""
    reasons: tuple[str, ...]
    """A sentence for each rule it failed."""
    verdicts: tuple[RuleVerdict, ...]
    """Of each rule that could be judged and applies to the stain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotJudged:
    """A rule that one image does not have enough for."""

    rule: str
    level: str
    is_partly: bool
    """Its absolute limit was applied, and the one relative to the plate was not; or it judged some channels only."""
    reason: str
    """Such as `not judged: needs the plate`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageVerdict:
    """A sent image, judged."""

    profile: str
    """Name in catalog/qc.yaml."""
    qc_id: str
    """Hash of the rules, as in the table qc_verdicts."""
    is_pass: bool
    """No channel failed a rule that could be judged."""
    channels: tuple[ChannelQuality, ...]
    not_judged: tuple[NotJudged, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVerdict:
    """What the table qc_verdicts has on a site."""

    asked: str
    """The crop id or site id that was asked for."""
    site_id: str
    well_id: str
    plate_id: str
    qc_id: str | None
    """Hash of the rules that judged the plate last; None where nobody did."""
    profile: str | None
    """Their name in catalog/qc.yaml; None where it has them no longer, or never had."""
    judged_at: datetime | None
    is_pass: bool | None
    """The site failed no rule of level site; None where it was not judged. Its well and plate do not count."""
    reasons: tuple[str, ...]
    """A sentence for each rule that the site failed."""
    verdicts: tuple[RuleVerdict, ...]
    """Of the site, then of its well and its plate."""


def judge_pixels(pixels_CHW: NDArray[Any], channels: Sequence[str], profile: QcProfile) -> ImageVerdict:
    """Measure an image as ingest does and judge it by the rules that need no plate.

    The limits are made for whole sites: a small crop of a sound site may read as blurred or empty, because there is
    little in it.

    Args:
        pixels_CHW: Raw counts of any real type, as the camera gave them, without illumination correction.
        channels: C stains, any spelling that catalog/channels.yaml knows.
        profile: From `qc_profile`.

    Raises:
        ServingError: 422, not (C, H, W), as many names as channels are missing, a stain twice, or pixels that are
            not finite.
    """
    if pixels_CHW.ndim != 3 or 0 in pixels_CHW.shape or pixels_CHW.dtype.kind not in "uif":
        raise ServingError(
            status=422,
            detail=f"the image is {pixels_CHW.dtype} of shape {pixels_CHW.shape}, expected numbers of shape "
            "(channels, height, width).",
        )
    if len(channels) != len(pixels_CHW):
        raise ServingError(
            status=422,
            detail=f"{len(channels)} channel names for {len(pixels_CHW)} channels. Name each channel of the image in "
            "its order, such as ?channels=DNA,ER,RNA: some rules leave out some stains.",
        )
    if pixels_CHW.dtype.kind == "f" and not np.isfinite(pixels_CHW).all():
        raise ServingError(status=422, detail="the image holds NaN or infinite pixels. Send finite intensities.")
    names = [channel_vocabulary().canonical(name) for name in channels]
    if len(set(names)) < len(names):
        raise ServingError(
            status=422,
            detail=f"channels {', '.join(channels)}: two are of one stain. Name each stain once.",
        )
    measured = measure_site(pixels_CHW, names)
    metrics = table_contract("qc_metrics").rows(
        {"site_id": "sent", "plate_id": "sent", "channel": name, "channel_index": index, **values}
        for index, (name, values) in enumerate(zip(names, measured, strict=True))
    )
    # A reference of two sites is never reached by one, so no limit relative to it is made up.
    alone = replace(profile, min_sites=max(2, profile.min_sites))
    # judge() looks for the wells' places: without any, rules of wells and plates are left out.
    says = {rule.name: rule.says for rule in profile.rules}
    rows = alone.judge(metrics).to_pylist()
    found = [_verdict(row, says) for row in rows if row["threshold"] is not None]
    qualities = []
    for name, values in zip(names, measured, strict=True):
        verdicts = tuple(verdict for verdict in found if verdict.channel == name)
        failed = [verdict for verdict in verdicts if not verdict.is_pass]
        qualities.append(
            ChannelQuality(
                channel=name,
                metrics={metric: values[metric] for metric in METRICS},
                is_pass=not failed,
                reasons=tuple(verdict.reason for verdict in failed),
                verdicts=verdicts,
            )
        )
    return ImageVerdict(
        profile=profile.name,
        qc_id=profile.qc_id,
        is_pass=all(quality.is_pass for quality in qualities),
        channels=tuple(qualities),
        not_judged=tuple(left for rule in profile.rules if (left := _not_judged(rule, rows)) is not None),
    )


def stored_verdicts(
    catalog: Catalog, ids: Sequence[str], *, of: Literal["crops", "sites"] = "crops"
) -> list[StoredVerdict]:
    """The newest verdicts on the sites of some crops, or on some sites, in the order asked for.

    Newest are those of the rules that judged the plate last.

    Args:
        catalog: Where the tables are.
        ids: crops.crop_id or sites.site_id.
        of: What the ids are.

    Raises:
        ServingError: 404, naming ids that the catalog does not hold.
    """
    key = "crop_id" if of == "crops" else "site_id"
    wanted = pa.table({"asked": pa.array(list(ids), pa.string()), "position": pa.array(range(len(ids)), pa.int64())})
    places = catalog.sql(
        f"SELECT asked, site_id, well_id, plate_id FROM wanted JOIN {of} ON {key} = asked ORDER BY position",
        wanted=wanted,
    )
    known = set(places["asked"].to_pylist())
    missing = [each for each in ids if each not in known]
    if missing:
        raise ServingError(
            status=404,
            detail=f"{len(missing)} of {len(ids)} {key}s are not in the catalog, first {missing[0]!r}. Take ids from "
            f"the table {of}.",
        )
    rows = catalog.sql(
        f"""
        WITH {newest_of("plate_id IN (SELECT plate_id FROM places)")}
        SELECT coalesce(v.level, 'site') AS level, v.site_id, v.well_id, v.plate_id, qc_id, v.channel, v.channel_index,
            v.rule, v.metric, v.value, v.threshold, v.is_pass, v.judged_at
        FROM qc_verdicts v JOIN newest USING (plate_id, qc_id)
        WHERE coalesce(v.level, 'site') = 'plate'
            OR (coalesce(v.level, 'site') = 'site' AND v.site_id IN (SELECT site_id FROM places))
            OR (v.level = 'well' AND v.well_id IN (SELECT well_id FROM places))
        ORDER BY v.channel_index, v.rule
        """,
        places=places,
    ).to_pylist()
    of_place: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        of_place.setdefault((row["level"], row[f"{row['level']}_id"]), []).append(row)
    profiles = {qc_id: profile_of(qc_id) for qc_id in {row["qc_id"] for row in rows}}
    return [_stored(place, of_place, profiles) for place in places.to_pylist()]


def _stored(
    place: Mapping[str, str],
    of_place: Mapping[tuple[str, str], list[dict[str, Any]]],
    profiles: Mapping[str, QcProfile | None],
) -> StoredVerdict:
    rows = [row for level in ("site", "well", "plate") for row in of_place.get((level, place[f"{level}_id"]), ())]
    qc_id = rows[0]["qc_id"] if rows else None
    profile = profiles[qc_id] if qc_id is not None else None
    says = {rule.name: rule.says for rule in profile.rules} if profile is not None else {}
    verdicts = tuple(_verdict(row, says) for row in rows)
    of_site = [verdict for verdict in verdicts if verdict.level == "site"]
    failed = [verdict for verdict in of_site if not verdict.is_pass]
    return StoredVerdict(
        asked=place["asked"],
        site_id=place["site_id"],
        well_id=place["well_id"],
        plate_id=place["plate_id"],
        qc_id=qc_id,
        profile=None if profile is None else profile.name,
        judged_at=max((row["judged_at"].astimezone(UTC) for row in rows), default=None),
        is_pass=not failed if of_site else None,
        reasons=tuple(verdict.reason for verdict in failed),
        verdicts=verdicts,
    )


def _verdict(row: Mapping[str, Any], says: Mapping[str, str]) -> RuleVerdict:
    columns = ("rule", "level", "channel", "channel_index", "metric", "value", "threshold", "is_pass")
    return RuleVerdict(**{name: row[name] for name in columns}, says=says.get(row["rule"], ""))


def _not_judged(rule: QcRule, rows: Sequence[Mapping[str, Any]]) -> NotJudged | None:
    """Why one image is not enough for the rule, or the rule not made for it; None where all channels were judged."""
    is_alone = rule.level == "site" and not rule.joint and rule.absolute is not None
    of_rule = [row for row in rows if row["rule"] == rule.name]
    unsuited = [row for row in of_rule if row["threshold"] is None] if is_alone else []
    if unsuited:
        is_partly = len(unsuited) < len(of_rule)
        names = f" in {', '.join(row['channel'] for row in unsuited)}" if is_partly else ""
        reason = f"not judged{names}: {unsuited[0]['reason']}"
        return NotJudged(rule=rule.name, level=rule.level, is_partly=is_partly, reason=reason)
    if is_alone and rule.mads is None:
        return None
    if is_alone:
        reason = "judged by its absolute limit alone: the one relative to the plate needs the plate's other sites"
    elif rule.level == "site":
        reason = "not judged: needs the plate's other sites"
    else:
        reason = "not judged: needs the plate" if rule.level == "plate" else "not judged: needs the plate's other wells"
    return NotJudged(rule=rule.name, level=rule.level, is_partly=is_alone, reason=reason)


def _short(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.3g}"
