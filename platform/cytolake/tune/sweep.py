"""A search for the best settings of a training: Optuna proposes them, ASHA stops early what falls behind.

For one who wants the best encoder; one who wants to know what a setting does to which class makes a study, which stops
nothing. Every encoder is evaluated as in a study; a trial's score is the mean recall of classes. A trial trains from
rung to rung with the schedule of its whole run, so what was stopped could go on as if it never had.

The best of many is partly luck, so its settings and the recipe's own are trained again, with seeds that the search has
not seen, and compared on wells that it has not used, seed by seed with an interval. What each trial found is kept in
the sweep's folder: a sweep that was killed gives Optuna what is known and goes on with the trials that ran; only ASHA
begins to compare anew.

Sources: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA), arXiv:1810.05934; Akiba et al.
2019, "Optuna", doi:10.1145/3292500.3330701.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.packs.pack import Pack
from cytolake.tracking import TrackingConfig, start_run
from cytolake.train.config import PretrainConfig, run_key
from cytolake.train.pretrain import PretrainError, pretrain_until
from cytolake.tune.paired_seeds import PairedDifference, paired_difference
from cytolake.tune.questions import Questions, nested_questions, pin_questions
from cytolake.tune.search_space import (
    FIELD,
    Range,
    Settings,
    Vary,
    check_effects,
    distribution,
    first_of,
    grid,
    trained_with,
)
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.sweep_ledger import Ledger, SweepTrial
from cytolake.tune.trade_offs import confusion_matrix, recall_of_classes
from cytolake.tune.trials import resources_of_trial, run_trials

Progress = Callable[[str, int, int], None]
Searcher = Literal["optuna", "random", "grid"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepConfig:
    """What is searched, how, and how long."""

    space: tuple[str, ...] = (
        "pretrain.learning_rate=3e-4..1e-2 log",
        "pretrain.objective.mae.mask_ratio=0.5|0.75|0.9",
        "knob.gamma=0..1",
        "knob.crop_scale=0..1",
    )
    """Settings with their values: `name=low..high`, with ` log` behind it for a logarithmic range, or `name=one|other`.
    `pretrain.` and a field as in `--set`, or `knob.` and an augmentation's name, whose strength is 0 to 1."""
    searcher: Searcher = "optuna"
    """`optuna` learns from the trials before (TPE), `random` does not, `grid` tries every choice with every other."""
    trials: int = 20
    """Trials of the search; `grid` has as many as there are combinations."""
    stops_early: bool = True
    """Stop trials that fall behind others at the same step (ASHA). False trains each to its end."""
    first_rung: float = 0.2
    """Share of the steps after which trials are compared first."""
    reduction: int = 3
    """At each rung about one of this many goes on."""
    seed: int = 0
    """Of the searcher and of every training of the search."""
    confirm_seeds: tuple[int, ...] = (101, 102, 103)
    """Seeds with which the best settings and the recipe's own are trained again; empty: not at all. With two
    of them the interval of the difference is 3.6 times as wide as with three."""
    workers: int = 0
    """Ray Train workers of each training; 0 trains inside its trial, which is quickest for small encoders."""
    concurrent: int = 0
    """Trainings at the same time; 0 means as many as the cluster has CPUs or GPUs for."""

    def __post_init__(self) -> None:
        ranges = [Range.parse(text) for text in self.space]
        if not ranges or len({each.name for each in ranges}) < len(ranges):
            raise ValueError(f"sweep.space is {self.space}, expected one or more settings, each once.")
        if self.searcher == "grid" and any(not each.choices for each in ranges):
            raise ValueError("sweep.searcher is grid, which tries choices: expected name=one|other for every setting.")
        if self.trials < 1 or self.reduction < 2 or not 0 < self.first_rung <= 1:
            raise ValueError(
                f"sweep.trials is {self.trials}, reduction {self.reduction}, first_rung {self.first_rung}: expected 1 "
                "or more, 2 or more, and a share above 0."
            )
        if self.seed in self.confirm_seeds:
            raise ValueError(f"sweep.confirm_seeds has {self.seed}, the search's own seed: expected others.")

    @property
    def ranges(self) -> tuple[Range, ...]:
        """The settings of `space`."""
        return tuple(Range.parse(text) for text in self.space)


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What a search found."""

    trials: list[SweepTrial]
    """Those that went furthest first, then the best."""
    steps: int
    """Of a whole training."""
    n_ran: int
    """Trials of this call; the others were known."""
    changes: tuple[str, ...]
    """What `--set` takes to train with the best settings."""
    confirmed: tuple[float, ...]
    """Scores of the best settings with each of `confirm_seeds`."""
    of_recipe: tuple[float, ...]
    """The same of the recipe's own settings."""
    chance: float
    is_nested: bool
    """The search did not use the wells of the confirmation."""

    @property
    def difference(self) -> PairedDifference | None:
        """The best settings less the recipe's own, seed by seed; None without a confirmation."""
        return paired_difference(self.confirmed, self.of_recipe) if self.confirmed else None

    @property
    def verdict(self) -> str:
        """The best settings against the recipe's own, without a full stop; "" without a confirmation."""
        found = self.difference
        if found is None:
            return ""
        n = found.n_seeds
        evidence = (
            "the best settings are better than the recipe's own"
            if found.is_evident
            else "no evidence that the best settings are better than the recipe's own"
        )
        wells = "wells that the search did not use" if self.is_nested else "the wells of the search, which favours them"
        return f"{evidence}: difference {found} over {n} new seed{'' if n == 1 else 's'}, on {wells}"

    @property
    def best(self) -> SweepTrial:
        """The best of those that were trained to their end."""
        return self.trials[0]

    @property
    def steps_spent(self) -> int:
        """Optimiser steps of all trials of the search."""
        return sum(trial.step for trial in self.trials)


