"""The comparison of encoders for artefact detection as a page and for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from cytolake.qc.detector.compared_encoders import STATISTICS, ComparedEncoder
from cytolake.qc.detector.detector import ONE_CLASS
from cytolake.qc.detector.encoder_comparison import METRIC, EncoderComparison
from cytolake.qc.detector.label_efficiency import Point
from cytolake.qc.labels import NORMAL
from cytolake.reports.figures import INK, MARKS, PALETTE, as_svg, new_figure
from cytolake.reports.page import write_page
from cytolake.statistics.intervals import MIN_GROUPS

PAGE_FILE = "qc_encoders.html"
_NAMES = {
    "auroc": "AUROC", "auprc": "AUPRC", "recall_at_1_percent_fpr": "recall at 1 % FPR",
    "balanced_accuracy": "balanced accuracy", "macro_f1": "macro-F1", "calibration_error": "ECE",
    "balanced_accuracy_of_kinds": "balanced accuracy of kinds", "macro_f1_of_kinds": "macro-F1 of kinds",
}  # fmt: skip
_GREY = "#aab4be"


def headline(comparison: EncoderComparison) -> str:
    """The result in one sentence, with its interval: whether any encoder beats pixel statistics.

    The head is the first of the config and the labels are the most there are, so neither is chosen by its score. The
    encoder is: its interval is corrected for the number of encoders (Bonferroni).
    """
    head = comparison.config.heads[0]
    labels = [encoder.label for encoder in comparison.encoders if encoder.label != STATISTICS]
    level = 1 - 0.05 / len(labels)
    found = {label: comparison.difference(label, head, level=level) for label in labels}
    best = max(found, key=lambda label: found[label][0])
    better = [label for label in labels if found[label][1] > 0]
    where = "held-out plates" if comparison.unit == "plate" else "held-out wells of the one plate"
    one_class = head in ONE_CLASS
    n = comparison.point(STATISTICS, head).n_labels
    by = f"{head.replace('_', ' ')} head, {n} labelled {'normal sites' if one_class else 'sites of each class'}"
    if comparison.point(STATISTICS, head).value >= 1:
        return (
            f"On {where} pixel statistics rank every spoilt site above every normal one (AUROC 1), so these labels "
            f"cannot show that an encoder is better ({by})."
        )
    if math.isnan(found[best][1]):
        return (
            f"{comparison.n_groups} {comparison.unit}{'s are' if comparison.n_groups > 1 else ' is'} too few for an "
            f"interval, so no encoder is shown to beat pixel statistics: the best, {best}, differs from them by "
            f"{found[best][0]:+.3f} AUROC ({by})."
        )
    among = f", corrected for {len(labels)} encoders" if len(labels) > 1 else ""
    about = f"({by}; 95 % interval over {comparison.n_groups} {comparison.unit}s{among})"
    if not better:
        return (
            f"On {where} no encoder beats pixel statistics: the best, {best}, differs from them by "
            f"{_signed(found[best])} AUROC {about}."
        )
    gains = [f"{label} beats pixel statistics by {_signed(found[label])} AUROC" for label in better]
    return f"On {where} {'; '.join(gains)} {about}."


def training_effects(comparison: EncoderComparison) -> list[str]:
    """For each trained encoder that has its untrained counterpart here: what training changed, with its interval."""
    head, labels = comparison.config.heads[0], {encoder.label for encoder in comparison.encoders}
    found = []
    for encoder in comparison.encoders:
        counterpart = f"{encoder.name} (untrained)"
        if encoder.training == "untrained" or counterpart not in labels:
            continue
        change = comparison.difference(encoder.label, head, baseline=counterpart)
        is_shown = change[1] > 0 or change[2] < 0  # neither where there is no interval
        found.append(
            f"Training changed the AUROC of {encoder.label} by {_signed(change)} compared with the same encoder "
            f"untrained ({head.replace('_', ' ')} head): {'an' if is_shown else 'no'} effect is shown."
        )
    return found


def labels_text(comparison: EncoderComparison) -> str:
    """Where the labels are from, and what such labels can show."""
    config = comparison.config
    kinds = [name for name in comparison.n_of_label if name != NORMAL]
    if config.labels == "people":
        return "Labels are those that people gave to sites (table qc_labels)."
    if config.labels == "plate_map":
        return f"Labels are those of the plate map, column {config.label_column}: what was declared, not what was seen."
    if config.labels == "focus":
        return (
            f"Sites of the focal planes {', '.join(config.in_focus)} count as normal, those of all other planes as out "
            "of focus; nothing else is labelled."
        )
    low, high = config.simulated_severity
    return (
        f"The artefacts are simulated: {len(kinds)} kinds, put into sites of this screen at a severity of {low:g} to "
        f"{high:g}. Real artefacts may be rarer and harder to find; compare on labels of people (--labels people) "
        "before an encoder is chosen."
    )


def comparison_text(comparison: EncoderComparison) -> Table:
    """AUROC of every encoder with every head, and the difference to pixel statistics with the first."""
    heads = comparison.config.heads
    most = {head: comparison.point(STATISTICS, head).n_labels for head in heads}
    shown = Table(
        "encoder", *(f"{head} ({most[head]})" for head in heads), f"minus statistics, {heads[0]}", box=None,
        header_style="dim", pad_edge=False,
    )  # fmt: skip
    for encoder in comparison.encoders:
        values = [f"{comparison.point(encoder.label, head).value:.3f}" for head in heads]
        difference = "" if encoder.label == STATISTICS else _signed(comparison.difference(encoder.label, heads[0]))
        shown.add_row(escape(encoder.label), *values, difference)
    return shown


def notes(comparison: EncoderComparison) -> list[str]:
    """What to know before the figures are believed."""
    found = []
    untrained = [encoder for encoder in comparison.encoders if encoder.training == "untrained"]
    if untrained:
        found.append(
            f"Untrained: {', '.join(encoder.name for encoder in untrained)}. Their weights are random: they show what "
            "an architecture gives without learning, and say nothing of the same model with published weights. "
            "Pass these as NAME=FILE; a file whose biases and scales all have their initial values is untrained."
        )
    if comparison.unit == "well":
        found.append(
            "There is one plate, so wells were held out instead: staining, exposure and optics of the test sites are "
            "those of the training sites, and scores read higher than on a new plate. What differs between wells, such "
            "as their row, may give the labels away."
        )
    if comparison.n_groups < MIN_GROUPS:
        found.append(
            f"{comparison.n_groups} {comparison.unit}{'s were' if comparison.n_groups > 1 else ' was'} held out: too "
            f"few for an interval (at least {MIN_GROUPS})."
        )
    elif comparison.unit == "plate" and comparison.n_groups < 8:
        found.append(
            f"Intervals are over {comparison.n_groups} plates, by Student's t: wide, because few plates say little of "
            "the next one. Dots are single plates."
        )
    n_spoilt = sum(n for label, n in comparison.n_of_label.items() if label != NORMAL)
    prevalence = comparison.config.curve.prevalence
    point = comparison.point(STATISTICS, comparison.config.heads[0])
    found.append(
        f"{comparison.n_of_label[NORMAL]:,} normal and {n_spoilt:,} spoilt sites of {comparison.n_plates} "
        f"plate{'s' if comparison.n_plates > 1 else ''}; each split is fitted on {point.n_train:,} and scored on "
        f"{point.n_test:,} of them. Held-out sites are weighted so that {100 * prevalence:g} % are spoilt, as on "
        "plates in use."
    )
    points = [
        *(comparison.point(encoder.label, head) for encoder in comparison.encoders for head in comparison.config.heads),
        *(
            point
            for encoder in comparison.encoders
            for point in comparison.curves[encoder.label, comparison.config.heads[0]].of_kind.values()
        ),
    ]
    if any(point.low == point.high for point in points):
        found.append(
            "An interval without width means that every held-out site was ranked right in every resample; how far this "
            "carries is limited by the number of spoilt sites."
        )
    return found


def write_encoder_page(path: Path, title: str, comparison: EncoderComparison) -> Path:
    """Write one self-contained HTML page and return its path."""
    heads, first = comparison.config.heads, comparison.config.heads[0]
    curve = comparison.curves[STATISTICS, first]
    metrics = list(dict.fromkeys(point.metric for point in curve.points))
    n_labels = comparison.point(STATISTICS, first).n_labels
    kinds = sorted(
        {kind for encoder in comparison.encoders for kind in comparison.curves[encoder.label, first].of_kind}
    )
    return write_page(
        path,
        "qc_encoders.html.j2",
        title=title,
        headline=headline(comparison),
        effects=training_effects(comparison),
        source=labels_text(comparison),
        notes=notes(comparison),
        head=first.replace("_", " "),
        labels=f"{n_labels} normal sites" if first in ONE_CLASS else f"{n_labels} labelled sites of each class",
        unit=comparison.unit,
        n_groups=comparison.n_groups,
        n_seeds=len(comparison.config.curve.seeds),
        ranges=_ranges(comparison),
        curves=_curves(comparison),
        metrics=[_NAMES.get(metric, metric) for metric in metrics],
        chance=[_chance(metric, comparison.config.curve.prevalence, len(curve.classes)) for metric in metrics],
        rows=[
            {
                "encoder": encoder.label,
                "training": "baseline" if encoder.label == STATISTICS else encoder.training,
                "difference": _difference(comparison, encoder, first),
                "values": [_with_ends(comparison.point(encoder.label, first, metric)) for metric in metrics],
            }
            for encoder in comparison.encoders
        ],
        heads=[
            {"name": head.replace("_", " "), "n": comparison.point(STATISTICS, head).n_labels,
             "labels": "normal sites" if head in ONE_CLASS else "of each class"} for head in heads
        ],
        by_head=[
            {
                "encoder": encoder.label,
                "values": [
                    (f"{comparison.point(encoder.label, head).value:.3f}", *_difference(comparison, encoder, head))
                    for head in heads
                ],
            }
            for encoder in comparison.encoders
        ],
        encoders=[encoder.label for encoder in comparison.encoders],
        by_kind=[
            {
                "kind": kind.replace("_", " "),
                "n": comparison.n_of_label[kind],
                "values": [
                    _kind_cell(comparison.curves[encoder.label, first].of_kind.get(kind))
                    for encoder in comparison.encoders
                ],
            }
            for kind in kinds
        ],
    )  # fmt: skip


def _difference(comparison: EncoderComparison, encoder: ComparedEncoder, head: str) -> tuple[str, str]:
    """To pixel statistics: value and interval."""
    if encoder.label == STATISTICS:
        return "", ""
    value, low, high = comparison.difference(encoder.label, head)
    return f"{value:+.3f}", "" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}"


def _signed(difference: Sequence[float]) -> str:
    value, low, high = difference
    return f"{value:+.3f}" if math.isnan(low) else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _with_ends(point: Point) -> tuple[str, str]:
    ends = "" if math.isnan(point.low) else f"{point.low:.2f} to {point.high:.2f}"
    return f"{point.value:.3f}", ends


def _kind_cell(point: Point | None) -> tuple[str, str, str]:
    """Value, interval, and the cell's colour: the deeper, the nearer to 1; white at chance."""
    if point is None or not math.isfinite(point.value):
        return "", "", "transparent"
    alpha = max(0.0, min(1.0, 2 * (point.value - 0.5)))
    return *_with_ends(point), f"rgba(0, 114, 178, {0.35 * alpha:.2f})"


