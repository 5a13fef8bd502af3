"""The six tasks of an expression screen as a page and for a terminal: scores with chance, and each perturbation."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cytolake.benchmark.merit import ERRORS
from cytolake.benchmark.transcriptomics.config import FITTED
from cytolake.benchmark.transcriptomics.perturbation_signal import TESTS
from cytolake.reports.figures import INK, PALETTE, as_svg, new_panels
from cytolake.reports.leaderboard_page import interval_text
from cytolake.reports.page import write_page

FOLDER = "transcriptomics"
"""Of these pages and tables, in the report's folder."""
RANKED: Mapping[tuple[str, str], str] = {
    ("linear_separability", "balanced_top1_standardised"): "balanced accuracy,\nlinear map",
    ("nearest_neighbours", "balanced_top1"): "balanced accuracy,\nnearest neighbours",
    ("known_relations", "recall"): "recall of known pairs",
    ("perturbation_signal", "consistent_share"): "share of perturbations\nwhose rows are alike",
    ("perturbation_signal", "distinct_share"): "share of perturbations\ndistinct from controls",
    ("reconstruction", "r2"): "R2 of decoded features",
    ("reconstruction", "pearson"): "correlation of decoded\nfeatures over rows",
    ("reconstruction", "structural_integrity_profiles"): "structural integrity\nof mean profiles",
    ("batch_mixing", "ilisi_normalised"): "mixing of batches",
}
"""What embeddings are ranked by: of each the chance is known, and no class counts more for having more rows."""
NO_MERIT = "batch_mixing"
"""Noise mixes batches best: no embedding is better for it."""
TASKS: Mapping[str, str] = {
    "linear_separability": "Perturbations of rows in held-out batches, predicted by a linear map. Balanced: the mean "
    "over perturbations, so that frequent ones count no more than rare ones.",
    "nearest_neighbours": "Perturbations of rows in held-out batches, predicted by their nearest neighbours; controls "
    "are a class. Where most rows are controls, top1 over rows is high for any embedding: the balanced one is ranked.",
    "known_relations": "Known pairs of perturbations among the 5 % most alike and 5 % most opposite pairs.",
    "perturbation_signal": "Share of perturbations whose rows are more alike than those of other perturbations "
    "(consistent), or differ from the controls (distinct), by permutation tests.",
    "reconstruction": "Features decoded by a small network, of perturbations and batches that it never saw. Chance is "
    "the mean of each feature over the training rows (R2 is about the mean of all values, so this is far above 0 where "
    "features differ in theirs); of structural integrity, whose interval is over seeds alone, no effect at all.",
    "batch_mixing": "Of how many batches the nearest neighbours are, 1 where batches are dealt at random. No merit "
    "without the other tasks: noise mixes as well.",
}
OVER_SEEDS_ALONE = ("structural_integrity", "structural_integrity_profiles")
"""Metrics with nothing to resample: their intervals are too narrow to hold against chance."""
MAX_TARGETS = 300
SIGNIFICANT_Q = 0.05


@dataclass(frozen=True, slots=True)
class _Ranking:
    """One metric of one task and label: its rows from the best down."""

    task: str
    metric: str
    label: str
    rows: list[Mapping[str, Any]]

    @property
    def is_ranked(self) -> bool:
        return (self.task, self.metric) in RANKED


def transcriptomics_text(rows: Sequence[Mapping[str, Any]]) -> Group:
    """What embeddings are ranked by, for a terminal: score, interval and chance of each."""
    parts: list[RenderableType] = []
    for ranking in _rankings(rows):
        if not ranking.is_ranked:
            continue
        shown = Table.grid(padding=(0, 2))
        for place, row in enumerate(ranking.rows):
            value = f"{row['value']:.3f}"
            shown.add_row(
                "",
                escape(_name(row)),
                value if place else f"[bold]{value}[/]",
                interval_text(row),
                f"[dim]{escape(_chances(row))}[/]",
            )
        screen = f"screen {json.loads(ranking.rows[0]['details'])['screen']} {ranking.rows[0]['screen_id'][:8]}"
        parts += [Text.assemble((ranking.task, "bold"), f"  {_how(ranking)}, {screen}"), shown]
    return Group(*parts)


