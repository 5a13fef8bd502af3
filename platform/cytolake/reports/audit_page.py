"""The audit of invariance as a page and for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.markup import escape
from rich.table import Table

from cytolake.reports.figures import INK, PALETTE, as_svg, new_figure, new_panels
from cytolake.reports.page import write_page
from cytolake.tune.augmentation_design import Proposal, proposed_settings
from cytolake.tune.invariance_audit import OFF, Audit, AuditRow

PAGE_FILE = "audit.html"
SHOWN_STRENGTH = 0.5
"""The strength whose classes are shown: strong, and not absurd."""
_COLUMNS = 5
MAX_CLASSES_SHOWN = 40
_STYLES = ((PALETTE[0], "-"), (PALETTE[6], "--"), (PALETTE[1], "-."), (PALETTE[2], ":"))


def audit_table(audit: Audit) -> pa.Table:
    """One row for each encoder, knob, strength, label and class (`""`: their mean), for Parquet."""
    columns = ("encoder", "knob", "family", "strength", "label", "shift", "relative_shift")
    rows = []
    for row in audit.rows:
        shared = {name: getattr(row, name) for name in columns}
        rows.append(
            shared
            | {
                "class": "",
                "recall": row.recall,
                "drift": row.drift,
                "drift_low": row.drift_low,
                "drift_high": row.drift_high,
            }
        )
        rows += [
            shared
            | {"class": name, "recall": recall, "drift": row.class_drift[name], "drift_low": None, "drift_high": None}
            for name, recall in row.class_recall.items()
        ]
    numbers = [(name, pa.float64()) for name in ("strength", "shift", "relative_shift", "recall", "drift")]
    texts = [(name, pa.string()) for name in ("encoder", "knob", "family", "label", "class")]
    ends = [("drift_low", pa.float64()), ("drift_high", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*texts, *numbers, *ends]))


def audit_text(audit: Audit, encoder: str) -> Table:
    """How far vectors of one encoder move and what is lost, at the shown strength."""
    labels = list(dict.fromkeys(row.label for row in audit.rows))
    shown = Table("knob", "shift", *map(escape, labels), box=None, header_style="dim", pad_edge=False)
    unchanged = [next(r for r in audit.rows if r.encoder == encoder and r.knob == OFF and r.label == n) for n in labels]
    shown.add_row("[dim]none[/]", "", *(f"[dim]{row.recall:.3f}[/]" for row in unchanged))
    for knob in _knobs(audit):
        rows = [_at(audit, encoder, knob, label, SHOWN_STRENGTH) for label in labels]
        if rows[0] is not None:
            drifts = [f"{r.drift:+.3f} [{r.drift_low:+.3f}, {r.drift_high:+.3f}]" for r in rows if r is not None]
            shown.add_row(f"{knob} {rows[0].strength:g}", f"{rows[0].relative_shift:.2f}", *drifts)
    return shown


def proposal_text(proposals: Sequence[Proposal]) -> Table:
    """What to train with, and why not the rest."""
    shown = Table("", "knob", "up to", "why", box=None, header_style="dim", pad_edge=False)
    for each in proposals:
        mark = "[bold]train with[/]" if each.is_proposed else "[dim]leave[/]"
        shown.add_row(mark, each.knob, f"{each.strength:g}" if each.strength else "", escape(each.reason))
    return shown


def write_audit(
    path: Path,
    title: str,
    audit: Audit,
    about: str,
    proposals: Sequence[Proposal] = (),
    kept: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> Path:
    """Write one self-contained HTML page and return its path."""
    encoders = list(dict.fromkeys(row.encoder for row in audit.rows))
    labels = list(dict.fromkeys(row.label for row in audit.rows))
    return write_page(
        path,
        "audit.html.j2",
        title=title,
        about=about,
        shift=_curves(audit, encoders, labels[0], "relative_shift", "distance moved"),
        labels=[
            {
                "name": label,
                "curves": _curves(audit, encoders, label, "drift", "change of recall"),
                "classes": _classes(audit, encoders[0], label),
                "unchanged": ", ".join(
                    f"{e} {next(r for r in audit.rows if (r.encoder, r.knob, r.label) == (e, OFF, label)).recall:.3f}"
                    for e in encoders
                ),
                "chance": f"{1 / len(audit.of(encoders[0], OFF, label)[0].class_recall):.3f}",
                "n_train": f"{audit.n_train[label]:,}",
                "n_test": f"{audit.n_test[label]:,}",
                "interval_over": next(row.interval_over for row in audit.rows if row.label == label) or "wells",
            }
            for label in labels
        ],
        first=encoders[0],
        strength=f"{SHOWN_STRENGTH:g}",
        proposals=proposals,
        settings=proposed_settings(proposals),
        kept=", ".join(kept),
        ignored=", ".join(ignored),
        skipped=sorted(audit.skipped.items()),
    )


def _knobs(audit: Audit) -> list[str]:
    return [name for name in dict.fromkeys(row.knob for row in audit.rows) if name != OFF]


def _at(audit: Audit, encoder: str, knob: str, label: str, strength: float) -> AuditRow | None:
    """The row nearest to a strength, of the knobs that the encoder can take."""
    rows = [r for r in audit.rows if (r.encoder, r.knob, r.label) == (encoder, knob, label)]
    return min(rows, key=lambda row: (abs(row.strength - strength), row.strength)) if rows else None


def _curves(audit: Audit, encoders: Sequence[str], label: str, what: str, quantity: str) -> str:
    """One small panel for each knob: a quantity over strength, a line for each encoder."""
    knobs = _knobs(audit)
    figure, panels = new_panels(len(knobs), _COLUMNS, 9.6, 1.75)
    values = [getattr(row, what) for row in audit.rows if row.label == label]
    low, high = min(0.0, *values), max(0.0, *values)
    for panel, knob in zip(panels, knobs, strict=True):
        for encoder, (color, dash) in zip(encoders, _STYLES, strict=False):
            rows = audit.of(encoder, knob, label)
            x, y = [row.strength for row in rows], [getattr(row, what) for row in rows]
            panel.plot(x, y, color=color, linestyle=dash, marker="o", markersize=3, linewidth=1.3, label=encoder)
            if what == "drift":
                ends = [row.drift_low for row in rows], [row.drift_high for row in rows]
                panel.fill_between(x, *ends, color=color, alpha=0.15, linewidth=0)
        panel.axhline(0, color="#aab4be", linewidth=0.8)
        panel.set_title(knob.replace("_", " "), fontsize=8, color=INK)
        panel.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        panel.tick_params(labelsize=7)
    panels[0].legend(frameon=False, fontsize=7)
    figure.supxlabel("strength of the knob", fontsize=8, color=INK)
    figure.supylabel(quantity, fontsize=8, color=INK)
    figure.tight_layout()
    return as_svg(figure)


def _classes(audit: Audit, encoder: str, label: str) -> str:
    """Which class loses what under which knob, at the shown strength."""
    knobs = [knob for knob in _knobs(audit) if _at(audit, encoder, knob, label, SHOWN_STRENGTH) is not None]
    rows = [_at(audit, encoder, knob, label, SHOWN_STRENGTH) for knob in knobs]
    names = list(rows[0].class_drift)[:MAX_CLASSES_SHOWN] if rows and rows[0] is not None else []
    values = np.array([[row.class_drift[name] for name in names] for row in rows if row is not None])
    figure, axes = new_figure(1.6 + 0.42 * len(names), 1.2 + 0.24 * len(knobs))
    limit = max(float(np.abs(values).max(initial=0.0)), 0.05)
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(knobs)), [knob.replace("_", " ") for knob in knobs], fontsize=7)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("change of recall", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return as_svg(figure)