def _chance(metric: str, prevalence: float, n_classes: int) -> str:
    """What a detector that knows nothing reaches."""
    never = (1 - prevalence) / (2 - prevalence)  # macro-F1 of calling every site normal
    known = {
        "auroc": 0.5, "auprc": prevalence, "recall_at_1_percent_fpr": 0.01, "balanced_accuracy": 0.5,
        "macro_f1": never, "calibration_error": 0.0, "balanced_accuracy_of_kinds": 1 / n_classes,
    }  # fmt: skip
    return f"{known[metric]:.3f}" if metric in known else ""


def _colours(comparison: EncoderComparison) -> Mapping[str, tuple[str, str]]:
    """Label of an encoder to its colour and mark; pixel statistics in ink."""
    others = [encoder.label for encoder in comparison.encoders if encoder.label != STATISTICS]
    marks = {label: (PALETTE[i % len(PALETTE)], MARKS[1 + i % (len(MARKS) - 1)]) for i, label in enumerate(others)}
    return {STATISTICS: (INK, MARKS[0])} | marks


def _ranges(comparison: EncoderComparison) -> str:
    """AUROC of each encoder with its interval and single plates, and the difference to pixel statistics."""
    head, labels = comparison.config.heads[0], [encoder.label for encoder in comparison.encoders]
    figure, axes = new_figure(9.6, 1.0 + 0.42 * len(labels), n_columns=2)
    left, right = np.atleast_1d(axes).ravel()
    colours = _colours(comparison)
    for y, label in enumerate(labels):
        point, (colour, mark) = comparison.point(label, head), colours[label]
        _bar(left, y, (point.value, point.low, point.high), colour, mark)
        if comparison.unit == "plate":
            of_plates = list(comparison.curves[label, head].of_group.values())
            left.plot(of_plates, [y + 0.22] * len(of_plates), ".", color=colour, alpha=0.6, markersize=5)
        if label != STATISTICS:
            _bar(right, y, comparison.difference(label, head), colour, mark)
    left.axvline(0.5, color=_GREY, linestyle=":", linewidth=1)
    right.axvline(0, color=INK, linewidth=0.8)
    left.set_yticks(range(len(labels)), labels, fontsize=8)
    right.set_yticks([])
    for panel in (left, right):
        panel.set_ylim(len(labels) - 0.5, -0.6)
    left.set_xlim(min(0.45, left.get_xlim()[0]), 1.02)
    left.set_xlabel("AUROC (0.5, dotted: chance; 1: every spoilt site ranked first)", fontsize=8, color=INK)
    right.set_xlabel("AUROC minus that of pixel statistics", fontsize=8, color=INK)
    figure.tight_layout()
    return as_svg(figure)


