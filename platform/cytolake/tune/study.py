"""A study of augmentations: objectives x knobs x strengths x seeds, all else fixed, at equal budget.

Nothing is stopped early: a class that a transform helps only late would seem harmed. Each training is a trial of Ray
    Tune
and an MLflow run under the study's; a training without workers of its own runs inside its trial. The evaluation of a
trial is stored in its run's folder, so a study that was killed continues and trains nothing twice; strength 0 of all
knobs is one and the same training.

Source: Bendidi et al. 2023, "No Free Lunch in Self-Supervised Representation Learning", arXiv:2304.11718.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.models.augment.knobs import KNOBS
from cytolake.packs.pack import Pack
from cytolake.tracking import TrackingConfig, start_run
from cytolake.train.config import PretrainConfig, with_vocabulary
from cytolake.train.knobs_without_effect import changes_input, crops_to_compare, why_without_effect
from cytolake.train.pretrain import PretrainError, finished_run, pretrain
from cytolake.train.run_folder import write_json
from cytolake.tune.study_config import MASK_RATIO, StudyConfig
from cytolake.tune.study_probe import StudyProbe, pin_study_probe
from cytolake.tune.trade_offs import TradeOffs, recall_of_classes, trade_offs
from cytolake.tune.trials import run_calls, trial_resources

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyTrial:
    """One training of a study."""

    objective: str
    knob: str
    strength: float
    seed: int
    pretrain: PretrainConfig


@dataclass(frozen=True, slots=True)
class StudyCurve:
    """One objective and knob: every class over the strengths."""

    objective: str
    knob: str
    strengths: tuple[float, ...]
    accuracy: NDArray[np.float64]
    """(S, R) mean recall over classes."""
    effects: TradeOffs
    agreement: dict[str, NDArray[np.float64]]
    """(S, R) adjusted mutual information of clusters and each labelling."""


@dataclass(frozen=True, slots=True)
class StudyResult:
    """Curves of a study, and its cost."""

    curves: list[StudyCurve]
    classes: tuple[str, ...]
    n_trials: int
    """Different trainings."""
    n_trained: int
    """Trained by this call; the others had been stored."""
    seconds: float
    """Wall time of this call."""
    trial_seconds: float
    """Sum of the trainings of this call, each alone."""
    skipped: dict[str, str]
    """Knobs that an objective or model cannot take, and why."""


def study_trials(
    config: StudyConfig, base: PretrainConfig, pack: Pack | None = None
) -> tuple[list[StudyTrial], dict[str, str]]:
    """Every trial, strength 0 of each knob included, and what is skipped and why.

    Skipped are knobs that an objective or model does not take, that do not change the input of its encoder, or that
        have fewer than three different settings among the strengths: a curve needs three, and one training that stood
        for several strengths would count its luck several times.

    Args:
        base: All else.
        pack: Whose crops show whether a knob changes anything; None means random crops.
    """
    trials: list[StudyTrial] = []
    skipped: dict[str, str] = {}
    base = dataclasses.replace(base, workers=config.workers, min_workers=None, evaluate_every=None)
    model = with_vocabulary(base).model
    crops = crops_to_compare(model, pack)
    for objective in config.objectives:
        try:
            trained = dataclasses.replace(base, objective=dataclasses.replace(base.objective, name=objective))  # type: ignore[arg-type]
        except ValueError as error:  # a masked autoencoder of a ResNet
            skipped[objective] = str(error)
            continue
        for knob in config.knobs:
            name = f"{objective}, {knob}"
            if knob == MASK_RATIO and objective != "mae":
                skipped[name] = "only the masked autoencoder masks"
                continue
            varied: dict[float, PretrainConfig] = {}
            for strength in config.strengths:
                try:
                    training = _varied(trained, knob, strength)
                except ValueError as error:
                    skipped[f"{name} {strength:g}"] = str(error)
                    continue
                if training not in varied.values():
                    varied[strength] = training
            if len(varied) < 3:
                skipped[name] = f"has {len(varied)} different settings at these strengths, and a curve needs three"
                continue
            off, strongest = (varied[strength].augment for strength in (min(varied), max(varied)))
            if knob != MASK_RATIO and not changes_input(model, off, strongest, crops, trained.objective):
                skipped[name] = why_without_effect(knob, model, trained.objective)
                continue
            trials += [
                StudyTrial(
                    objective=objective,
                    knob=knob,
                    strength=strength,
                    seed=seed,
                    pretrain=dataclasses.replace(training, seed=seed),
                )
                for strength, training in varied.items()
                for seed in config.seeds
            ]
    return trials, skipped


def _varied(base: PretrainConfig, knob: str, strength: float) -> PretrainConfig:
    if knob == MASK_RATIO:
        mae = dataclasses.replace(base.objective.mae, mask_ratio=strength)
        return dataclasses.replace(base, objective=dataclasses.replace(base.objective, mae=mae))
    return dataclasses.replace(base, augment=KNOBS[knob](strength, base.augment))


def run_study(
    catalog: Catalog,
    pack: Pack,
    config: StudyConfig,
    base: PretrainConfig,
    tracking: TrackingConfig,
    progress: Progress | None = None,
) -> StudyResult:
    """Train what is missing, evaluate every encoder in the same way, and test which classes each knob improves and
    worsens.

    Raises:
        PretrainError: A trial failed. Finished trials are stored, and the same command continues from them.
        ValueError: A label or split that the screen does not allow.
    """
    started = time.monotonic()
    runs_root = catalog.root / "runs"
    tracking = tracking.at(catalog.root)
    trials, skipped = study_trials(config, base, pack)
    probe = pin_study_probe(catalog, pack, config)
    distinct = list({trial.pretrain: trial for trial in trials}.values())
    todo = [trial for trial in distinct if _stored_evaluation(pack, trial, runs_root, probe) is None]
    if progress is not None:
        progress("trials", len(distinct) - len(todo), len(distinct))
    spent = _run(pack, todo, probe, runs_root, tracking, config, len(distinct), progress) if todo else 0.0
    evaluations = {}
    for trial in distinct:
        evaluation = _stored_evaluation(pack, trial, runs_root, probe)
        if evaluation is None:
            raise PretrainError(f"trial {_name(trial)} ended without an evaluation. Run the same command again.")
        evaluations[trial.pretrain] = evaluation
    return StudyResult(
        curves=_curves(trials, evaluations, probe.classes, config),
        classes=probe.classes,
        n_trials=len(distinct),
        n_trained=len(todo),
        seconds=time.monotonic() - started,
        trial_seconds=spent,
        skipped=skipped,
    )


def _name(trial: StudyTrial) -> str:
    return f"{trial.objective}, {trial.knob} {trial.strength:g}, seed {trial.seed}"


def _stored_evaluation(pack: Pack, trial: StudyTrial, runs_root: Path, probe: StudyProbe) -> dict[str, Any] | None:
    finished = finished_run(pack.pack_id, trial.pretrain, runs_root)
    path = None if finished is None else finished.run_folder / f"study_{probe.key}.json"
    if path is None or not path.is_file():
        return None
    evaluation: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return evaluation


def train_and_evaluate(
    pack_path: Path,
    trial: StudyTrial,
    probe: StudyProbe,
    runs_root: Path,
    tracking: TrackingConfig,
    study_run: str,
) -> float:
    """One trial: train, or read back a finished training; evaluate; store the evaluation. Returns seconds."""
    started = time.monotonic()
    tags = {
        "mlflow.parentRunId": study_run,
        "study.objective": trial.objective,
        "study.knob": trial.knob,
        "study.strength": f"{trial.strength:g}",
    }
    result = pretrain(pack_path, trial.pretrain, runs_root, tracking, tags=tags)
    write_json(result.run_folder / f"study_{probe.key}.json", probe.evaluate(result.checkpoint))
    return time.monotonic() - started


def _run(
    pack: Pack,
    todo: Sequence[StudyTrial],
    probe: StudyProbe,
    runs_root: Path,
    tracking: TrackingConfig,
    config: StudyConfig,
    n_trials: int,
    progress: Progress | None,
) -> float:
    """Run the trials on the cluster; returns the sum of their own seconds."""
    n_done = n_trials - len(todo)

    def count(number: int) -> None:
        nonlocal n_done
        n_done += 1
        if progress is not None:
            progress("trials", n_done, n_trials)

    resources, concurrent = trial_resources(todo[0].pretrain, config.concurrent)
    with start_run(tracking, "study", params={k: str(v) for k, v in asdict(config).items()}) as run:
        seconds: list[float] = run_calls(
            [(train_and_evaluate, (pack.path, trial, probe, runs_root, tracking, run.run_id)) for trial in todo],
            name="study",
            storage=runs_root / "tune",
            resources=resources,
            concurrent=concurrent,
            on_done=count,
        )
        run.log_metrics({"trials": len(todo), "trial_seconds": sum(seconds)})
    return sum(seconds)


def _curves(
    trials: Sequence[StudyTrial],
    evaluations: dict[PretrainConfig, dict[str, Any]],
    classes: tuple[str, ...],
    config: StudyConfig,
) -> list[StudyCurve]:
    curves = []
    for objective, knob in dict.fromkeys((trial.objective, trial.knob) for trial in trials):
        of_curve = [trial for trial in trials if (trial.objective, trial.knob) == (objective, knob)]
        strengths = tuple(sorted({trial.strength for trial in of_curve}))
        by_place = {(trial.strength, trial.seed): evaluations[trial.pretrain] for trial in of_curve}
        by_value = [[by_place[strength, seed] for seed in config.seeds] for strength in strengths]
        recall = np.array([[recall_of_classes(np.array(a["confusion"])) for a in row] for row in by_value])
        names = by_value[0][0]["agreement"]
        curves.append(
            StudyCurve(
                objective=objective,
                knob=knob,
                strengths=strengths,
                accuracy=recall.mean(axis=2),
                effects=trade_offs(strengths, recall, classes, config.level),
                agreement={
                    name: np.array([[a["agreement"][name]["ami"] for a in row] for row in by_value]) for name in names
                },
            )
        )
    return curves
