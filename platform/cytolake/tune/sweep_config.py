"""Config of a sweep: the search space, the searcher, and the budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cytolake.tune.search_space import Range

Searcher = Literal["optuna", "random", "grid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """Search space, searcher and budget of a sweep."""

    space: tuple[Range, ...] = (
        Range(name="pretrain.learning_rate", low=3e-4, high=1e-2, log=True),
        Range(name="pretrain.objective.mae.mask_ratio", values=(0.5, 0.75, 0.9)),
        Range(name="knob.gamma"),
        Range(name="knob.crop_scale"),
    )
    """Settings and their values: `{name: pretrain.learning_rate, low: 3e-4, high: 1e-2, log: true}` for a range of
    numbers, `{name: pretrain.optimiser, values: [adamw, lion]}` for a list. A name is `pretrain.` and a field as in
    `--set`, or `knob.` and the name of an augmentation, whose strength is 0 to 1."""
    searcher: Searcher = "optuna"
    """`optuna` learns from earlier trials (TPE), `random` samples at random, `grid` tries all combinations."""
    trials: int = 20
    """Trials of the search; `grid` has as many as there are combinations."""
    stops_early: bool = True
    """Stop trials that fall behind others at the same step (ASHA). False trains each to its end."""
    first_rung: float = 0.2
    """Share of the steps after which trials are first compared."""
    reduction: int = 3
    """At each rung about one trial in this many continues."""
    seed: int = 0
    """Of the searcher and of every training of the search."""
    confirm_seeds: tuple[int, ...] = (101, 102, 103)
    """Seeds with which the best settings and the recipe's own are trained again; empty means no confirmation. With two
    of them the interval of the difference is 3.6 times as wide as with three."""
    workers: int = 0
    """Ray Train workers of each training; 0 trains inside its trial, which is fastest for small encoders."""
    concurrent: int = 0
    """Trainings at the same time; 0 means as many as the cluster has CPUs or GPUs for."""

    def __post_init__(self) -> None:
        names = [each.name for each in self.space]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"sweep.space has {', '.join(names) or 'nothing'}: expected one or more settings, each once."
            )
        if self.searcher == "grid" and any(not each.values for each in self.space):
            raise ValueError("sweep.searcher is grid, which needs a list of values for every setting of sweep.space.")
        if self.trials < 1 or self.reduction < 2 or not 0 < self.first_rung <= 1:
            raise ValueError(
                f"sweep.trials is {self.trials}, reduction {self.reduction}, first_rung {self.first_rung}: expected 1 "
                "or more, 2 or more, and a share above 0."
            )
        if self.seed in self.confirm_seeds:
            raise ValueError(f"sweep.confirm_seeds has {self.seed}, the search's own seed: expected others.")