def _bar(panel: Any, y: float, value: Sequence[float], colour: str, mark: str) -> None:
    middle, low, high = value
    if not math.isnan(low):
        panel.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
    panel.plot([middle], [y], mark, color=colour, markersize=7)


def _curves(comparison: EncoderComparison) -> str:
    """One panel for each head: AUROC by the number of labels, a line for each encoder, with intervals."""
    heads, colours = comparison.config.heads, _colours(comparison)
    n_columns = min(3, len(heads))
    n_rows = -(-len(heads) // n_columns)
    figure, axes = new_figure(9.6, 0.6 + 2.5 * n_rows, n_columns=n_columns, n_rows=n_rows)
    panels: list[Any] = list(np.atleast_1d(axes).ravel())
    lowest = 0.45
    for panel, head in zip(panels, heads, strict=False):
        for i, (label, (colour, mark)) in enumerate(colours.items()):
            points = comparison.curves[label, head].curve(METRIC)
            # Apart on the axis, so that intervals do not cover one another.
            x = np.array([point.n_labels for point in points]) * 1.035 ** (i - (len(colours) - 1) / 2)
            value = np.array([point.value for point in points])
            ends = np.array([[point.low, point.high] for point in points]).T
            lowest = min(lowest, float(np.nanmin([*value, *(value if np.isnan(ends).all() else ends[0])])))
            panel.errorbar(
                x, value, yerr=None if np.isnan(ends).any() else np.abs(ends - value), color=colour, marker=mark,
                markersize=4, linewidth=1.4, elinewidth=0.7, label=label,
            )  # fmt: skip
        sizes = [point.n_labels for point in comparison.curves[STATISTICS, head].curve(METRIC)]
        panel.set_xscale("log")
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.minorticks_off()
        panel.axhline(0.5, color=_GREY, linestyle=":", linewidth=1)
        panel.set_title(head.replace("_", " "), fontsize=9, color=INK)
        panel.set_xlabel("labelled normal sites" if head in ONE_CLASS else "labelled sites of each class", fontsize=8)
        panel.set_ylabel("AUROC", fontsize=8)
    for panel in panels[: len(heads)]:
        panel.set_ylim(max(0.0, lowest - 0.02), 1.02)
    for panel in panels[len(heads) :]:
        panel.set_axis_off()
    handles, names = panels[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles,
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=min(4, len(names)),
        fontsize=8,
        frameon=False,
    )
    return as_svg(figure)
