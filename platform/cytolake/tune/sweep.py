"""Search for the best settings of a training: Optuna proposes them, ASHA stops trials that fall behind.

A study, in contrast, shows what one setting does to each class, and stops nothing. Encoders are evaluated as in a
study; the score of a trial is the mean recall over classes. A trial trains from rung to rung with the schedule of its
whole run, so a stopped trial can continue as if it had never stopped.

The best of many trials is partly luck, so its settings and the recipe's own are trained again, with new seeds, and
compared on wells that the search did not use, seed by seed with an interval. Results of trials are stored in the
sweep's folder: a killed sweep passes them to Optuna and continues with the trials that were running; only ASHA starts
its comparisons anew.

Sources: Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning" (ASHA), arXiv:1810.05934; Akiba et al.
2019, "Optuna", doi:10.1145/3292500.3330701.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.packs.pack import Pack
from cytolake.tracking import TrackingConfig, start_run
from cytolake.train.config import PretrainConfig, run_key
from cytolake.train.pretrain import PretrainError, pretrain_until
from cytolake.tune.paired_seeds import PairedDifference, paired_difference
from cytolake.tune.search_space import (
    FIELD,
    Vary,
    check_effects,
    distribution,
    first_of,
    grid,
    trained_with,
)
from cytolake.tune.study_config import StudyConfig
from cytolake.tune.study_probe import StudyProbe, nested_probes, pin_study_probe
from cytolake.tune.sweep_config import SweepConfig
from cytolake.tune.sweep_ledger import Ledger, SweepTrial
from cytolake.tune.trade_offs import confusion_matrix, recall_of_classes
from cytolake.tune.trials import Results, Settings, run_calls, run_search, trial_resources

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Trials, the best settings, and their comparison with the recipe's own."""

    trials: list[SweepTrial]
    """Those that trained furthest first, then by score."""
    steps: int
    """Of a whole training."""
    n_ran: int
    """Trials of this call; the others had been stored."""
    changes: tuple[str, ...]
    """Arguments of `--set` that train with the best settings."""
    confirmed: tuple[float, ...]
    """Scores of the best settings with each of `confirm_seeds`."""
    of_recipe: tuple[float, ...]
    """The same of the recipe's own settings."""
    chance: float
    """Score of guessing."""
    is_nested: bool
    """The search did not use the wells of the confirmation."""

    @property
    def difference(self) -> PairedDifference | None:
        """Score of the best settings minus that of the recipe's own, seed by seed; None without a confirmation."""
        return paired_difference(self.confirmed, self.of_recipe) if self.confirmed else None

    @property
    def verdict(self) -> str:
        """Comparison of the best settings with the recipe's own, without a full stop; "" without a confirmation."""
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
    evaluation: StudyConfig,
    base: PretrainConfig,
    vary: Vary,
    tracking: TrackingConfig,
    progress: Progress | None = None,
) -> SweepResult:
    """Search, then train the best settings and the recipe's own again.

    Args:
        catalog: Where the pack's labels are.
        evaluation: How every encoder is evaluated: `label`, `split`, `split_seeds`, `block`, `crops`, `regularisation`.
        base: The recipe's training.
        vary: The same with some fields set.
        progress: Called as trials end.

    Raises:
        ValueError: A setting that the training does not have, or a label that the screen does not allow.
        PretrainError: No trial was trained to its end; with the reason of the first.
    """
    ranges = config.space
    base = dataclasses.replace(base, evaluate_every=None, seed=config.seed, workers=config.workers, min_workers=None)
    for each in ranges:  # a misspelt name stops the sweep here, not every trial
        trained_with(first_of(each), vary, base)
    check_effects(ranges, vary, base, pack)
    whole_probe = pin_study_probe(catalog, pack, evaluation)
    nested = nested_probes(whole_probe)
    probe, confirmation = nested or (whole_probe, whole_probe)
    steps = math.ceil(base.n_samples(pack.n_crops) / base.minibatch_size)
    rungs = rungs_of(steps, config)
    runs_root, tracking = catalog.root / "runs", tracking.at(catalog.root)
    ledger = Ledger(runs_root / "sweeps" / _sweep_key(pack, config, probe, base, nested is not None))
    known = ledger.ended()
    total = len(grid(ranges)) if config.searcher == "grid" else config.trials
    if progress is not None:
        progress("trials", len(known), total)
    with start_run(tracking, "sweep", params={name: str(value) for name, value in asdict(config).items()}) as run:
        training = _TrialTraining(pack.path, base, vary, probe, tuple(rungs), runs_root, tracking, run.run_id)
        if len(known) < total:
            _search(training, config, ledger, total, progress)
        trials = sorted(ledger.ended(), key=lambda trial: (-trial.step, -trial.score))
        whole = [trial for trial in trials if trial.step == steps and not trial.failure]
        if not whole:
            why = next((trial.failure for trial in trials if trial.failure), "none was")
            raise PretrainError(f"no trial of the sweep was trained to its end: {why}")
        again = _confirm(dataclasses.replace(training, probe=confirmation), config, whole[0].settings, progress)
        run.log_metrics({"best_score": whole[0].score, "trials": len(trials)})
    half = len(config.confirm_seeds)
    return SweepResult(
        trials=[*whole, *(trial for trial in trials if trial not in whole)],
        steps=steps,
        n_ran=len(trials) - len(known),
        changes=_changes(base, trained_with(whole[0].settings, vary, base)),
        confirmed=tuple(again[:half]),
        of_recipe=tuple(again[half:]),
        chance=1 / len(confirmation.classes),
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
class _TrialTraining:
    """Trains and evaluates one trial, in any process."""

    pack_path: Path
    base: PretrainConfig
    vary: Vary
    probe: StudyProbe
    rungs: tuple[int, ...]
    runs_root: Path
    tracking: TrackingConfig
    sweep_run: str

    def __call__(self, settings: Settings, n_steps: int) -> dict[str, Any]:
        """Train to the next rung. A failed training scores 0 and ends: one bad proposal must not end the search."""
        step = self.rungs[n_steps]
        try:
            score, failure = self.score(settings, step), ""
        except (PretrainError, ValueError, MemoryError) as error:
            score, failure = 0.0, str(error)
        return {"score": score, "step": step, "failure": failure, "done": bool(failure) or step == self.rungs[-1]}

    def score(self, settings: Settings, step: int, seed: int | None = None) -> float:
        """Train up to a step, and return the mean recall over classes."""
        training = trained_with(settings, self.vary, self.base)
        if seed is not None:
            training = dataclasses.replace(training, seed=seed)
        tags = {"mlflow.parentRunId": self.sweep_run, **{f"sweep.{name}": str(v) for name, v in settings.items()}}
        encoder = pretrain_until(self.pack_path, training, self.runs_root, self.tracking, step, tags)
        label, predicted = self.probe.predict(self.probe.vectors(encoder))
        return float(recall_of_classes(confusion_matrix(label, predicted, len(self.probe.classes))).mean())


def _search(
    training: _TrialTraining, config: SweepConfig, ledger: Ledger, total: int, progress: Progress | None
) -> None:
    import optuna
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known, waiting = ledger.ended(), ledger.interrupted()
    if config.searcher == "grid":
        ended = [trial.settings for trial in known]
        waiting = [point for point in grid(config.space) if point not in ended]
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.TPESampler(seed=config.seed + len(known), constant_liar=True, multivariate=True)
        if config.searcher == "optuna"
        else optuna.samplers.RandomSampler(seed=config.seed + len(known))
    )
    searcher = OptunaSearch(
        space={each.name: distribution(each, training.base) for each in config.space},
        metric="score",
        mode="max",
        points_to_evaluate=waiting or None,
        sampler=sampler,
    )
    for trial in known:
        searcher.add_evaluated_point(trial.settings, trial.score)
    n_done = len(known)

    def end(settings: Settings, results: Results) -> None:
        nonlocal n_done
        scores = {result["step"]: result["score"] for result in results if not result["failure"]}
        ledger.end(SweepTrial(settings, scores, "".join(result["failure"] for result in results)))
        n_done += 1
        if progress is not None:
            progress("trials", n_done, total)

    scheduler = None
    if len(training.rungs) > 1:
        scheduler = ASHAScheduler(
            time_attr="step",
            max_t=training.rungs[-1],
            grace_period=training.rungs[0],
            reduction_factor=config.reduction,
        )
    resources, concurrent = trial_resources(training.base, config.concurrent)
    run_search(
        training,
        [each.name for each in config.space],
        searcher,
        n_trials=total - len(known),
        scheduler=scheduler,
        name="sweep",
        storage=training.runs_root / "tune",
        resources=resources,
        concurrent=concurrent,
        on_begin=ledger.begin,
        on_end=end,
    )


