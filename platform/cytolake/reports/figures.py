"""What all figures of pages share: colours, size, and how they get into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito: distinct for readers with any colour vision. Further classes repeat it with other marks.
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#f0e442")
MARKS = ("o", "^", "s", "D", "v", "P")
INK = "#1c2733"
_STYLES = {"trained": (PALETTE[0], "-"), "untrained": (PALETTE[6], "--")}


def new_figure(
    width_in: float, height_in: float, *, n_columns: int = 1, n_rows: int = 1, gap: float | None = None
) -> tuple[Figure, Any]:
    """A figure and its axes, inches, without the frame's upper and right line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in))
    FigureCanvasAgg(figure)
    spacing = None if gap is None else {"wspace": gap, "hspace": gap}
    axes = figure.subplots(n_rows, n_columns, gridspec_kw=spacing)
    for one in np.atleast_1d(axes).ravel():
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8, colors=INK)
    return figure, axes


def new_panels(n: int, n_columns: int, width_in: float, row_height_in: float) -> tuple[Figure, list[Any]]:
    """A figure and n axes, row by row; what is left of the last row stays empty."""
    n_rows = -(-n // n_columns)
    figure, axes = new_figure(width_in, row_height_in * n_rows, n_columns=n_columns, n_rows=n_rows)
    panels = list(np.atleast_1d(axes).ravel())
    for panel in panels[n:]:
        panel.set_axis_off()
    return figure, panels[:n]


def as_svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def as_png(figure: Figure, dpi: int = 140) -> str:
    """The figure as an image element that holds its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", dpi=dpi)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def block_curves(
    rows: Sequence[Mapping[str, Any]], quantity: str, *, chosen_id: str = "", chance: float | None = None
) -> str:
    """A score of every block, one line for each kind of encoder and pooling; kinds without blocks as level lines.

    Args:
        rows: `kind`, `block` (-1 for none), `pooling`, `value`, `ci_low`, `ci_high` and `representation_id` of each.
        chance: What guessing scores, where that is known.
    """
    figure, axes = new_figure(8.6, 3.6)
    for kind, pooling in sorted({(row["kind"], row["pooling"]) for row in rows if row["block"] >= 0}):
        line = sorted(
            (row for row in rows if (row["kind"], row["pooling"]) == (kind, pooling) and row["block"] >= 0),
            key=lambda row: int(row["block"]),
        )
        color, dash = _STYLES.get(kind, (INK, ":"))
        value = np.array([row["value"] for row in line], dtype=float)
        bounds = np.array([[row["ci_low"], row["ci_high"]] for row in line], dtype=float).T
        axes.errorbar(
            [row["block"] for row in line],
            value,
            yerr=None if np.isnan(bounds).any() else np.abs(bounds - value),
            color=color,
            linestyle=dash,
            marker="o" if pooling == "mean" else "^",
            markersize=5,
            capsize=2,
            linewidth=1.4,
            label=f"{kind}, {pooling} pooling",
        )
    for place, row in enumerate(row for row in rows if row["block"] < 0):
        color = PALETTE[(5 + place) % len(PALETTE)]
        name = str(row["kind"] if row["kind"] != "external" else row["architecture"]).replace("_", " ")
        if row["pooling"] not in ("", "all", None):
            name += f" ({row['pooling']})"
        axes.axhline(row["value"], color=color, linewidth=1.4, label=name)
        if row["ci_low"] is not None:
            axes.axhspan(row["ci_low"], row["ci_high"], color=color, alpha=0.12, linewidth=0)
    for row in rows:
        if row["representation_id"] == chosen_id:
            axes.plot(
                row["block"], row["value"], "o", markersize=14, fillstyle="none", color=PALETTE[5], markeredgewidth=2
            )
    if chance is not None:
        axes.axhline(chance, color="#aab4be", linewidth=1, linestyle=":", label="chance")
    axes.set_xlabel("transformer block (0 = first)")
    axes.set_ylabel(quantity)
    if blocks := sorted({row["block"] for row in rows if row["block"] >= 0}):
        axes.set_xticks(blocks[:: max(1, len(blocks) // 16)])
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return as_svg(figure)
