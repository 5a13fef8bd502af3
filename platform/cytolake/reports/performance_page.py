"""The page of performance predictors, and their scores for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from cytolake.performance_prediction.baselines import Verdict
from cytolake.performance_prediction.correlations import PREDICTION_METRICS, Estimate
from cytolake.performance_prediction.regressors import Candidate
from cytolake.performance_prediction.stack import Predicted
from cytolake.reports.figures import INK, PALETTE, as_svg, new_figure
from cytolake.reports.page import write_page

PAGE_FILE = "performance.html"
NO_FIGURE = "none: all equal"


@dataclass(frozen=True, slots=True)
class PerformanceSection:
    """One predictor and how it did."""

    name: str
    about: str
    scores: Mapping[str, Mapping[str, Estimate]]
    truth: NDArray[np.float64]
    predicted: Predicted
    coverage: float
    wanted_coverage: float
    width: float
    members: Sequence[Candidate]
    notes: Sequence[str]
    model: str
    """Registered model and version."""
    axis: str
    """What was predicted."""
    verdict: Verdict
    """What is registered, and why."""
    of_perturbations: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)


def performance_text(section: PerformanceSection) -> Table:
    """The figures of a predictor and its baselines, for a terminal of 80 columns: an interval under each value, what is
    registered in bold."""
    shown = Table("", *PREDICTION_METRICS, box=None, header_style="dim", pad_edge=False)
    for name, scores in _named(section):
        shown_name = escape(name)
        cells = []
        for metric in PREDICTION_METRICS:
            each = scores[metric]
            is_known = np.isfinite(each.value)
            cells.append(f"{each.value:.3f}\n[dim]{each.low:.3f} to {each.high:.3f}[/]" if is_known else NO_FIGURE)
        shown.add_row(f"[bold]{shown_name}[/]" if name == section.verdict.registered else shown_name, *cells)
    return shown


def write_performance(path: Path, title: str, sections: Sequence[PerformanceSection]) -> Path:
    """Write one self-contained HTML page and return its path."""
    return write_page(
        path,
        "performance.html.j2",
        title=title,
        metrics=PREDICTION_METRICS,
        sections=[
            {
                "name": section.name,
                "about": section.about,
                "lines": _lines(section),
                "registered": section.verdict.registered,
                "reason": section.verdict.reason,
                "coverage": f"{section.coverage:.1%} of scores lie in their interval, which promises "
                f"{section.wanted_coverage:.0%}; mean width {section.width:.2f}.",
                "members": [str(member) for member in section.members],
                "notes": section.notes,
                "model": section.model,
                "figure": _scatter(section),
            }
            for section in sections
        ],
    )


def _named(section: PerformanceSection) -> list[tuple[str, Mapping[str, Estimate]]]:
    of_perturbations = [(f"{name}, of each perturbation", scores) for name, scores in section.of_perturbations.items()]
    return [*section.scores.items(), *of_perturbations]


def _lines(section: PerformanceSection) -> list[tuple[str, list[str]]]:
    def shown(estimate: Estimate) -> str:
        return str(estimate) if np.isfinite(estimate.value) else NO_FIGURE

    return [(name, [shown(scores[metric]) for metric in PREDICTION_METRICS]) for name, scores in _named(section)]


def _scatter(section: PerformanceSection) -> str:
    """Predicted against true scores, and how wide intervals are."""
    figure, axes = new_figure(8.6, 3.4, n_columns=2, gap=0.3)
    order = np.argsort(section.predicted.score, kind="stable")
    truth, predicted = section.truth[order], section.predicted.score[order]
    axes[0].scatter(predicted, truth, s=7, alpha=0.35, color=PALETTE[0], linewidth=0, rasterized=len(predicted) > 3000)
    ends = [float(min(predicted.min(), truth.min())), float(max(predicted.max(), truth.max()))]
    axes[0].plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
    axes[0].set_xlabel(f"predicted {section.axis.replace('_', ' ')}")
    axes[0].set_ylabel(section.axis.replace("_", " "))
    n_bins = min(10, max(2, len(predicted) // 20))
    bins = np.array_split(np.arange(len(predicted)), n_bins)
    middle = [predicted[rows].mean() for rows in bins]
    low, high = section.predicted.low[order], section.predicted.high[order]
    axes[1].fill_between(
        middle,
        [low[rows].mean() for rows in bins],
        [high[rows].mean() for rows in bins],
        color=PALETTE[4],
        alpha=0.35,
        linewidth=0,
        label=f"{section.wanted_coverage:.0%} interval",
    )
    axes[1].errorbar(
        middle,
        [truth[rows].mean() for rows in bins],
        yerr=[1.96 * truth[rows].std() / np.sqrt(len(rows)) for rows in bins],
        color=PALETTE[5],
        marker="o",
        markersize=4,
        capsize=2,
        linewidth=1.2,
        label="mean true score",
    )
    axes[1].plot(middle, middle, color=INK, linewidth=0.8, linestyle=":", label="predicted")
    axes[1].set_xlabel(f"predicted, {n_bins} equal groups")
    axes[1].legend(frameon=False, fontsize=8)
    return as_svg(figure)
