"""The demo's pipeline, timed stage by stage, and what training gained over the best baseline that needs none.

Peers in the same run, on the same crops, splits and probe: the encoder untrained, pixel statistics, the cell count,
and a plain masked autoencoder next to the demo's, which has a contrastive term whose positive pairs are crops of one
well. On every plate the block counts that the other plates choose, baselines alike; plates are held out, and batches.

The bar holds when the demo's encoder gains at least 0.05 balanced accuracy over the best baseline, the interval of the
gain over plates lies above 0, and no block in the middle of the untrained encoder lies above both of its ends by more
than the interval of the difference: what block search finds must have been learned (Kenyon-Dean et al. 2024, arXiv
2411.02572).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from typing import Any

from rich.console import Console

import cytolake.catalog
from cytolake.benchmark.leaderboard import LeaderboardFilter, leaderboard
from cytolake.benchmark.unit_scores import Candidate, gain
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.stages import PipelineResult, run_pipeline
from cytolake.recipes import build_recipe
from cytolake.reports.choice_text import headline, how_measured, measures
from cytolake.train.evaluation import read_evaluations

BAR = 0.05


def main() -> int:
    console = Console(highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as root:
        started = time.monotonic()
        config = dataclasses.replace(build_recipe("demo"), root=root)
        result = run_pipeline(config, console)
        total_s = time.monotonic() - started
        evaluations = read_evaluations(result.run_folder)
        choice = result.choice
        probed = LeaderboardFilter(
            benchmark=choice.benchmark, metric=choice.metric, label=choice.label, all_blocks=True
        )
        rows = [
            row
            for row in leaderboard(cytolake.catalog.open(root), probed).to_pylist()
            if row["protocol"] == choice.protocol_id
        ]
        plain = run_pipeline(plain_mae(config), console)
    for stage, seconds in result.seconds.items():
        print(f"stage {stage}: {seconds:.1f} s")
    print(f"stages together: {total_s:.1f} s")
    by_step = ", ".join(f"{step}: {numbers['best_block']:.3f}" for step, numbers in evaluations.items())
    print(f"probe of the fixed set by step, highest block, crops, 0 is untrained: {by_step}")
    print_result("masked autoencoder with a contrastive term (positive pairs: crops of one well)", result)
    print_result("plain masked autoencoder", plain)
    has_peak = False
    for kind in ("trained", "untrained"):
        curve = sorted((row for row in rows if (row["kind"], row["pooling"]) == (kind, "mean")), key=_block)
        print(f"{kind}, mean pooling, block by block: {', '.join(map(_text, curve))}")
        if kind == "untrained":
            has_peak = any(is_above(middle, curve[0]) and is_above(middle, curve[-1]) for middle in curve[1:-1])
            print(f"untrained: a block in the middle above both ends: {'yes' if has_peak else 'no'}")
    is_ok = choice.gain >= BAR and choice.has_gain and not has_peak
    print(f"line: figure={choice.gain:.3f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def plain_mae(config: PipelineConfig) -> PipelineConfig:
    """The same recipe without the contrastive term; it is promoted under a name of its own, gain or none."""
    mae = dataclasses.replace(config.pretrain.objective.mae, contrastive_weight=0.0)
    objective = dataclasses.replace(config.pretrain.objective, mae=mae)
    pretrain = dataclasses.replace(config.pretrain, objective=objective, second_view="crop")
    return dataclasses.replace(config, name="demo_plain_mae", pretrain=pretrain, alias="plain", label_curve=None)


def print_result(name: str, result: PipelineResult) -> None:
    """Every measure of one encoder, in lines."""
    print(f"{name}: {headline(result.choice)}")
    header, *rows = measures([result.choice, *result.others])
    for row in rows:
        print("  " + "; ".join(f"{title} {value}" for title, value in zip(header, row, strict=True) if value))
    print(f"  {how_measured(result.choice)}")
    for choice in (result.choice, *result.others):
        scores = ", ".join(f"{unit} {score:.3f}" for unit, score in zip(choice.units, choice.unit_scores, strict=True))
        print(f"  {choice.metric}, held out by {choice.split}: {scores}")


def is_above(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """The interval of the difference over plates lies above 0."""
    one, two = (Candidate.of_details(json.loads(each["details"])) for each in (row, other))
    if one is None or two is None:
        raise ValueError("a probe without scores of single plates")
    return gain([one], [two]).low > 0


def _block(row: dict[str, Any]) -> int:
    return int(row["block"])


def _text(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