def run_sweep(
    catalog: Catalog,
    pack: Pack,
    config: SweepConfig,
    asked: StudyConfig,
    base: PretrainConfig,
    vary: Vary,
    tracking: TrackingConfig,
    progress: Progress | None = None,
) -> SweepResult:
    """Search, then train the best settings and the recipe's own again.

    Args:
        catalog: Where the pack's labels are.
        pack: What is trained on.
        config: The search.
        asked: How every encoder is evaluated: `label`, `split`, `split_seeds`, `block`, `crops`, `regularisation`.
        base: The recipe's training.
        vary: The same with some fields set.
        tracking: MLflow.
        progress: Called as trials are done.

    Raises:
        ValueError: A setting that the training does not have, or a label that the screen does not allow.
        PretrainError: No trial was trained to its end, with what the first of them said.
    """
    ranges = config.ranges
    base = dataclasses.replace(base, evaluate_every=None, seed=config.seed, workers=config.workers, min_workers=None)
    for each in ranges:  # a name that is misspelt stops here, not in every trial
        trained_with(first_of(each), vary, base)
    check_effects(ranges, vary, base, pack)
    whole_questions = pin_questions(catalog, pack, asked)
    nested = nested_questions(whole_questions)
    questions, to_confirm = nested or (whole_questions, whole_questions)
    steps = math.ceil(base.n_samples(pack.n_crops) / base.minibatch_size)
    rungs = rungs_of(steps, config)
    runs_root, tracking = catalog.root / "runs", tracking.at(catalog.root)
    ledger = Ledger(runs_root / "sweeps" / _sweep_key(pack, config, questions, base, nested is not None))
    known = ledger.ended()
    total = len(grid(ranges)) if config.searcher == "grid" else config.trials
    if progress is not None:
        progress("trials", len(known), total)
    with start_run(tracking, "sweep", params={name: str(value) for name, value in asdict(config).items()}) as run:
        job = _Job(pack.path, base, vary, questions, tuple(rungs), runs_root, tracking, run.run_id)
        if len(known) < total:
            _search(job, config, ledger, total, progress)
        trials = sorted(ledger.ended(), key=lambda trial: (-trial.step, -trial.score))
        whole = [trial for trial in trials if trial.step == steps and not trial.failure]
        if not whole:
            why = next((trial.failure for trial in trials if trial.failure), "none was")
            raise PretrainError(f"no trial of the sweep was trained to its end: {why}")
        again = _confirm(dataclasses.replace(job, questions=to_confirm), config, whole[0].settings, progress)
        run.log_metrics({"best_score": whole[0].score, "trials": len(trials)})
    half = len(config.confirm_seeds)
    return SweepResult(
        trials=[*whole, *(trial for trial in trials if trial not in whole)],
        steps=steps,
        n_ran=len(trials) - len(known),
        changes=_changes(base, trained_with(whole[0].settings, vary, base)),
        confirmed=tuple(again[:half]),
        of_recipe=tuple(again[half:]),
        chance=1 / len(to_confirm.classes),
        is_nested=nested is not None,
    )


def rungs_of(steps: int, config: SweepConfig) -> list[int]:
    """Steps after which trials are compared, ending with the whole training."""
    if not config.stops_early:
        return [steps]
    rungs = []
    step = max(1, round(steps * config.first_rung))
    while step < steps:
        rungs.append(step)
        step *= config.reduction
    return [*rungs, steps]


@dataclass(frozen=True, slots=True)
class _Job:
    """What every trial needs."""

    pack_path: Path
    base: PretrainConfig
    vary: Vary
    questions: Questions
    rungs: tuple[int, ...]
    runs_root: Path
    tracking: TrackingConfig
    sweep_run: str

    def score(self, settings: Settings, step: int, seed: int | None = None) -> float:
        """Train up to a step, ask, and give the mean recall of classes."""
        training = trained_with(settings, self.vary, self.base)
        if seed is not None:
            training = dataclasses.replace(training, seed=seed)
        tags = {"mlflow.parentRunId": self.sweep_run, **{f"sweep.{name}": str(v) for name, v in settings.items()}}
        encoder = pretrain_until(self.pack_path, training, self.runs_root, self.tracking, step, tags)
        label, told = self.questions.told(self.questions.vectors(encoder))
        return float(recall_of_classes(confusion_matrix(label, told, len(self.questions.classes))).mean())


