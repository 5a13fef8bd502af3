"""A study of augmentations as a page and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from cytolake.line.figures import INK, PALETTE, as_svg, new_figure
from cytolake.line.page import write_page
from cytolake.tune.study import StudyConfig, StudyCurve, StudyResult

PAGE_FILE = "study.html"
_COLUMNS = 6
HELPED, HARMED, NEITHER = PALETTE[0], PALETTE[5], "#9aa5b0"


def study_text(study: StudyResult) -> Table:
    """What each knob does, one line for each objective and knob."""
    shown = Table(
        "objective", "knob", "best", "recall there", "at 0", "helped", "harmed", "pairs", "gap", box=None,
        header_style="dim", pad_edge=False,
    )  # fmt: skip
    for curve in study.curves:
        mean = curve.accuracy.mean(axis=1)
        helped, harmed = _split(curve)
        shown.add_row(
            curve.objective,
            curve.knob,
            f"{curve.effects.best:g}",
            f"{mean.max():.3f}",
            f"{mean[0]:.3f}",
            str(len(helped)),
            str(len(harmed)),
            str(len(curve.effects.pairs)),
            f"{curve.effects.gap:.3f}",
        )
    return shown


def write_study(path: Path, title: str, study: StudyResult, config: StudyConfig) -> Path:
    """Write one self-contained HTML page and return its path."""
    return write_page(
        path,
        "study.html.j2",
        title=title,
        label=config.label,
        split=config.split,
        n_trials=study.n_trials,
        n_seeds=len(config.seeds),
        level=f"{config.level:g}",
        curves=[
            {
                "name": f"{curve.objective}, {curve.knob.replace('_', ' ')}",
                "verdict": curve.effects.verdict,
                "figure": _figure(curve),
                "classes": [
                    {
                        "name": each.name,
                        "at_0": f"{each.mean[0]:.3f}",
                        "best": f"{each.mean.max():.3f} at {each.best:g}",
                        "spread": f"{each.spread:.3f}",
                        "spearman": "" if np.isnan(each.spearman) else f"{each.spearman:+.2f}",
                        "q": "" if np.isnan(each.q_value) else f"{each.q_value:.3g}",
                    }
                    for each in sorted(curve.effects.classes, key=lambda e: np.nan_to_num(-e.spearman))
                ],
            }
            for curve in study.curves
        ],
        matrix=_matrix(study.curves),
        skipped=sorted(study.skipped.items()),
    )


def _split(curve: StudyCurve) -> tuple[list[str], list[str]]:
    significant = [each for each in curve.effects.classes if each.q_value < curve.effects.level]
    helped = [each.name for each in significant if each.spearman > 0]
    return helped, [each.name for each in significant if each.spearman < 0]


def _figure(curve: StudyCurve) -> str:
    """A small panel for each class: recall over strength, mean and sd over seeds; the first is the mean of classes."""
    classes = curve.effects.classes
    n_rows = -(-(len(classes) + 1) // _COLUMNS)
    figure, axes = new_figure(9.8, 1.55 * n_rows, n_columns=_COLUMNS, n_rows=n_rows)
    panels: list[Any] = list(np.atleast_1d(axes).ravel())
    helped, harmed = _split(curve)
    mean = curve.accuracy.mean(axis=1)
    lines = [("mean", mean, curve.accuracy.std(axis=1, ddof=1) if curve.accuracy.shape[1] > 1 else 0 * mean, INK)]
    color_of = dict.fromkeys(helped, HELPED) | dict.fromkeys(harmed, HARMED)
    lines += [(e.name, e.mean, np.nan_to_num(e.sd), color_of.get(e.name, NEITHER)) for e in classes]
    for panel, (name, value, sd, color) in zip(panels, lines, strict=False):
        panel.plot(curve.strengths, value, color=color, marker="o", markersize=3, linewidth=1.4)
        panel.fill_between(curve.strengths, value - sd, value + sd, color=color, alpha=0.2, linewidth=0)
        panel.set_title(name, fontsize=8, color=color)
        panel.set_ylim(-0.03, 1.03)
        panel.tick_params(labelsize=7)
    for panel in panels[len(lines) :]:
        panel.set_axis_off()
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
        (f"{curve.objective}, {curve.knob} {strength:g}", [curve.agreement[name][s].mean() for name in labels])
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
