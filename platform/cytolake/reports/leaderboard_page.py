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
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cytolake.benchmark.leaderboard import BEST_OF_THESE, EXPRESSION, TASK_COLUMNS, LeaderboardFilter, leaderboard
from cytolake.benchmark.linear_probe import CROP_METRIC, WELL_METRIC
from cytolake.benchmark.merit import ERRORS, WITHOUT_MERIT, is_guard_rail
from cytolake.benchmark.profiles.feature_tasks import BENCHMARK as FEATURE_REGRESSION
from cytolake.benchmark.transcriptomics.config import FITTED
from cytolake.catalog import Catalog
from cytolake.catalog.representations import ALIGNED
from cytolake.reports.figures import block_curves
from cytolake.reports.page import write_page

PAGE_FILE = "leaderboard.html"
ABOUT = {
    "linear_probe": "A linear probe of single crops, on plates, batches or wells it never saw.",
    "relation_recall": "Known pairs of genes among the most alike and the most opposite pairs of the map; a random map "
    "scores the width of both tails.",
    "perturbation_consistency": "Share of perturbations whose replicates are more alike than random treated wells of "
    "the same plates (significant: p up to 0.05; discovered: q, Benjamini-Hochberg, up to 0.05).",
    "perturbation_magnitude": "Share of perturbations that differ from the controls of their plates, of which half are "
    "kept out of the alignment for this (significant: p up to 0.05; discovered: q up to 0.05).",
    "replicate_consistency": "Is a perturbation more like itself in another experiment than like the others there?",
    "activity_map": "Do replicates of a perturbation find each other before they find controls?",
    "percent_replicating": "Share of perturbations whose replicates correlate (median of all pairs) more than 95 % of "
    "sets of as many wells of different perturbations, drawn from the whole screen or from the same plates. Chance is "
    "0.05.",
    "grit": "Mean over perturbations of how far replicates correlate with each other beyond what they correlate with "
    "controls, in standard deviations of the latter. Chance is 0.",
    "mechanism_map": "Do perturbations of one pathway find each other before those of others?",
    "mechanism_nearest": "Is the nearest other perturbation of the same pathway (nsc), in another batch too (nscb)?",
    "sibling_retrieval": "Do reagents of one target gene find each other before those of other genes: its guides, its "
    "compounds, and its compounds its guides?",
    "cluster_separation": "Are the genes of a pathway, complex or other cluster set apart from the rest? Share of "
    "clusters whose cosines within differ from those to other genes (q up to 0.05), and the mean Kolmogorov-Smirnov "
    "statistic.",
    "compound_gene": "Do the known targets of a compound rank first among genes, by how much their knockout looks like "
    "it?",
    "feature_regression": "How much of the measured features of a well, such as CellProfiler's, a linear map predicts "
    "from its embedding on held-out plates: median R2 of the features of each family. 0 is what each plate's mean "
    "gives; the interval is over plates (or batches).",
    "dose_response": "Share of compounds whose distance from the controls grows with dose.",
    "batch_leakage": "Guard rail: can the plate be predicted from the profiles of controls that the alignment was not "
    "fitted on? Least is best.",
    "false_positives": "Guard rail: control wells called as different from the controls of other plates. Least is "
    "best; the test promises 0.05.",
    "batch_mixing": "Of how many batches are the nearest neighbours? High is well mixed, and noise mixes as well: "
    "no merit without the biology of the other benchmarks.",
    "linear_separability": "Share of rows in batches held out whose perturbation a linear map predicts.",
    "nearest_neighbours": "Share of rows in batches held out whose perturbation their nearest neighbours predict.",
    "known_relations": "Known pairs of perturbations among the 5 % most alike and 5 % most opposite pairs; a random "
    "map scores 0.1.",
    "perturbation_signal": "Share of perturbations whose rows are alike (consistent), or differ from the controls "
    "(distinct), beyond chance (p up to 0.05).",
    "reconstruction": "Features decoded by a small network, for perturbations and batches that it never saw.",
}
CLASS_DETAILS = {
    "normalised": "normalised average precision of each",
    "grit": "grit of each",
    "of_compartment": "median R2 of each compartment",
    "recall": "share predicted correctly of each",
    "spearman": "correlation of dose and distance of each",
    "p_values": "p-value of each",
    "statistics": "Kolmogorov-Smirnov statistic of each cluster",
    "of_compound": "score of each compound",
}
"""Details that hold a number for each class, and what it is."""
Q_VALUES = ", and its q-value: p adjusted for the number tested (Benjamini-Hochberg)"
MAX_CLASSES_SHOWN = 60


@dataclass(frozen=True, slots=True)
class _Ranking:
    name: str
    rows: list[dict[str, str]]
    missing: str
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
    protocols = _protocols(best)
    for task, rows in itertools.groupby(best, key=_task):
        benchmark = task[0]
        known = benchmark if benchmark in ABOUT else benchmark.removesuffix("_plate_controls")
        group = groups.setdefault(benchmark, _Group(benchmark.replace("_", " ").capitalize(), ABOUT.get(known, "")))
        group.rankings.append(_ranking(list(rows), by_task[task], protocols[task[:-1]]))
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
    protocols = _protocols(rows.to_pylist())
    for task, grouped in itertools.groupby(rows.to_pylist(), key=_task):
        ranked = list(grouped)
        shown = Table.grid(padding=(0, 2))
        for place, row in enumerate(ranked):
            value = f"{row['value']:.3f}"
            shown.add_row(
                "",
                escape(encoder_name(row)),
                place_text(row),
                value if place else f"[bold]{value}[/]",
                interval_text(row),
                f"[dim]{escape(chosen_text(row))}[/]",
            )
        parts += [Text.assemble((task[0], "bold"), f"  {_how(ranked[0])}"), shown]
        if missing := _missing_text(ranked, protocols[task[:-1]]):
            parts.append(Text(f"  {missing}", style="dim"))
    return Group(*parts)


