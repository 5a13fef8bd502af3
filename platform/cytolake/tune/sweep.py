"""Sweeps: the same training with one setting changed at a time, at equal budget, scored by the same block search.

Ray Tune runs the trials; a trial starts a Ray Train run of its own, so it holds no CPU itself and one runs at a time.
A trial that was finished before (same pack, same config) is read back: a killed sweep goes on where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytolake.benchmark.linear_probe import ProbeConfig
from cytolake.catalog import Catalog
from cytolake.embed.extract import EmbedConfig, embed_pack
from cytolake.packs.pack import Pack
from cytolake.tracking import TrackingConfig
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import finished_run, pretrain
from cytolake.tune.block_search import BlockChoice, search_blocks

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """One setting on a grid, times seeds; everything else as in the recipe."""

    field: str = "pretrain.objective.mae.mask_ratio"
    """Path of the setting, as in `--set`; under `pretrain`."""
    values: tuple[str, ...] = ("0.5", "0.75", "0.9")
    """Its values, spelled as in `--set`."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; each value is trained once with each."""

    def __post_init__(self) -> None:
        if not self.field.startswith("pretrain."):
            raise ValueError(
                f"sweep.field is {self.field!r}, expected a setting of the training such as "
                "pretrain.objective.mae.mask_ratio."
            )
        if not self.values or not self.seeds:
            raise ValueError("sweep.values and sweep.seeds must each have at least one entry.")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepTrial:
    """One training of a sweep."""

    value: str
    seed: int
    pretrain: PretrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """What one trial reached."""

    final_loss: float
    choice: BlockChoice


def run_sweep(
    catalog: Catalog,
    pack: Pack,
    trials: Sequence[SweepTrial],
    embed: EmbedConfig,
    probe: ProbeConfig,
    tracking: TrackingConfig,
    progress: Progress | None = None,
) -> list[SweepResult]:
    """Train each trial, then embed and probe it; results in the order of the trials.

    Raises:
        PretrainError: A trial failed. The others are kept, and the same command goes on from them.
    """
    runs_root = catalog.root / "runs"
    tracking = tracking.at(catalog.root)
    todo = [i for i, trial in enumerate(trials) if finished_run(pack.pack_id, trial.pretrain, runs_root) is None]
    if todo:
        _train(pack.path, trials, todo, runs_root, tracking)
    results = []
    for i, trial in enumerate(trials):
        if progress is not None:
            progress("trials", i, len(trials))
        trained = pretrain(pack.path, trial.pretrain, runs_root, tracking)  # finished above: only read back
        checkpoints = {"trained": trained.checkpoint, "untrained": trained.untrained_checkpoint}
        rows = embed_pack(catalog, pack, checkpoints, embed, run_id=trained.run_id)
        choice = search_blocks(catalog, [row["representation_id"] for row in rows], probe)
        results.append(SweepResult(final_loss=trained.final_loss, choice=choice))
    if progress is not None:
        progress("trials", len(trials), len(trials))
    return results


def _train(
    pack_path: Path, trials: Sequence[SweepTrial], todo: Sequence[int], runs_root: Path, tracking: TrackingConfig
) -> None:
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    trainable = tune.with_parameters(
        _trial, pack_path=str(pack_path), trials=list(trials), runs_root=str(runs_root), tracking=tracking
    )
    results = tune.Tuner(
        # The Ray Train run inside a trial brings its own resources, and a CPU held here would be one too few for it.
        # Ray wants a trial to hold something: a byte of memory.
        tune.with_resources(trainable, {"cpu": 0, "memory": 1}),
        param_space={"trial": tune.grid_search(list(todo))},
        tune_config=tune.TuneConfig(max_concurrent_trials=1),
        run_config=tune.RunConfig(name="sweep", storage_path=str(runs_root / "tune"), verbose=0),
    ).fit()
    for i in range(len(results)):
        error = results[i].error
        if error is not None:
            raise error


def _trial(
    settings: dict[str, Any], *, pack_path: str, trials: Sequence[SweepTrial], runs_root: str, tracking: TrackingConfig
) -> None:
    """One Ray Tune trial: one training."""
    from ray import tune

    result = pretrain(pack_path, trials[settings["trial"]].pretrain, runs_root, tracking)
    tune.report({"loss": result.final_loss})
