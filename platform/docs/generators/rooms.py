"""The architecture page: the picture of the rooms, and the table of what each holds, from the code as it is."""

from __future__ import annotations

import ast
import html
from pathlib import Path
from typing import Any

from generators.markdown import cell, table

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "platform" / "cytolake"
LAYOUT = ROOT / "tests" / "test_layout.py"
TEXT = Path(__file__).with_name("architecture.md")

PURPOSE = {
    "cli": "The `cytolake` command.",
    "recipes": "Functions that return one complete, typed config.",
    "pipeline": "The config of a run, and its stages in order.",
    "reports": "Every HTML page: report, leaderboard, QC, studies.",
    "tune": "Block search, promotion, audits, augmentation studies, sweeps.",
    "serving": "The HTTP service: guard, decoding, search, explorer.",
    "benchmark": "Probes, relations, retrieval, profiles, transcriptomics.",
    "performance_prediction": "How well a query or a prompt will do, before it is run.",
    "exchange": "Import and export of other tools' tables.",
    "train": "The training loop on Ray Train, checkpoints, throughput.",
    "embed": "Embeddings of crops, pixel statistics, alignment.",
    "qc": "QC metrics, rules, verdicts, labels, the learned detector.",
    "curation": "Rules that choose crops, and the difference of two choices.",
    "catalog.ingest": "Plates into tables: pixels are read once.",
    "catalog.corrections": "Labels and plates corrected, each in one transaction.",
    "packs": "Pre-shuffled training pixels, and their order.",
    "models": "Encoders, objectives, augmentations. Knows torch alone.",
    "encoders": "What can embed: one contract, one adapter a file.",
    "cropping": "Which windows are cut from a site.",
    "catalog": "Delta tables: contracts, commits, queries.",
    "tracking": "MLflow: runs, registered versions, aliases.",
    "screens": "Readers of plates, plate maps, the simulated screen.",
    "statistics": "Intervals, permutation tests, false discovery rate.",
    "storage": "Files at a path or a URI.",
    "client": "The HTTP client: numpy and httpx alone.",
}
"""What each room is for. A room of the layout test that is missing here stops the build."""

SHORT = {
    "cli": "commands",
    "recipes": "complete configs",
    "pipeline": "config of a run, stages in order",
    "reports": "HTML pages",
    "tune": "block search, studies",
    "serving": "HTTP service",
    "benchmark": "scores with their nulls",
    "performance_prediction": "before a query runs",
    "exchange": "other tools' tables",
    "train": "Ray Train loop",
    "embed": "vectors, alignment",
    "qc": "verdicts",
    "curation": "which crops",
    "catalog.ingest": "plates to tables",
    "catalog.corrections": "labels, plates",
    "packs": "pre-shuffled training pixels",
    "models": "encoders, objectives",
    "encoders": "one contract",
    "cropping": "windows of sites",
    "catalog": "Delta tables",
    "tracking": "MLflow",
    "screens": "readers of plates",
    "statistics": "intervals, tests",
    "storage": "files at a URI",
    "client": "HTTP client",
}
"""The same in at most three words, for the picture."""


def layout() -> tuple[tuple[str, ...], ...]:
    """Rows of rooms from the top down, as the layout test declares them."""
    for statement in ast.parse(LAYOUT.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "ORDER":
            rows: Any = ast.literal_eval(statement.value)
            return tuple(tuple(row) for row in rows)
    raise RuntimeError(f"{LAYOUT}: found no ORDER, which holds the rows of rooms.")


def page() -> str:
    """Markdown of the page."""
    text = TEXT.read_text(encoding="utf-8")
    return text.replace("<!-- picture -->", picture(layout())).replace("<!-- table -->", _table(layout()))


def _files(room: str, rooms: set[str]) -> list[Path]:
    """Python files of a room; those of a room inside it count there."""
    place = PACKAGE.joinpath(*room.split("."))
    if place.with_suffix(".py").is_file():
        return [place.with_suffix(".py")]
    inner = [PACKAGE.joinpath(*each.split(".")) for each in rooms if each.startswith(f"{room}.")]
    return [path for path in sorted(place.rglob("*.py")) if not any(path.is_relative_to(each) for each in inner)]


def _lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def _table(rows: tuple[tuple[str, ...], ...]) -> str:
    rooms = {room for row in rows for room in row}
    shown = []
    n_files = n_lines = 0
    for room in (room for row in rows for room in row):
        paths = _files(room, rooms)
        n_files, n_lines = n_files + len(paths), n_lines + _lines(paths)
        shown.append([f"`{room}`", str(len(paths)), f"{_lines(paths):,}", cell(PURPOSE[room])])
    shown.append(["all", str(n_files), f"{n_lines:,}", ""])
    return table(["room", "files", "lines", "what it is for"], shown)


WIDTH, ROW, GAP, BOX, LEFT = 960, 84, 16, 60, 44


def picture(rows: tuple[tuple[str, ...], ...]) -> str:
    """The rooms as SVG: one row for each row of the layout, whose colours follow the page's."""
    height = len(rows) * ROW + GAP
    parts = [
        f'<svg class="rooms" viewBox="-1 -1 {WIDTH + 2} {height + 2}" role="img" '
        'aria-label="Rooms of the package from the command line at the top to storage at the bottom">',
        f'<line class="down" x1="18" y1="{GAP}" x2="18" y2="{height - GAP - 8}"/>',
        f'<path class="down-head" d="M 10 {height - GAP - 14} h 16 l -8 14 z"/>',
        f'<text class="side" transform="rotate(-90 12 {height / 2})" x="12" y="{height / 2}">imports point down</text>',
    ]
    for i, row in enumerate(rows):
        y = GAP + i * ROW
        each = (WIDTH - LEFT - GAP * (len(row) - 1)) / len(row)
        for j, room in enumerate(row):
            x = LEFT + j * (each + GAP)
            middle = x + each / 2
            name = room.replace("performance_prediction", "performance_\u200bprediction")
            size = 15 if each > 9 * len(room) else 13
            parts += [
                f"<g><title>{html.escape(PURPOSE[room].replace('`', ''))}</title>"
                f'<rect class="room row-{i % 3}" x="{x:.1f}" y="{y}" width="{each:.1f}" height="{BOX}" rx="8"/>'
                f'<text class="name" x="{middle:.1f}" y="{y + 26}" font-size="{size}">{html.escape(name)}</text>'
                f'<text class="what" x="{middle:.1f}" y="{y + 45}">{html.escape(SHORT[room])}</text></g>'
            ]
    parts.append("</svg>")
    return f'<div class="picture" data-search-exclude markdown="0">{"".join(parts)}</div>'
