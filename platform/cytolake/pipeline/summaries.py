"""What a terminal shows of results: choices, sweeps, caveats of scores, and the commands to go on with."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.benchmark.profiles.score import ProfileScores
from cytolake.pipeline.config import PipelineConfig
from cytolake.pipeline.counts import count
from cytolake.reports.choice_text import choice_table, headline, how_measured
from cytolake.tracking import ModelVersion
from cytolake.tune.block_search import BlockChoice
from cytolake.tune.sweep import SweepResult

TRIALS_SHOWN = 10


def print_caveats(console: Console, scores: ProfileScores) -> None:
    """What to beware of in scores of profiles, and what has none and why."""
    for warning in scores.warnings:
        console.print(f"  [yellow]beware[/] {escape(warning)}")
    for name, why in scores.left_out.items():
        console.print(f"  [dim]not scored: {escape(name)}: {escape(why)}[/]")


def serve_command(config: PipelineConfig) -> str:
    """The command that serves the champion of this root, on this machine, without a key."""
    root = shlex.quote(str(config.root_path))
    return f"CYTOLAKE_ROOT={root} CYTOLAKE_NO_AUTH=1 {program('serve')} run cytolake.serving.app:app"


def mlflow_command(config: PipelineConfig) -> str:
    return f"{program('mlflow')} ui --backend-store-uri {config.tracking.at(config.root_path).uri}"


def program(name: str) -> str:
    """How this person starts a program of this environment: by name, or by its path where it is not on theirs."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def sweep_table(found: SweepResult, config: PipelineConfig) -> Table:
    names = list(found.best.settings)
    shown = Table(
        *(name.removeprefix("pretrain.") for name in names),
        "step",
        escape(config.study.label),
        box=None,
        header_style="dim",
    )
    for trial in found.trials[:TRIALS_SHOWN]:
        values = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in (trial.settings[name] for name in names)]
        shown.add_row(
            *map(escape, values),
            f"{trial.step:,} of {found.steps:,}",
            "failed" if trial.failure else f"{trial.score:.3f}",
        )
    return shown


def sweep_outcome(found: SweepResult, config: PipelineConfig) -> list[str]:
    texts = [f"chance {found.chance:.3f}; what was trained furthest first, {count(len(found.trials), 'trial')} in all"]
    failures = [trial.failure for trial in found.trials if trial.failure]
    if failures:
        texts.append(f"[yellow]{len(failures)} failed[/], the first: {escape(failures[0])}")
    if found.confirmed:
        ours, recipe = np.mean(found.confirmed), np.mean(found.of_recipe)
        texts.append(
            f"trained again with seeds {', '.join(map(str, config.sweep.confirm_seeds))}: [bold]{ours:.3f}[/] with the "
            f"best settings, {recipe:.3f} with the recipe's own; {escape(found.verdict)}"
        )
    texts.append("train with the best: " + escape(" ".join(f"--set {shlex.quote(each)}" for each in found.changes)))
    return texts


def print_choice(console: Console, choice: BlockChoice, others: Sequence[BlockChoice]) -> None:
    """The result in a sentence, and the scores next to those of the baselines."""
    console.print(f"[bold]{escape(headline(choice))}[/]")
    console.print(choice_table([choice, *others]))
    console.print(f"[dim]{escape(how_measured(choice))}[/]")


def choice_facts(choice: BlockChoice, card: ModelVersion | None) -> tuple[tuple[str, str], ...]:
    model = "not promoted, since no gain is shown"
    if card is not None:
        model = f"{card.name} version {card.version} ({card.architecture}), alias {card.alias}"
    facts = [("model", model), ("block", f"{choice.block} (0 = first), {choice.pooling} pooling")]
    if card is not None and card.forced:
        facts.append(("promoted without a gain", card.forced))
    for each in choice.baselines:
        if each.block >= 0:
            facts.append((f"best {each.kind} block", f"{each.block}, {each.pooling} pooling"))
    return tuple(facts)