def write_transcriptomics(
    path: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
    *,
    notes: Sequence[str] = (),
    left_out: Sequence[tuple[str, str]] = (),
    targets_file: str = "",
) -> Path:
    """Write one self-contained HTML page and return its path.

    Args:
        rows: Of `leaderboard`, of one expression screen.
        targets: Rows of `perturbation_signal.TARGETS_SCHEMA`.
        notes: Rows of the file that were left out, and the like.
        left_out: Tasks that the screen does not allow, and why.
        targets_file: Name of the file with all rows of `targets`.
    """
    rankings = _rankings(rows)
    tasks = [
        {
            "name": task.replace("_", " ").capitalize(),
            "about": about,
            "rankings": [
                {
                    "name": _how(ranking),
                    "is_ranked": ranking.is_ranked,
                    "has_merit": ranking.is_ranked and task != NO_MERIT,
                    "has_classes": any(_chance(row, "chance_majority") is not None for row in ranking.rows),
                    "rows": [_cells(row) for row in ranking.rows],
                }
                for ranking in rankings
                if ranking.task == task
            ],
        }
        for task, about in TASKS.items()
        if any(ranking.task == task for ranking in rankings)
    ]
    return write_page(
        path,
        "transcriptomics.html.j2",
        title=title,
        result=summary(rows),
        figure=_figure(rankings),
        tasks=tasks,
        tests=TESTS,
        targets=_targets(targets),
        targets_file=targets_file,
        max_targets=MAX_TARGETS,
        level=SIGNIFICANT_Q,
        notes=notes,
        left_out=left_out,
    )


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The result in a sentence or two: what ranks first on the biological tasks, and what is above chance."""
    rankings = [each for each in _rankings(rows) if each.is_ranked and each.task != NO_MERIT]
    if not rankings:
        return "No task with a known chance was scored."
    first: dict[str, int] = {}
    above: dict[str, int] = {}
    n_judged: dict[str, int] = {}
    for ranking in rankings:
        top = ranking.rows[0]["value"]
        for row in ranking.rows:
            first[_name(row)] = first.get(_name(row), 0) + (row["value"] == top)
            name = _name(row)
            verdict = _is_above_chance(row)
            if verdict is not None:
                n_judged[name] = n_judged.get(name, 0) + 1
                above[name] = above.get(name, 0) + verdict
    best = max(first, key=lambda name: (first[name], above.get(name, 0)))
    names = list(dict.fromkeys(_name(row) for ranking in rankings for row in ranking.rows))
    counts = "; ".join(f"{name} in {above.get(name, 0)} of {n_judged[name]}" for name in names if name in n_judged)
    return (
        f"{best} is first in {first[best]} of {len(rankings)} rankings of {len(names)} embeddings. Above "
        f"chance, with the whole 95 % interval: {counts}."
    )


def _rankings(rows: Sequence[Mapping[str, Any]]) -> list[_Ranking]:
    """Those that embeddings are ranked by first, in the order of the tasks."""
    grouped: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["benchmark"], row["metric"], row["label"]), []).append(row)
    order = list(TASKS)
    found = [
        _Ranking(task, metric, label, sorted(each, key=lambda row: row["value"], reverse=metric not in ERRORS))
        for (task, metric, label), each in grouped.items()
        if task in TASKS
    ]
    ranked = list(RANKED)

    def place(each: _Ranking) -> tuple[int, int, str, str]:
        key = (each.task, each.metric)
        return order.index(each.task), ranked.index(key) if key in ranked else len(ranked), each.metric, each.label

    return sorted(found, key=place)


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['architecture']}, {row['alignment']}" if row["alignment"] != "none" else str(row["architecture"])


def _how(ranking: _Ranking) -> str:
    """What a ranking is of, after its task's name."""
    row = ranking.rows[0]
    parts = [f"{ranking.metric.replace('_', ' ')} of {ranking.label}"]
    if ranking.task in FITTED:
        parts.append(f"held out by {row['split']}")
    if ranking.metric in ERRORS:
        parts.append("an error: least is best")
    if ranking.task == NO_MERIT:
        parts.append("no merit alone: noise mixes as well")
    return ", ".join(parts)


def _chance(row: Mapping[str, Any], name: str = "chance") -> float | None:
    value = json.loads(row["details"]).get(name)
    return None if value is None else float(value)


def _chances(row: Mapping[str, Any]) -> str:
    chance, majority = _chance(row), _chance(row, "chance_majority")
    if chance is None:
        return "chance not known"
    return f"chance {chance:.3f}" + ("" if majority is None else f", most frequent class {majority:.3f}")