def _confirm(training: _TrialTraining, config: SweepConfig, best: Settings, progress: Progress | None) -> list[float]:
    """Scores of the best settings, then of the recipe's own, with each seed of `confirm_seeds`."""
    calls = [
        (training.score, (settings, training.rungs[-1], seed))
        for settings in (best, {})
        for seed in config.confirm_seeds
    ]
    if not calls:
        return []
    n_done = 0

    def count(number: int) -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress("confirm", n_done, len(calls))

    resources, concurrent = trial_resources(training.base, config.concurrent)
    return run_calls(
        calls,
        name="sweep_confirmation",
        storage=training.runs_root / "tune",
        resources=resources,
        concurrent=concurrent,
        on_done=count,
    )


def _changes(base: PretrainConfig, best: PretrainConfig) -> tuple[str, ...]:
    """Fields that differ, as arguments of `--set`."""

    def differing(ours: Any, theirs: Any, path: str) -> list[str]:
        found = []
        for field in dataclasses.fields(ours):
            one, other = getattr(ours, field.name), getattr(theirs, field.name)
            if dataclasses.is_dataclass(one) and type(one) is type(other):
                found += differing(one, other, f"{path}{field.name}.")
            elif one != other:
                found.append(f"{path}{field.name}={other if isinstance(other, str) else json.dumps(other)}")
        return found

    return tuple(differing(base, best, FIELD))


def _sweep_key(pack: Pack, config: SweepConfig, probe: StudyProbe, base: PretrainConfig, is_nested: bool) -> str:
    """Names the folder of a sweep: a sweep of more trials, or more at once, continues from the stored ones."""
    searched = {
        name: value
        for name, value in asdict(config).items()
        if name not in ("trials", "confirm_seeds", "workers", "concurrent")
    }
    parts = (pack.pack_id, probe.key, json.dumps(searched), run_key(pack.pack_id, base), str(is_nested))
    return content_id(*parts)[:16]
