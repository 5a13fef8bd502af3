"""A study of augmentations as a page and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from cytolake.reports.figures import INK, PALETTE, as_svg, new_figure, new_panels
from cytolake.reports.page import write_page
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.tune.study import StudyCurve, StudyResult
from cytolake.tune.study_config import StudyConfig

PAGE_FILE = "study.html"
_COLUMNS = 6
IMPROVED, WORSENED, NEITHER = PALETTE[0], PALETTE[5], "#7a8692"


def study_text(study: StudyResult) -> Group:
    """The result in sentences, and what each augmentation does, one line for each objective and augmentation."""
    rows = _rows(study)
    shown = Table(*map(escape, rows[0] if rows else ()), box=None, header_style="dim", pad_edge=False)
    for row in rows:
        shown.add_row(*map(escape, row.values()))
    summary = escape(study_summary(study))
    return Group(summary, "", shown) if rows else Group(summary)


def study_summary(study: StudyResult) -> str:
    """What the whole study shows: opposite effects on classes, the need of different strengths, and the mean recall."""
    if not study.curves:
        return "Nothing was compared: no augmentation could be varied."
    level = study.curves[0].effects.level
    gap_q, best_q = _q_values(study)
    opposite = [_name(curve) for curve in study.curves if curve.effects.pairs]
    different = [_name(c) for c, q in zip(study.curves, gap_q, strict=True) if q < level and c.effects.gap.is_evident]
    better = [_name(curve) for curve, q in zip(study.curves, best_q, strict=True) if q < level]
    lowest = f"{min(curve.strengths[0] for curve in study.curves):g}"
    sentences = [
        _found("Classes respond in opposite directions to", opposite, study)
        or "No evidence that classes respond in opposite directions to any augmentation.",
        _found("Classes need different strengths of", different, study)
        or "No evidence that classes need different strengths of any augmentation.",
        _found(f"Mean recall is higher at the best strength than at {lowest} with", better, study)
        or f"No evidence that any strength raises the mean recall over that at strength {lowest}.",
    ]
    if np.isnan(gap_q).all():
        sentences[1:] = ["With one training seed, neither different strengths nor a better strength can be shown."]
    return " ".join(sentences)


def write_study(path: Path, title: str, study: StudyResult, config: StudyConfig) -> Path:
    """Write one self-contained HTML page and return its path."""
    rows = _rows(study)
    return write_page(
        path,
        "study.html.j2",
        title=title,
        summary=study_summary(study),
        label=config.label,
        split=config.split,
        n_trials=study.n_trials,
        n_seeds=len(config.seeds),
        level=f"{config.level:g}",
        columns=list(rows[0]) if rows else [],
        rows=[list(row.values()) for row in rows],
        curves=[
            {
                "name": _name(curve),
                "verdict": curve.effects.verdict,
                "figure": _figure(curve),
                "lowest": f"{curve.strengths[0]:g}",
                "highest": f"{curve.strengths[-1]:g}",
                "classes": [
                    {
                        "name": each.name,
                        "at_lowest": f"{each.mean[0]:.3f}",
                        "at_highest": f"{each.mean[-1]:.3f}",
                        "spread": f"{each.spread:.3f}",
                        "by_chance": f"{each.spread_by_chance:.3f}",
                        "trend": _signed(each.trend),
                        "spearman": _signed(each.spearman),
                        "p": _small(each.p_value),
                        "q": _small(each.q_value),
                    }
                    for each in sorted(curve.effects.classes, key=lambda e: np.nan_to_num(-e.trend))
                ],
            }
            for curve in study.curves
        ],
        matrix=_matrix(study.curves),
        skipped=sorted(study.skipped.items()),
    )


def _rows(study: StudyResult) -> list[dict[str, str]]:
    """One row for each curve, by its columns' names."""
    found = []
    for curve, gap_q, best_q in zip(study.curves, *_q_values(study), strict=True):
        effects, gap, mean = curve.effects, curve.effects.gap, curve.accuracy.mean(axis=1)
        excess = "" if np.isnan(gap.p_value) else gap.excess_text
        found.append(
            {
                "objective": curve.objective,
                "augmentation": curve.knob.replace("_", " "),
                "recall at lowest": f"{mean[0]:.3f}",
                "best strength": f"{effects.best:g}",
                "gain there": _signed(effects.best_gain, 3),
                "q of gain": _small(best_q),
                "improved": str(len(effects.improved)),
                "worsened": str(len(effects.worsened)),
                "opposite pairs": str(len(effects.pairs)),
                "gap above chance": excess,
                "q of gap": _small(gap_q),
            }
        )
    return found