def _is_above_chance(row: Mapping[str, Any]) -> bool | None:
    """Whether the whole interval lies above what knowing nothing reaches; None where either is not known."""
    if row["metric"] in OVER_SEEDS_ALONE:
        return None
    chances = [each for each in (_chance(row), _chance(row, "chance_majority")) if each is not None]
    return bool(row["ci_low"] > max(chances)) if chances and row["ci_low"] is not None else None


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.3f}"

    return {
        "embedding": _name(row),
        "value": shown(row["value"]),
        "interval": interval_text(row),
        "chance": shown(_chance(row)) or "not known",
        "majority": shown(_chance(row, "chance_majority")),
        "n_test": "" if row["n_test"] is None else f"{row['n_test']:,}",
    }


def _targets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each embedding (first seed) the perturbations with both tests, the most distinct first; of embeddings the one
    of the most findings."""
    if not rows:
        return []
    first_seed = min(row["seed"] for row in rows)
    grouped: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        if row["seed"] == first_seed:
            name = row["embedding"] + ("" if row["post_processing"] == "none" else f", {row['post_processing']}")
            grouped.setdefault(name, {}).setdefault(row["perturbation"], {})[row["test"]] = row
    tables = []
    for name, of_perturbation in grouped.items():

        def place(item: tuple[str, dict[str, Mapping[str, Any]]]) -> tuple[float, float, str]:
            found = item[1].get("distinct", {})
            q, value = found.get("q_value"), found.get("value")
            return 2.0 if q is None else q, 0.0 if value is None else -value, item[0]

        ordered = sorted(of_perturbation.items(), key=place)
        counts = {
            test: sum(1 for _, each in ordered if (each[test]["q_value"] or 1.0) <= SIGNIFICANT_Q) for test in TESTS
        }
        tables.append(
            {
                "name": name,
                "n": len(ordered),
                "counts": counts,
                "rows": [
                    {"name": perturbation, "n": f"{next(iter(each.values()))['n']:,}"}
                    | {test: _test_cells(each[test]) for test in TESTS}
                    for perturbation, each in ordered[:MAX_TARGETS]
                ],
            }
        )
    return sorted(tables, key=lambda table: -sum(table["counts"].values()))


def _test_cells(row: Mapping[str, Any]) -> list[str]:
    if row["value"] is None or row["p_value"] is None:
        return ["too few rows", "", ""]
    return [f"{row['value']:.3f}", f"{row['p_value']:.3g}", f"{row['q_value']:.3g}"]


def _figure(rankings: Sequence[_Ranking]) -> str:
    """A panel for each ranking: score and interval of each embedding, lines at what knowing nothing scores."""
    shown = [each for each in rankings if each.is_ranked]
    if not shown:
        return ""
    names = list(dict.fromkeys(_name(row) for ranking in shown for row in ranking.rows))[::-1]
    n_columns = min(3, len(shown))
    figure, panels = new_panels(len(shown), n_columns, 10.0, 0.9 + 0.26 * len(names))
    for panel, ranking in zip(panels, shown, strict=True):
        for row in ranking.rows:
            y = names.index(_name(row))
            color = PALETTE[(len(names) - 1 - y) % len(PALETTE)]
            if row["ci_low"] is not None:
                panel.plot([row["ci_low"], row["ci_high"]], [y, y], color=color, linewidth=2)
            panel.plot(row["value"], y, "o", color=color, markersize=5)
        chances = [_chance(row) for row in ranking.rows]
        majorities = [_chance(row, "chance_majority") for row in ranking.rows]
        for values, style in ((chances, "--"), (majorities, ":")):
            known = [value for value in values if value is not None]
            if known:
                panel.axvline(float(np.mean(known)), color=INK, linewidth=1, linestyle=style)
        panel.set_xlabel(RANKED[ranking.task, ranking.metric], fontsize=8)
        if ranking.task == "known_relations":
            panel.set_title(ranking.label, fontsize=8)
        is_first = panels.index(panel) % n_columns == 0
        panel.set_yticks(range(len(names)), names if is_first else [], fontsize=8)
        panel.set_ylim(-0.6, len(names) - 0.4)
    figure.tight_layout()
    return as_svg(figure)


def file_stem(name: str) -> str:
    """A screen's name as that of a file."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "screen"