def _how(row: Mapping[str, Any]) -> str:
    """What the ranking of a row is of, after its benchmark's name."""
    benchmark, label, metric, split, alignment = (row[name] for name in TASK_COLUMNS[:5])
    is_probe = benchmark.startswith("linear_probe")
    n_wells = json.loads(row["details"] or "{}").get("n_wells")
    parts = [f"{metric.replace('_', ' ')} of {label}"]
    if split:
        is_held_out = is_probe or benchmark in (*FITTED, FEATURE_REGRESSION)
        parts.append(f"held out by {split}" if is_held_out else f"across {split}{'es' if split.endswith('h') else 's'}")
    if not is_probe:
        parts.append(f"alignment {alignment}")
    if row["screen_id"]:
        parts.append(f"screen {json.loads(row['details'])['screen']} {row['screen_id'][:8]}")
    if n_wells:
        parts.append(f"{n_wells:,} wells")
    if (chance := chance_of(row)) is not None:
        parts.append(f"chance {chance:.3f}")
    if is_guard_rail(benchmark, label):
        parts.append("guard rail: least is best")
    if metric in ERRORS:
        parts.append("an error: least is best")
    if benchmark in WITHOUT_MERIT:
        parts.append("no merit alone: noise mixes as well")
    return ", ".join(parts)


def chance_of(row: Mapping[str, Any]) -> float | None:
    """What a representation that knows nothing scores, where a number says so; `ABOUT` says it of other benchmarks."""
    details = json.loads(row["details"] or "{}")
    known = details.get("chance", details.get("random"))
    if known is None and row["metric"] in (CROP_METRIC, WELL_METRIC) and row["n_classes"]:
        known = 1 / row["n_classes"]  # of balanced accuracy
    return None if known is None else float(known)


def _task(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (*(str(row[name]) for name in TASK_COLUMNS), row["protocol"])


def _protocols(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]]:
    """Rows of every task by protocol."""
    found: dict[tuple[str, ...], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        found.setdefault(_task(row)[:-1], {}).setdefault(row["protocol"], []).append(row)
    return found


def _missing_text(ranked: Sequence[Mapping[str, Any]], protocols: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Which encoders of the task are in other rankings alone; empty where there is one ranking."""
    here = {encoder_name(row) for row in ranked}
    elsewhere = {encoder_name(row) for rows in protocols.values() for row in rows} - here
    if len(protocols) < 2:
        return ""
    text = (
        f"scored with other wells, labels or settings than the {len(protocols) - 1} other ranking(s) of this benchmark"
    )
    return text + (f"; not in this one: {', '.join(sorted(elsewhere))}" if elsewhere else "")


def chosen_text(row: Mapping[str, Any]) -> str:
    """How the block was chosen, where there was a choice."""
    if not row["chosen_by"]:
        return ""
    if row["chosen_by"] == BEST_OF_THESE:
        return f"best of {row['best_of']} on these wells: reads high"
    return f"of {row['best_of']}, chosen by {row['chosen_by']}"


def encoder_name(row: Mapping[str, Any]) -> str:
    """What a ranking calls an encoder."""
    if row["kind"] in ("pixel_statistics", "cell_count"):
        return str(row["kind"]).replace("_", " ")
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
    if row["block"] >= 0:
        return f"{row['block']} {row['pooling']}"
    return "" if row["pooling"] == "all" else str(row["pooling"])


def _ranking(
    best: Sequence[Mapping[str, Any]],
    every: Sequence[Mapping[str, Any]],
    protocols: Mapping[str, Sequence[Mapping[str, Any]]],
) -> _Ranking:
    first = best[0]
    rows = [
        {
            "encoder": encoder_name(row),
            "place": place_text(row),
            "value": f"{row['value']:.3f}",
            "interval": interval_text(row),
            "n_test": "" if row["n_test"] is None else f"{row['n_test']:,}",
            "chosen": chosen_text(row),
        }
        for row in best
    ]
    encoders = [row for row in every if row["kind"] != ALIGNED]  # of several encoders and variants: no line
    n_blocks = len({row["block"] for row in encoders})
    curve = block_curves(encoders, first["metric"].replace("_", " ")) if n_blocks > 2 else ""
    missing = _missing_text(best, protocols)
    details = json.loads(first["details"] or "{}")
    for name, about in CLASS_DETAILS.items():
        if details.get(name):
            q_values = details.get("q_values", {})
            classes = [
                (key, f"{value:.3f}, q {q_values[key]:.3f}" if key in q_values else f"{value:.3f}")
                for key, value in details[name].items()
            ]
            shown = f"{first['label']}: {about}{Q_VALUES if q_values else ''}"
            return _Ranking(_how(first), rows, missing, curve, classes[:MAX_CLASSES_SHOWN], shown)
    return _Ranking(_how(first), rows, missing, curve, [], "")
