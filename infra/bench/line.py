"""The demo's line, timed stage by stage, and what training gained over the best baseline that needs none.

Peers in the same run, on the same crops, splits and probe: the same encoder untrained, and pixel statistics.
The bar holds when the trained encoder's best block is at least 0.05 balanced accuracy above the better of the two, the
95 % intervals do not overlap, and no block in the middle of the untrained encoder lies beyond the intervals of its
first and last: what block search finds must have been learned (Kenyon-Dean et al. 2024, arXiv 2411.02572).
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from typing import Any

from rich.console import Console

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.line.stages import run_pipeline
from cytolake.recipes import build_recipe
from cytolake.train.evaluation import read_evaluations

BAR = 0.05


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as root:
        started = time.monotonic()
        result = run_pipeline(dataclasses.replace(build_recipe("demo"), root=root), console)
        total_s = time.monotonic() - started
        evaluations = read_evaluations(result.run_folder)
        probed = LeaderboardFilter(benchmark=result.choice.benchmark, metric=result.choice.metric, all_blocks=True)
        rows = leaderboard(cytolake.catalog.open(root), probed).to_pylist()
    for stage, seconds in result.seconds.items():
        print(f"stage {stage}: {seconds:.1f} s")
    print(f"stages together: {total_s:.1f} s")
    by_step = ", ".join(f"{step}: {numbers['best_block']:.3f}" for step, numbers in evaluations.items())
    print(f"probe of the pinned set by step, best block, 0 is untrained: {by_step}")
    choice = result.choice
    best = max((choice.untrained, choice.pixel_statistics), key=lambda row: row.score)
    print(
        f"trained: {choice.score:.3f} [{choice.ci_low:.3f}, {choice.ci_high:.3f}] block {choice.block} {choice.pooling}"
    )
    for row in (choice.untrained, choice.pixel_statistics):
        print(f"{row.kind}: {row.score:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]")
    has_peak = False
    for kind in ("trained", "untrained"):
        curve = sorted((row for row in rows if (row["kind"], row["pooling"]) == (kind, "mean")), key=_block)
        print(f"{kind}, mean pooling, block by block: {', '.join(map(_spelled, curve))}")
        ends = max(curve[0]["ci_high"], curve[-1]["ci_high"])
        if kind == "untrained":
            has_peak = any(row["ci_low"] > ends for row in curve[1:-1])
            print(f"untrained: a block in the middle beyond the intervals of both ends: {'yes' if has_peak else 'no'}")
    gain = choice.score - best.score
    is_ok = (
        gain >= BAR and not has_peak and choice.ci_low > max(choice.untrained.ci_high, choice.pixel_statistics.ci_high)
    )
    print(f"line: figure={gain:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def _block(row: dict[str, Any]) -> int:
    return int(row["block"])


def _spelled(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
