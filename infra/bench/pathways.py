"""The map of genes of a simulated screen against its planted pathways, with and without alignment.

48 genes of 12 pathways, two guides each, on four plates of two batches: the demo's encoder is trained on them, every
block is embedded, trained and untrained, and the pairs of genes of one pathway are looked for among the most alike and
most opposite 5 % of all pairs (recall of relations; a random map has 0.1). Peers in the same run, on the same crops:
the same encoder untrained, pixel statistics, and each of them without alignment. Each encoder is given its best block.

The bar is on the trained encoder with the better of the two alignments: three times the recall of a random map. It
holds when this recall is also above both baselines under the alignment that suits each best, above its own without
alignment, and its 95 % interval over genes lies above the recall of a random map. With a folder as argument the run is
kept there, with the leaderboard page of all other benchmarks.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig, Task
from cytolake.benchmark.profiles.score import score_profiles
from cytolake.embed.alignment.variants import Variant
from cytolake.pipeline.config import ScreensConfig
from cytolake.pipeline.stages import run_pipeline
from cytolake.pipeline.summaries import print_caveats
from cytolake.recipes import build_recipe
from cytolake.reports.leaderboard_page import write_leaderboard
from cytolake.screens.simulated.screen import SimulatedScreen

BAR = 3.0
METRIC, RANDOM = "recall_05_95", 0.1
ALIGNMENTS: tuple[Variant, ...] = ("none", "pca_cs", "tvn_vcb")
SCREEN = SimulatedScreen(
    screen="pathways",
    plate_format=384,
    n_pathways=12,
    genes_per_pathway=4,
    n_compounds=0,
    n_negative_controls=16,
)
KINDS = ("trained", "untrained", "pixel_statistics")


def main() -> int:
    console = Console(highlight=False, width=140)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as folder:
        is_kept = len(sys.argv) > 1
        root = Path(sys.argv[1] if is_kept else folder)
        config = build_recipe("demo")
        config = dataclasses.replace(
            config, name="pathways", root=str(root), screens=ScreensConfig(simulate=SCREEN), label_curve=None
        )
        run_pipeline(config, console)
        catalog = cytolake.catalog.open(root)
        ids = catalog.table("representations", columns=["representation_id"])["representation_id"].to_pylist()
        tasks: tuple[Task, ...] = get_args(Task) if is_kept else ("relations",)
        scores = score_profiles(catalog, ids, ProfileBenchmarkConfig(tasks=tasks, alignments=ALIGNMENTS))
        print_caveats(console, scores)
        if is_kept:
            write_leaderboard(catalog, root / "report/leaderboard.html", title="pathways", left_out=scores.left_out)
        wanted = LeaderboardFilter(benchmark="relation_recall", metric=METRIC, all_blocks=True)
        rows = leaderboard(catalog, wanted).to_pylist()
    best = {(row["kind"], row["alignment"]): row for row in reversed(rows)}  # of each, the first and so the best
    shown = Table("recall of planted pairs", *ALIGNMENTS, box=None)
    for kind in KINDS:
        shown.add_row(kind, *(_with_interval(best[kind, alignment]) for alignment in ALIGNMENTS))
    console.print(shown)
    for kind in KINDS[:2]:
        for alignment in ALIGNMENTS:
            curve = {
                row["block"]: row["value"]
                for row in rows
                if (row["kind"], row["pooling"], row["alignment"]) == (kind, "mean", alignment)
            }
            blocks = ", ".join(f"{curve[block]:.3f}" for block in sorted(curve))
            console.print(f"{kind}, mean pooling, {alignment}, block by block: {blocks}")
    chosen = max((best["trained", alignment] for alignment in ALIGNMENTS[1:]), key=_recall)
    others = [best[kind, alignment] for kind in KINDS[1:] for alignment in ALIGNMENTS]
    figure = _recall(chosen) / RANDOM
    is_ok = (
        figure >= BAR
        and all(_recall(chosen) > _recall(row) for row in (best["trained", "none"], *others))
        and float(chosen["ci_low"]) > RANDOM
    )
    print(f"pathways: figure={figure:.2f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def _recall(row: dict[str, Any]) -> float:
    return float(row["value"])


def _with_interval(row: dict[str, Any]) -> str:
    place = f"block {row['block']} {row['pooling']}, " if row["block"] >= 0 else ""
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] {place}".rstrip(", ")


if __name__ == "__main__":
    sys.exit(main())
