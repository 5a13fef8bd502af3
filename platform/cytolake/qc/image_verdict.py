"""Quality control of a single image, outside a catalog and a plate.

The image is measured and judged by the code that ingest and `cytolake curate` use, under the same rules. Rules that
compare a site with its plate cannot judge a single image; they are listed as not judged.

Shapes: C channels, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.declared import channel_vocabulary, table_contract
from cytolake.qc.metrics import METRICS, measure_site
from cytolake.qc.rules import QcRule
from cytolake.qc.verdicts import QcProfile


class ImageError(ValueError):
    """An array that is no image with named channels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleVerdict:
    """Verdict of one rule on a channel of a site, on a site, a well or a plate."""

    rule: str
    """Name of the rule in catalog/qc.yaml."""
    level: str
    """`site`, `well` or `plate`."""
    channel: str
    """Stain; empty if the channels are judged together."""
    channel_index: int
    """Index of the channel in the image; -1 if the channels are judged together."""
    metric: str
    """One of `METRICS`."""
    value: float | None
    """Measured value; None if nothing could be measured."""
    threshold: float | None
    """Limit that applied; None if the rule could not judge, which counts as a pass."""
    is_pass: bool
    says: str
    """Meaning of a failure; empty for rules that are not in catalog/qc.yaml."""

    @property
    def reason(self) -> str:
        """Text that explains a failure."""
        of_channel = f"{self.channel}: " if self.channel else ""
        numbers = f"{self.metric} {_short(self.value)}, limit {_short(self.threshold)}"
        return f"{of_channel}{self.says or self.rule} ({numbers})"


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelQuality:
    """One channel of an image."""

    channel: str
    """Stain, under its name in catalog/channels.yaml."""
    metrics: Mapping[str, float]
    """All of `METRICS`, in the units of catalog/tables/qc_metrics.yaml."""
    is_pass: bool
    """True if no rule that could judge the channel failed it."""
    reasons: tuple[str, ...]
    """One sentence per failed rule."""
    verdicts: tuple[RuleVerdict, ...]
    """Verdicts of the rules that could judge the stain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NotJudged:
    """A rule that needs more than one image."""

    rule: str
    level: str
    is_partly: bool
    """True if the rule was applied in part: its absolute limit only, or some channels only."""
    reason: str
    """Such as `not judged: needs the plate`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageVerdict:
    """Verdicts on one image."""

    profile: str
    """Name of the profile in catalog/qc.yaml."""
    qc_id: str
    """Hash of the rules, as in the table qc_verdicts."""
    is_pass: bool
    """True if no channel failed a rule that could judge it."""
    channels: tuple[ChannelQuality, ...]
    not_judged: tuple[NotJudged, ...]


def judge_image(pixels_CHW: NDArray[Any], channels: Sequence[str], profile: QcProfile) -> ImageVerdict:
    """Measure an image as ingest does, and judge it by the rules that need no plate.

    The limits are calibrated on whole sites: a small crop of a good site may fail as blurred or empty.

    Args:
        pixels_CHW: Raw camera counts of any real type, without illumination correction.
        channels: C stains, by any name that catalog/channels.yaml lists.
        profile: From `qc_profile`.

    Raises:
        ImageError: The image is not (C, H, W), the number of names differs from C, a stain occurs twice, or a pixel is
            not finite.
    """
    if pixels_CHW.ndim != 3 or 0 in pixels_CHW.shape or pixels_CHW.dtype.kind not in "uif":
        raise ImageError(
            f"the image is {pixels_CHW.dtype} of shape {pixels_CHW.shape}, expected numbers of shape "
            "(channels, height, width).",
        )
    if len(channels) != len(pixels_CHW):
        raise ImageError(
            f"{len(channels)} channel names for {len(pixels_CHW)} channels. Name each channel of the image "
            "in order, such as DNA,ER,RNA: some rules apply to some stains only.",
        )
    if pixels_CHW.dtype.kind == "f" and not np.isfinite(pixels_CHW).all():
        raise ImageError("the image holds NaN or infinite pixels. Send finite intensities.")
    names = [channel_vocabulary().canonical(name) for name in channels]
    if len(set(names)) < len(names):
        raise ImageError(
            f"channels {', '.join(channels)}: two are of one stain. Name each stain once.",
        )
    measured = measure_site(pixels_CHW, names)
    metrics = table_contract("qc_metrics").rows(
        {"site_id": "sent", "plate_id": "sent", "channel": name, "channel_index": index, **values}
        for index, (name, values) in enumerate(zip(names, measured, strict=True))
    )
    # With min_sites of 2 or more, one image never gets a limit relative to a plate.
    alone = replace(profile, min_sites=max(2, profile.min_sites))
    # Without places of wells, judge() skips rules of wells and plates.
    says = {rule.name: rule.says for rule in profile.rules}
    rows = alone.judge(metrics).to_pylist()
    found = [verdict_of_row(row, says) for row in rows if row["threshold"] is not None]
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


def verdict_of_row(row: Mapping[str, Any], says: Mapping[str, str]) -> RuleVerdict:
    """The verdict in a row of qc_verdicts; `says` is rule name to the meaning of a failure."""
    columns = ("rule", "level", "channel", "channel_index", "metric", "value", "threshold", "is_pass")
    return RuleVerdict(**{name: row[name] for name in columns}, says=says.get(row["rule"], ""))


def _not_judged(rule: QcRule, rows: Sequence[Mapping[str, Any]]) -> NotJudged | None:
    """Reason why the rule cannot judge a single image or a channel; None if all channels were judged."""
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
