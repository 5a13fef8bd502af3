"""How many labels the artefact detector of a catalog needs: rows of `scores`, and the figure on the report page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

import cytolake
from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id
from cytolake.qc.detector.label_efficiency import LabelEfficiency, LabelEfficiencyConfig, label_efficiency, score_rows
from cytolake.qc.detector.learned import QcTrainConfig, labelled_sites
from cytolake.reports.report import LABEL_EFFICIENCY_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCurveConfig:
    """Which sites the detector learns from, and how the curve is measured."""

    train: QcTrainConfig = field(default_factory=QcTrainConfig)
    curve: LabelEfficiencyConfig = field(default_factory=LabelEfficiencyConfig)


def has_label_curve(catalog: Catalog, config: LabelCurveConfig) -> bool:
    """Whether the figure there is of this config and of these sites and labels."""
    path = catalog.root / LABEL_EFFICIENCY_FILE
    return path.is_file() and path.read_text(encoding="utf-8").startswith(_mark(catalog, config))


def measure_label_curve(
    catalog: Catalog, config: LabelCurveConfig, progress: Callable[[str, int, int], None] | None = None
) -> tuple[LabelEfficiency, Path]:
    """Measure the curve, add it to `scores`, and draw it; returns it and the figure.

    Raises:
        CatalogError, ScreenError, DetectorError, FeatureError, CheckpointError: As `labelled_sites`.
    """
    mark = _mark(catalog, config)
    sites = labelled_sites(catalog, config.train, progress)
    found = label_efficiency(sites.examples, sites.plates, sites.features, config.curve)
    # Of these sites and labels: measured again with others, the scores are other rows.
    examples = [
        f"{each.label} {plate} {each.deviations.tobytes().hex()}"
        for each, plate in zip(sites.examples, sites.plates, strict=True)
    ]
    rows = score_rows(found, "site statistics", content_id(sites.features_key, *examples))
    scores = table_contract("scores").rows(rows)
    catalog.append("scores", scores, transaction=f"label efficiency/{rows[0]['score_id']}")
    path = catalog.root / LABEL_EFFICIENCY_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(mark + label_efficiency_svg({config.curve.detector.head: found}), encoding="utf-8")
    return found, path


def label_efficiency_svg(curves: Mapping[str, LabelEfficiency], metric: str = "auroc") -> str:
    """The curves as one SVG element, to be put into a page; text and axes take the page's own colour.

    Args:
        curves: Name of a detector to its curve, at most six.
        metric: One of `detector_scores.BINARY_METRICS` or `KIND_METRICS`.

    Raises:
        ValueError: A metric that a curve has not, or more curves than there are colours.
    """
    if not curves or len(curves) > len(_COLOURS):
        raise ValueError(f"label efficiency: {len(curves)} curves, expected 1 to {len(_COLOURS)}.")
    for name, curve in curves.items():
        if not curve.curve(metric):
            known = ", ".join(sorted({point.metric for point in curve.points}))
            raise ValueError(f"label efficiency, curve {name}: no metric {metric!r}. There are: {known}.")
    width, height, left, top, right, bottom = 560, 320, 52, 18, 18, 46
    lines = {name: curve.curve(metric) for name, curve in curves.items()}
    sizes = sorted({point.n_labels for points in lines.values() for point in points})
    ends = [end for points in lines.values() for p in points for end in (p.value, p.low, p.high) if math.isfinite(end)]
    lowest = min(0.9, math.floor(10 * min(ends)) / 10) if ends else 0.0
    lowest = max(0.0, lowest)

    def x(n: int) -> float:
        span = math.log(sizes[-1] / sizes[0]) or 1.0
        return left + (width - left - right) * math.log(n / sizes[0]) / span

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - lowest) / (1 - lowest))

    title = metric.upper() if metric in ("auroc", "auprc") else metric.replace("_", " ")
    parts = [
        f'<svg viewBox="0 0 {width} {height + 20 * len(lines)}" role="img" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="currentColor" style="max-width:{width}px;width:100%">',
        f"<title>{escape(title)} by labels of each class</title>",
    ]
    ticks = np.linspace(lowest, 1, 6)
    for tick in ticks:
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="currentColor" '
            f'stroke-opacity="0.15"/><text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>'
        )
    parts += [f'<text x="{x(n):.1f}" y="{height - bottom + 18}" text-anchor="middle">{n}</text>' for n in sizes]
    parts.append(
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 8}" text-anchor="middle">labelled sites of each class'
        f'</text><text x="14" y="{(top + height - bottom) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(top + height - bottom) / 2:.0f})">{escape(title)}</text>'
    )
    for number, (name, points) in enumerate(lines.items()):
        colour, dash = _COLOURS[number], _DASHES[number]
        points = [point for point in points if math.isfinite(point.value)]
        band = [point for point in points if math.isfinite(point.low)]
        if band:
            edge = [(p.n_labels, p.high) for p in band] + [(p.n_labels, p.low) for p in reversed(band)]
            outline = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in edge)
            parts.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity="0.15"/>')
        path = " ".join(f"{x(p.n_labels):.1f},{y(p.value):.1f}" for p in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<circle cx="{x(p.n_labels):.1f}" cy="{y(p.value):.1f}" r="3.5" fill="{colour}"><title>{escape(name)}, '
            f"{p.n_labels} labels: {p.value:.3f}</title></circle>"
            for p in points
        ]
        level = height + 20 * number + 8
        parts.append(
            f'<line x1="{left}" x2="{left + 28}" y1="{level}" y2="{level}" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/><text x="{left + 36}" y="{level + 4}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


# Blue, orange, green, pink, sky, vermilion of Okabe and Ito: distinct with colour blindness, on light and dark.
_COLOURS = ("#2a78d6", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")


def _mark(catalog: Catalog, config: LabelCurveConfig) -> str:
    state = {name: of_table for name, of_table in catalog.state().items() if name in ("plates", "qc_labels")}
    return f"<!-- {content_id(cytolake.__version__, repr(config), json.dumps(state))} -->\n"