def _search(job: _Job, config: SweepConfig, ledger: Ledger, total: int, progress: Progress | None) -> None:
    import optuna
    import ray
    from ray import tune
    from ray.tune import Callback
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known, to_resume = ledger.ended(), ledger.interrupted()
    names = [each.name for each in config.ranges]
    waiting = to_resume
    if config.searcher == "grid":
        done = [trial.settings for trial in known]
        waiting = [point for point in grid(config.ranges) if point not in done]
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.TPESampler(seed=config.seed + len(known), constant_liar=True, multivariate=True)
        if config.searcher == "optuna"
        else optuna.samplers.RandomSampler(seed=config.seed + len(known))
    )
    searcher = OptunaSearch(
        space={each.name: distribution(each, job.base) for each in config.ranges},
        metric="score",
        mode="max",
        points_to_evaluate=waiting or None,
        sampler=sampler,
    )
    for trial in known:
        searcher.add_evaluated_point(trial.settings, trial.score)
    reference = ray.put(job)

    class Trial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.settings, self.rung = {name: config[name] for name in names}, 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            job: _Job = ray.get(reference)
            step = job.rungs[self.rung]
            self.rung += 1
            try:
                score, failure = job.score(self.settings, step), ""
            except (PretrainError, ValueError, MemoryError) as error:
                score, failure = 0.0, str(error)  # one bad proposal must not end the search
            is_last = bool(failure) or step == job.rungs[-1]
            return {"score": score, "step": step, "failure": failure, "done": is_last}

        # A trial's checkpoints are its training's; Ray saves at the end all the same.
        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    class Recorded(Callback):
        def __init__(self) -> None:
            self.scores: dict[str, dict[int, float]] = {}
            self.failure: dict[str, str] = {}
            self.n_done = len(known)

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            ledger.begin({name: trial.config[name] for name in names})

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            if result["failure"]:
                self.failure[trial.trial_id] = result["failure"]
            else:
                self.scores.setdefault(trial.trial_id, {})[result["step"]] = result["score"]

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            settings = {name: trial.config[name] for name in names}
            scores, failure = self.scores.get(trial.trial_id, {}), self.failure.get(trial.trial_id, "")
            ledger.end(SweepTrial(settings, scores, failure))
            self.n_done += 1
            if progress is not None:
                progress("trials", self.n_done, total)

    scheduler = None
    if len(job.rungs) > 1:
        scheduler = ASHAScheduler(
            time_attr="step", max_t=job.rungs[-1], grace_period=job.rungs[0], reduction_factor=config.reduction
        )
    resources, at_once = resources_of_trial(job.base, config.concurrent)
    search_alg = ConcurrencyLimiter(searcher, max_concurrent=at_once) if at_once else searcher
    fitted = tune.Tuner(
        tune.with_resources(Trial, resources),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=search_alg,
            scheduler=scheduler,
            num_samples=total - len(known),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(job.runs_root / "tune"),
            verbose=0,
            callbacks=[Recorded()],
            failure_config=tune.FailureConfig(fail_fast=True),
        ),
    ).fit()
    for number in range(len(fitted)):
        error = fitted[number].error
        if error is not None:
            raise error


def _confirm(job: _Job, config: SweepConfig, best: Settings, progress: Progress | None) -> list[float]:
    """Scores of the best settings, then of the recipe's own, with each seed of `confirm_seeds`."""
    seeds = config.confirm_seeds
    if not seeds:
        return []
    calls = [(job.score, (settings, job.rungs[-1], seed)) for settings in (best, {}) for seed in seeds]

    def told(done: int) -> None:
        if progress is not None:
            progress("confirm", done, len(calls))

    return run_trials(calls, [job.base] * len(calls), job.runs_root / "tune", config.concurrent, told)


def _changes(base: PretrainConfig, best: PretrainConfig) -> tuple[str, ...]:
    """What differs, as `--set` takes it."""

    def differing(ours: Any, theirs: Any, path: str) -> list[str]:
        found = []
        for field in dataclasses.fields(ours):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            if dataclasses.is_dataclass(one) and type(one) is type(other):
                found += differing(one, other, f"{path}{field.name}.")
            elif one != other:
                spelled = other if isinstance(other, str) else json.dumps(other)
                found.append(f"{path}{field.name}={spelled}")
        return found

    return tuple(differing(base, best, FIELD))


def _sweep_key(pack: Pack, config: SweepConfig, questions: Questions, base: PretrainConfig, is_nested: bool) -> str:
    """Names the folder of a sweep: a sweep of more trials, or more at once, goes on from what is there."""
    searched = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("trials", "confirm_seeds", "workers", "concurrent")
    }
    return content_id(pack.pack_id, questions.key, json.dumps(searched), run_key(pack.pack_id, base), str(is_nested))[
        :16
    ]
