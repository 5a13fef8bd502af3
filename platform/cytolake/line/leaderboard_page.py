"""The leaderboard as a page: rankings, block curves, and the scores of single classes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cytolake.benchmark.leaderboard import EXPRESSION, TASK_COLUMNS, LeaderboardFilter, leaderboard
from cytolake.benchmark.profiles.tasks import ERRORS, WITHOUT_MERIT, is_guard_rail
from cytolake.benchmark.transcriptomics.benchmark import FITTED
from cytolake.catalog import Catalog
from cytolake.embed.alignment.kept import ALIGNED
from cytolake.line.figures import block_curves
from cytolake.line.page import write_page

PAGE_FILE = "leaderboard.html"
ABOUT = {
    "linear_probe": "A linear probe of single crops, on plates, batches or wells it never saw.",
    "relation_recall": "Known pairs of genes among the most alike and the most opposite pairs of the map; a random map "
    "scores the width of both tails.",
    "perturbation_consistency": "Share of perturbations whose replicates are more alike than random treated wells of "
    "the same plates (significant: p up to 0.05; discovered: q, Benjamini-Hochberg, up to 0.05).",
    "perturbation_magnitude": "Share of perturbations that differ from the controls of their plates, of which half are "
    "kept out of the alignment for this (significant: p up to 0.05; discovered: q up to 0.05).",
    "replicate_consistency": "How far the same perturbation in another experiment is told from others there.",
    "activity_map": "Do replicates of a perturbation find each other before they find controls?",
    "mechanism_map": "Do perturbations of one pathway find each other before those of others?",
    "mechanism_nearest": "Is the nearest other perturbation of the same pathway (nsc), in another batch too (nscb)?",
    "cluster_separation": "Are the genes of a pathway, complex or other cluster set apart from the rest? Share of "
    "clusters whose cosines within differ from those to other genes (q up to 0.05), and the mean Kolmogorov-Smirnov "
    "statistic.",
    "compound_gene": "Do the known targets of a compound rank first among genes, by how much their knockout looks like "
    "it?",
    "dose_response": "Share of compounds whose distance from the controls grows with dose.",
    "batch_leakage": "Guard rail: can the plate be predicted from the profiles of controls that the alignment was not "
    "fitted on? Least is best.",
    "false_positives": "Guard rail: control wells called as different from the controls of other plates. Least is "
    "best; the test promises 0.05.",
    "batch_mixing": "Of how many batches are the nearest neighbours? High is well mixed, and noise mixes as well: "
    "no merit without the biology of the other benchmarks.",
    "linear_separability": "Share of rows in batches held out whose perturbation a linear map tells.",
    "nearest_neighbours": "Share of rows in batches held out whose perturbation their nearest neighbours tell.",
    "known_relations": "Known pairs of perturbations among the 5 % most alike and 5 % most opposite pairs; a random "
    "map scores 0.1.",
    "perturbation_signal": "Share of perturbations whose rows are alike (consistent), or differ from the controls "
    "(distinct), beyond chance (p up to 0.05).",
    "reconstruction": "Features decoded by a small network, for perturbations and batches that it never saw.",
}
CLASS_DETAILS = {
    "normalised": "normalised average precision of each",
    "recall": "share told correctly of each",
    "spearman": "correlation of dose and distance of each",
    "p_values": "p-value of each",
    "statistics": "Kolmogorov-Smirnov statistic of each cluster",
    "of_compound": "score of each compound",
}
"""Details that hold a number for each class, and what it is."""
MAX_CLASSES_SHOWN = 60


@dataclass(frozen=True, slots=True)
class _Ranking:
    name: str
    rows: list[dict[str, str]]
    curve: str
    classes: list[tuple[str, str]]
    classes_of: str


@dataclass(slots=True)
class _Group:
    name: str
    about: str
    rankings: list[_Ranking] = field(default_factory=list)


def write_leaderboard(
    catalog: Catalog,
    path: Path,
    *,
    title: str,
    pack_id: str = "",
    representation_ids: Sequence[str] = (),
    warnings: Sequence[str] = (),
    left_out: Mapping[str, str] | None = None,
) -> Path:
    """Write one self-contained HTML page (no script, no outside file) and return its path.

    Rankings are those that a representation of the pack, or one of `representation_ids`, is in; all by default.
    """
    wanted = LeaderboardFilter(pack_id=pack_id, representation_ids=tuple(representation_ids))
    best = leaderboard(catalog, wanted).to_pylist()
    every = leaderboard(catalog, replace(wanted, all_blocks=True)).to_pylist()
    by_task: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in every:
        by_task.setdefault(_task(row), []).append(row)
    groups: dict[str, _Group] = {}
    for task, rows in itertools.groupby(best, key=_task):
        benchmark = task[0]
        known = benchmark if benchmark in ABOUT else benchmark.removesuffix("_plate_controls")
        group = groups.setdefault(benchmark, _Group(benchmark.replace("_", " ").capitalize(), ABOUT.get(known, "")))
        group.rankings.append(_ranking(list(rows), by_task[task]))
    order = list(ABOUT)
    ranked = sorted(groups, key=lambda name: (order.index(name) if name in order else len(order), name))
    return write_page(
        path,
        "leaderboard.html.j2",
        title=title,
        warnings=warnings,
        groups=[groups[name] for name in ranked],
        left_out=sorted((left_out or {}).items()),
    )


def leaderboard_text(rows: pa.Table) -> Group:
    """The leaderboard for a terminal of any width: under each ranking's name a line for each encoder."""
    parts: list[RenderableType] = []
    for task, grouped in itertools.groupby(rows.to_pylist(), key=_task):
        ranked = list(grouped)
        shown = Table.grid(padding=(0, 2))
        for place, row in enumerate(ranked):
            value = f"{row['value']:.3f}"
            shown.add_row(
                "", encoder_name(row), place_text(row), value if place else f"[bold]{value}[/]", interval_text(row)
            )
        parts += [Text.assemble((task[0], "bold"), f"  {_how(ranked[0])}"), shown]
    return Group(*parts)


