"""Propose augmentations from an audit, given the labels to ignore and the labels to keep.

Choosing transforms is a form of supervision: training with a knob teaches the encoder to ignore what the knob changes.
A knob is useful where it changes the appearance of a nuisance (a probe of the nuisance loses recall) and not that of a
wanted label (the probe of that label does not). It is proposed at the greatest strength at which no wanted label, nor
any of its classes, loses more than the tolerance, and only if the loss of the nuisance is significant there: with a
dozen knobs one would seem so by chance, so that is tested at a false discovery rate over all of them.

The evidence is about the audited encoder, without retraining; a study of the proposed knob shows whether training with
it helps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.models.augment import AugmentConfig
from cytolake.models.augment.knobs import KNOBS
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.tune.invariance_audit import OFF, Audit, AuditRow

Floats = NDArray[np.float64]
TOLERANCE = 0.05
"""Loss of mean recall of a kept label that is accepted: the interval of its drift must not lie below."""
CLASS_TOLERANCE = 0.3
"""Loss of recall of a single class of a kept label that is accepted; of few crops of a class a fifth is mere noise."""
LEVEL = 0.05
"""False discovery rate of the proposals: their expected share without effect on the labels to ignore."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One knob, and why it is proposed or not."""

    knob: str
    strength: float
    """Greatest strength that loses no label to keep; 0 where there is none."""
    is_proposed: bool
    ignored_drift: float
    """Least drift of recall over the labels to ignore, at this strength: the more negative, the more it covers."""
    reason: str


def propose_augmentations(audit: Audit, encoder: str, keep: Sequence[str], ignore: Sequence[str]) -> list[Proposal]:
    """Judge every audited knob; the proposed ones come first.

    Args:
        audit: With rows of all named labels.
        encoder: Whose rows.
        keep: Labels that must still be predicted.
        ignore: Labels that should no longer be.

    Raises:
        ValueError: A label that was not audited, one that is to be kept and ignored, or none to ignore or to keep.
    """
    audited = sorted({row.label for row in audit.rows})
    unknown = sorted({*keep, *ignore} - set(audited))
    if unknown:
        raise ValueError(f"no audit of {', '.join(unknown)}: it has {', '.join(audited)}. Name them in audit.labels.")
    if both := sorted(set(keep) & set(ignore)):
        raise ValueError(f"{', '.join(both)} is to be kept and to be ignored. Decide on one.")
    if not keep or not ignore:
        raise ValueError("name at least one label to keep and one to ignore, such as keep perturbation, ignore plate.")
    knobs = dict.fromkeys(row.knob for row in audit.rows if row.encoder == encoder and row.knob != OFF)
    if not knobs:
        raise ValueError(
            f"no audit of encoder {encoder!r}: there are {', '.join(sorted({r.encoder for r in audit.rows}))}."
        )
    judged = [_judge(audit, encoder, knob, keep, ignore) for knob in knobs]
    q_values = benjamini_hochberg([row.p_value for each in judged for row in each.ignored])
    found = [
        each.proposal(q_values[first : first + len(ignore)])
        for each, first in zip(judged, range(0, len(q_values), len(ignore)), strict=True)
    ]
    return sorted(found, key=lambda each: (not each.is_proposed, each.ignored_drift))


def proposed_config(proposals: Sequence[Proposal]) -> AugmentConfig:
    """The proposed knobs together, on a base of flips and quarter turns."""
    config = AugmentConfig()
    for each in proposals:
        if each.is_proposed:
            config = KNOBS[each.knob](each.strength, config)
    return config


def proposed_settings(proposals: Sequence[Proposal]) -> list[str]:
    """The same as arguments of `--set`."""
    before, after = AugmentConfig(), proposed_config(proposals)
    names = [f.name for f in dataclasses.fields(after) if getattr(after, f.name) != getattr(before, f.name)]
    return [f"pretrain.augment.{name}={_as_yaml(getattr(after, name))}" for name in names]


@dataclass(frozen=True, slots=True)
class _Judged:
    """One knob at the greatest strength that loses no label to keep, or at its least where there is none."""

    knob: str
    strength: float
    """0 where none does."""
    shown: float
    lost: str
    """Loss at the next strength; "" where there is none."""
    kept: list[AuditRow]
    ignored: list[AuditRow]

    def proposal(self, q_values: Floats) -> Proposal:
        kept = min(self.kept, key=lambda row: row.drift)
        place = min(range(len(self.ignored)), key=lambda i: self.ignored[i].drift)
        ignored, q_value = self.ignored[place], float(q_values[place])
        is_proposed = self.strength > 0 and ignored.drift < 0 and q_value < LEVEL
        if not self.strength:
            reason = f"already at strength {self.shown:g} {self.lost}"
        elif not is_proposed:
            q = "" if np.isnan(q_value) else f" (q {q_value:.2g})"
            reason = f"no evidence that {ignored.label} is predicted less well, up to strength {self.strength:g}{q}"
        else:
            more = f"; stronger, {self.lost}" if self.lost else ""
            reason = (
                f"up to strength {self.strength:g} recall of {ignored.label} falls by {-ignored.drift:.3f} (q "
                f"{q_value:.2g}) and that of {kept.label} by {max(-kept.drift, 0):.3f}{more}"
            )
        return Proposal(self.knob, self.strength, is_proposed, ignored.drift, reason)


def _judge(
    audit: Audit,
    encoder: str,
    knob: str,
    keep: Sequence[str],
    ignore: Sequence[str],
) -> _Judged:
    strengths = sorted({row.strength for row in audit.rows if row.encoder == encoder and row.knob == knob})
    at = {(row.strength, row.label): row for row in audit.rows if row.encoder == encoder and row.knob == knob}
    chosen, lost = 0.0, ""
    for strength in strengths:
        lost = _lost([at[strength, label] for label in keep])
        if lost:
            break
        chosen = strength
    shown = chosen or strengths[0]
    kept, ignored = ([at[shown, label] for label in labels] for labels in (keep, ignore))
    return _Judged(knob, chosen, shown, lost, kept, ignored)


def _lost(rows: Sequence[AuditRow]) -> str:
    """The label or class that loses too much at a strength, in words; "" where none does."""
    for row in rows:
        if np.isnan(row.drift_low):
            return f"{row.label} has no interval of its change: too few wells or plates ({row.interval_over})"
        if row.drift_low < -TOLERANCE:
            return f"{row.label} may lose {-row.drift_low:.3f} of recall"
        for name, drift in row.class_drift.items():
            if drift < -CLASS_TOLERANCE:
                return f"{name} loses {-drift:.3f} of recall"
    return ""


def _as_yaml(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