def _q_values(study: StudyResult) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of the gap and of the best strength, each over the curves."""
    effects = [curve.effects for curve in study.curves]
    return benjamini_hochberg([e.gap.p_value for e in effects]), benjamini_hochberg([e.best_p_value for e in effects])


def _found(what: str, names: Sequence[str], study: StudyResult) -> str:
    if not names:
        return ""
    shown = "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{what} {len(names)} of {len(study.curves)} augmentations: {shown}."


def _name(curve: StudyCurve) -> str:
    return f"{curve.knob.replace('_', ' ')} ({curve.objective})"


def _signed(value: float, digits: int = 2) -> str:
    return "" if np.isnan(value) else f"{value:+.{digits}f}"


def _small(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2g}"


def _figure(curve: StudyCurve) -> str:
    """A small panel for each class: recall over strength, mean and sd over seeds; the first is the mean of classes."""
    classes = curve.effects.classes
    figure, panels = new_panels(len(classes) + 1, _COLUMNS, 9.8, 1.55)
    mean = curve.accuracy.mean(axis=1)
    lines = [("mean", mean, curve.accuracy.std(axis=1, ddof=1) if curve.accuracy.shape[1] > 1 else 0 * mean, INK)]
    color_of = dict.fromkeys(curve.effects.improved, IMPROVED) | dict.fromkeys(curve.effects.worsened, WORSENED)
    lines += [(e.name, e.mean, np.nan_to_num(e.sd), color_of.get(e.name, NEITHER)) for e in classes]
    ends = [edge for _, value, sd, _ in lines for edge in (value - sd, value + sd)]
    low, high = float(np.min(ends)), float(np.max(ends))
    for panel, (name, value, sd, color) in zip(panels, lines, strict=True):
        panel.plot(curve.strengths, value, color=color, marker="o", markersize=3, linewidth=1.4)
        panel.fill_between(curve.strengths, value - sd, value + sd, color=color, alpha=0.2, linewidth=0)
        panel.set_title(name, fontsize=8, color=color)
        panel.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.05 * (high - low) + 0.01)
        panel.tick_params(labelsize=7)
    figure.supxlabel("strength", fontsize=8, color=INK)
    figure.supylabel("recall", fontsize=8, color=INK)
    figure.tight_layout()
    return as_svg(figure)


def _matrix(curves: Sequence[StudyCurve]) -> str:
    """Adjusted mutual information of clusters with each labelling, for each objective, knob and strength."""
    if not curves:
        return ""
    labels = list(curves[0].agreement)
    rows = [
        (f"{_name(curve)} {strength:g}", [curve.agreement[name][s].mean() for name in labels])
        for curve in curves
        for s, strength in enumerate(curve.strengths)
    ]
    values = np.array([row for _, row in rows])
    figure, axes = new_figure(3.6 + 0.9 * len(labels), 0.8 + 0.21 * len(rows))
    image = axes.imshow(values, cmap="viridis", vmin=0, aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            light = value > 0.6 * values.max()
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=INK if light else "white")
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    axes.xaxis.tick_top()
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02).ax.tick_params(labelsize=7)
    return as_svg(figure)