def _how(row: Mapping[str, Any]) -> str:
    """What the ranking of a row is of, after its benchmark's name."""
    benchmark, label, metric, split, alignment = (row[name] for name in TASK_COLUMNS[:5])
    is_probe = benchmark.startswith("linear_probe")
    parts = [f"{metric.replace('_', ' ')} of {label}"]
    if split:
        is_held_out = is_probe or benchmark in FITTED
        parts.append(f"held out by {split}" if is_held_out else f"across {split}{'es' if split.endswith('h') else 's'}")
    if not is_probe:
        parts.append(f"alignment {alignment}")
    if row["screen_id"]:
        parts.append(f"screen {json.loads(row['details'])['screen']} {row['screen_id'][:8]}")
    if is_guard_rail(benchmark, label):
        parts.append("guard rail: least is best")
    if metric in ERRORS:
        parts.append("an error: least is best")
    if benchmark in WITHOUT_MERIT:
        parts.append("no merit alone: noise mixes as well")
    return ", ".join(parts)


def _task(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in TASK_COLUMNS)


def encoder_name(row: Mapping[str, Any]) -> str:
    """What a ranking calls an encoder."""
    if row["kind"] == "pixel_statistics":
        return "pixel statistics"
    if row["kind"] in ("external", EXPRESSION):
        return str(row["architecture"])
    if row["kind"] == ALIGNED:
        return f"{row['architecture']} {row['model_id'][:8]}, aligned ({row['alignment_variant']})"
    return f"{row['architecture']} {row['model_id'][:8]}, {row['kind']}"


def interval_text(row: Mapping[str, Any]) -> str:
    """`low to high`, or nothing."""
    return "" if row["ci_low"] is None else f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"


def place_text(row: Mapping[str, Any]) -> str:
    """Block and pooling, where there are blocks."""
    return f"{row['block']} {row['pooling']}" if row["block"] >= 0 else ""


def _ranking(best: Sequence[Mapping[str, Any]], every: Sequence[Mapping[str, Any]]) -> _Ranking:
    first = best[0]
    rows = [
        {
            "encoder": encoder_name(row),
            "place": place_text(row),
            "value": f"{row['value']:.3f}",
            "interval": interval_text(row),
            "n_test": "" if row["n_test"] is None else f"{row['n_test']:,}",
            "best_of": str(row["best_of"]),
        }
        for row in best
    ]
    encoders = [row for row in every if row["kind"] != ALIGNED]  # of several encoders and variants: no line
    n_blocks = len({row["block"] for row in encoders})
    curve = block_curves(encoders, first["metric"].replace("_", " ")) if n_blocks > 2 else ""
    details = json.loads(first["details"] or "{}")
    for name, about in CLASS_DETAILS.items():
        if details.get(name):
            classes = [(key, f"{value:.3f}") for key, value in details[name].items()][:MAX_CLASSES_SHOWN]
            return _Ranking(_how(first), rows, curve, classes, f"{first['label']}: {about}")
    return _Ranking(_how(first), rows, curve, [], "")
