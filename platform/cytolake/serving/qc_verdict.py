"""QC verdicts on images of a request, and on stored sites.

The image of a request is measured and judged by the code and the rules of ingest and `jobs/curate.py`. Rules that
compare a site with its plate cannot judge a single image; they are listed as not judged, and do not count as passed.

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
    """Verdict of one rule on a channel of a site, a site, a well or a plate."""

    rule: str
    """Name in catalog/qc.yaml."""
    level: str
    """`site`, `well` or `plate`."""
    channel: str
    """Stain; empty where the channels are judged together."""
    channel_index: int
    """Index of the channel in the image; -1 where the channels are judged together."""
    metric: str
    """One of `METRICS`."""
    value: float | None
    """Measured value; None where there was too little to measure."""
    threshold: float | None
    """Limit that was applied; None where the rule had none, and passed without being judged."""
    is_pass: bool
    says: str
    """Meaning of a failure, for people; empty for rules that are not in catalog/qc.yaml."""

    @property
    def reason(self) -> str:
        """A sentence for people that describes a failure."""
        of_channel = f"{self.channel}: " if self.channel else ""
        numbers = f"{self.metric} {_short(self.value)}, limit {_short(self.threshold)}"
        return f"{of_channel}{self.says or self.rule} ({numbers})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelQuality:
    """Verdicts on one channel of an image."""

    channel: str
    """Stain, by its name in catalog/channels.yaml."""
    metrics: Mapping[str, float]
    """All `METRICS`, in the units of catalog/tables/qc_metrics.yaml."""
    is_pass: bool
    """The channel failed none of the rules that judged it."""
    reasons: tuple[str, ...]
    """A sentence for each failed rule."""
    verdicts: tuple[RuleVerdict, ...]
    """Verdicts of the rules that judged the channel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotJudged:
    """A rule that could not judge a single image."""

    rule: str
    level: str
    is_partly: bool
    """The rule applied its absolute limit, but not the limit relative to the plate; or it judged only some channels."""
    reason: str
    """Such as `not judged: needs the plate`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageVerdict:
    """Verdict on an image of a request."""

    profile: str
    """Name in catalog/qc.yaml."""
    qc_id: str
    """Hash of the rules, as in the table qc_verdicts."""
    is_pass: bool
    """No channel failed a rule."""
    channels: tuple[ChannelQuality, ...]
    not_judged: tuple[NotJudged, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVerdict:
    """Verdicts of the table qc_verdicts on a site."""

    asked: str
    """The crop id or site id of the request."""
    site_id: str
    well_id: str
    plate_id: str
    qc_id: str | None
    """Hash of the rules that judged the plate last; None where it was not judged."""
    profile: str | None
    """Name of these rules in catalog/qc.yaml; None where they are not in the file."""
    judged_at: datetime | None
    is_pass: bool | None
    """The site failed no rule of level site; None where it was not judged. Rules of well and plate do not count."""
    reasons: tuple[str, ...]
    """A sentence for each rule of level site that failed."""
    verdicts: tuple[RuleVerdict, ...]
    """Verdicts on the site, then on its well and its plate."""


def judge_pixels(pixels_CHW: NDArray[Any], channels: Sequence[str], profile: QcProfile) -> ImageVerdict:
    """Measure an image as ingest does and judge it by the rules that need no plate.

    The limits are made for whole sites: a small crop of a sound site may fail as blurred or empty.

    Args:
        pixels_CHW: Raw camera counts of any real type, without illumination correction.
        channels: C stains; any synonym in catalog/channels.yaml.
        profile: Result of `qc_profile`.

    Raises:
        ServingError: 422, another shape than (C, H, W), another number of names than channels, a duplicate stain, or
            pixels that are not finite.
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
            "order, such as ?channels=DNA,ER,RNA: some rules do not apply to some stains.",
        )
    if pixels_CHW.dtype.kind == "f" and not np.isfinite(pixels_CHW).all():
        raise ServingError(status=422, detail="the image holds NaN or infinite pixels. Send finite intensities.")
    names = [channel_vocabulary().canonical(name) for name in channels]
    if len(set(names)) < len(names):
        raise ServingError(
            status=422,
            detail=f"channels {', '.join(channels)}: two names are of one stain. Name each stain once.",
        )
    measured = measure_site(pixels_CHW, names)
    metrics = table_contract("qc_metrics").rows(
        {"site_id": "sent", "plate_id": "sent", "channel": name, "channel_index": index, **values}
        for index, (name, values) in enumerate(zip(names, measured, strict=True))
    )
    # One site is fewer than the 2 or more of a reference, so no relative limit is computed from the image itself.
    alone = replace(profile, min_sites=max(2, profile.min_sites))
    # Without positions of wells, judge() leaves out the rules of wells and plates.
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
    """The newest verdicts on sites, or on the sites of crops, in the order of the ids.

    The newest verdicts are those of the rules that judged the plate last.

    Args:
        catalog: Where the tables are.
        ids: crops.crop_id or sites.site_id.
        of: Kind of the ids.

    Raises:
        ServingError: 404, ids that are not in the catalog; the message names the first.
    """
    key = "crop_id" if of == "crops" else "site_id"
    wanted = pa.table(
        {"requested_id": pa.array(list(ids), pa.string()), "position": pa.array(range(len(ids)), pa.int64())}
    )
    places = catalog.sql(
        f"SELECT requested_id, site_id, well_id, plate_id FROM wanted JOIN {of} ON {key} = requested_id "
        "ORDER BY position",
        wanted=wanted,
    )
    known = set(places["requested_id"].to_pylist())
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
        asked=place["requested_id"],
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
    """Why the rule did not judge a single image, or some of its channels; None where it judged all."""
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
