"""Which augmentations to train with, given what should be ignored and what must be kept: read off an audit.

Choosing transforms is a form of supervision: training with a knob teaches the encoder to ignore what the knob changes.
A knob is worth it where it changes what a nuisance looks like (a probe of the nuisance is led astray by it) and not
what a wanted label looks like (the probe of that label is not). It is proposed at the greatest strength at which no
wanted label, nor any of its classes, loses more than is tolerated, and only if the nuisance is lost beyond chance
there.

The evidence is of the encoder that was audited, without retraining; a study of the proposed knob shows whether training
with it helps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from cytolake.models.augment import AugmentConfig
from cytolake.models.augment.knobs import KNOBS
from cytolake.tune.invariance_audit import OFF, Audit, AuditRow


@dataclass(frozen=True, slots=True)
class Proposal:
    """One knob and why it is proposed, or not."""

    knob: str
    strength: float
    """Greatest strength that keeps what must be kept; 0 where none does."""
    is_proposed: bool
    ignored_drift: float
    """Least drift of recall over the labels to ignore, at this strength: the more negative, the more it covers."""
    ignored_high: float
    """Upper end of its interval."""
    kept_drift: float
    """Least drift over the labels to keep."""
    kept_low: float
    """Lower end of its interval."""
    worst_class: str
    """Class of a label to keep that loses most at this strength."""
    worst_class_drift: float
    reason: str


def propose_augmentations(
    audit: Audit,
    encoder: str,
    keep: Sequence[str],
    ignore: Sequence[str],
    tolerance: float = 0.05,
    class_tolerance: float = 0.3,
) -> list[Proposal]:
    """Judge every audited knob; those to train with first.

    Args:
        audit: With rows of all named labels.
        encoder: Whose rows.
        keep: Labels that must still be told.
        ignore: Labels that should no longer be.
        tolerance: Loss of mean recall of a kept label that is accepted: the interval of its drift must not lie below.
        class_tolerance: Loss of recall of a single class of a kept label that is accepted; of few crops of a class a
            fifth is mere noise.

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
    found = [_judge(audit, encoder, knob, keep, ignore, tolerance, class_tolerance) for knob in knobs]
    return sorted(found, key=lambda each: (not each.is_proposed, each.ignored_drift))


def proposed_config(proposals: Sequence[Proposal], base: AugmentConfig | None = None) -> AugmentConfig:
    """The proposed knobs together, on a base of flips and quarter turns."""
    config = base or AugmentConfig()
    for each in proposals:
        if each.is_proposed:
            config = KNOBS[each.knob](each.strength, config)
    return config


def proposed_settings(proposals: Sequence[Proposal]) -> list[str]:
    """The same as `--set` takes it."""
    before, after = AugmentConfig(), proposed_config(proposals)
    names = [f.name for f in dataclasses.fields(after) if getattr(after, f.name) != getattr(before, f.name)]
    return [f"pretrain.augment.{name}={_spelled(getattr(after, name))}" for name in names]


def _judge(
    audit: Audit,
    encoder: str,
    knob: str,
    keep: Sequence[str],
    ignore: Sequence[str],
    tolerance: float,
    class_tolerance: float,
) -> Proposal:
    strengths = sorted({row.strength for row in audit.rows if row.encoder == encoder and row.knob == knob})
    at = {(row.strength, row.label): row for row in audit.rows if row.encoder == encoder and row.knob == knob}
    chosen, lost = 0.0, ""
    for strength in strengths:
        lost = _lost([at[strength, label] for label in keep], tolerance, class_tolerance)
        if lost:
            break
        chosen = strength
    shown = chosen or strengths[0]
    kept = min((at[shown, label] for label in keep), key=lambda row: row.drift)
    ignored = min((at[shown, label] for label in ignore), key=lambda row: row.drift)
    worst = min(kept.class_drift, key=lambda name: kept.class_drift[name])
    is_proposed = chosen > 0 and ignored.drift_high < 0
    if not chosen:
        reason = f"already at strength {strengths[0]:g} {lost}"
    elif not is_proposed:
        reason = f"{ignored.label} is told as well as before, up to strength {chosen:g}"
    else:
        more = f"; stronger, {lost}" if lost else ""
        reason = (
            f"up to strength {chosen:g} recall of {ignored.label} falls by {-ignored.drift:.3f} and that of "
            f"{kept.label} by {max(-kept.drift, 0):.3f}{more}"
        )
    return Proposal(
        knob=knob,
        strength=chosen,
        is_proposed=is_proposed,
        ignored_drift=ignored.drift,
        ignored_high=ignored.drift_high,
        kept_drift=kept.drift,
        kept_low=kept.drift_low,
        worst_class=worst,
        worst_class_drift=kept.class_drift[worst],
        reason=reason,
    )


def _lost(rows: Sequence[AuditRow], tolerance: float, class_tolerance: float) -> str:
    """What a strength costs too much of, in words; "" where nothing."""
    for row in rows:
        if row.drift_low < -tolerance:
            return f"{row.label} may lose {-row.drift_low:.3f} of recall"
        for name, drift in row.class_drift.items():
            if drift < -class_tolerance:
                return f"{name} loses {-drift:.3f} of recall"
    return ""


def _spelled(value: object) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
