"""A study of augmentations: objectives x knobs x strengths x seeds, all else fixed, at equal budget.

Nothing is stopped early: a class that a transform helps late would look harmed. Each training is a trial of Ray Tune
and an MLflow run under the study's; where a training uses no worker of its own it runs inside its trial, in an actor
that takes one trial after another. What a trial found lies in its run's folder, so a study that was killed goes on and
trains nothing twice; strength 0 of all knobs is one and the same training.

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
from cytolake.storage.atomic_write import write_text
from cytolake.tracking import TrackingConfig, start_run
from cytolake.train.config import PretrainConfig, with_vocabulary
from cytolake.train.knobs_without_effect import changes_input, crops_to_compare, why_without_effect
from cytolake.train.pretrain import PretrainError, finished_run, pretrain
from cytolake.tune.questions import Questions, pin_questions
from cytolake.tune.study_config import MASK_RATIO, StudyConfig
from cytolake.tune.trade_offs import TradeOffs, recall_of_classes, trade_offs

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
    """What a study found."""

    curves: list[StudyCurve]
    classes: tuple[str, ...]
    n_trials: int
    """Different trainings."""
    n_trained: int
    """Trained by this call; the others were there."""
    seconds: float
    """Wall time of this call."""
    trial_seconds: float
    """Sum of the trainings of this call, each alone."""
    skipped: dict[str, str]
    """Knobs that an objective or model cannot take, and why."""


def study_trials(
    config: StudyConfig, base: PretrainConfig, pack: Pack | None = None
) -> tuple[list[StudyTrial], dict[str, str]]:
    """Every trial, strength 0 of each knob included, and what is not tried and why.

    Not tried are knobs that an objective or model does not take, that change nothing which its encoder gets, or that
    have fewer than three different settings among the strengths: a curve needs three, and one training that counted as
    several strengths would count its luck several times.

    Args:
        config: What is varied.
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
    """Train what is missing, evaluate every encoder alike, and say which classes each knob improves and worsens.

    Raises:
        PretrainError: A trial failed. The others are kept, and the same command goes on from them.
        ValueError: A label or split that the screen does not allow.
    """
    started = time.monotonic()
    runs_root = catalog.root / "runs"
    tracking = tracking.at(catalog.root)
    trials, skipped = study_trials(config, base, pack)
    questions = pin_questions(catalog, pack, config)
    distinct = list({trial.pretrain: trial for trial in trials}.values())
    todo = [trial for trial in distinct if _answers(pack, trial, runs_root, questions) is None]
    if progress is not None:
        progress("trials", len(distinct) - len(todo), len(distinct))
    spent = _run(pack, todo, questions, runs_root, tracking, config, len(distinct), progress) if todo else 0.0
    found = {}
    for trial in distinct:
        answers = _answers(pack, trial, runs_root, questions)
        if answers is None:
            raise PretrainError(f"trial {_name(trial)} ended without answers. Run the same command again.")
        found[trial.pretrain] = answers
    return StudyResult(
        curves=_curves(trials, found, questions.classes, config),
        classes=questions.classes,
        n_trials=len(distinct),
        n_trained=len(todo),
        seconds=time.monotonic() - started,
        trial_seconds=spent,
        skipped=skipped,
    )


def _name(trial: StudyTrial) -> str:
    return f"{trial.objective}, {trial.knob} {trial.strength:g}, seed {trial.seed}"


def _answers(pack: Pack, trial: StudyTrial, runs_root: Path, questions: Questions) -> dict[str, Any] | None:
    finished = finished_run(pack.pack_id, trial.pretrain, runs_root)
    path = None if finished is None else finished.run_folder / f"study_{questions.key}.json"
    if path is None or not path.is_file():
        return None
    answers: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return answers


def train_and_ask(
    pack_path: Path,
    trial: StudyTrial,
    questions: Questions,
    runs_root: Path,
    tracking: TrackingConfig,
    study_run: str,
) -> float:
    """One trial: train or read back, ask, keep the answers; returns the seconds it took."""
    started = time.monotonic()
    tags = {
        "mlflow.parentRunId": study_run,
        "study.objective": trial.objective,
        "study.knob": trial.knob,
        "study.strength": f"{trial.strength:g}",
    }
    result = pretrain(pack_path, trial.pretrain, runs_root, tracking, tags=tags)
    answers = questions(result.checkpoint)
    path = result.run_folder / f"study_{questions.key}.json"
    write_text(path, json.dumps(answers))
    return time.monotonic() - started


def _run(
    pack: Pack,
    todo: Sequence[StudyTrial],
    questions: Questions,
    runs_root: Path,
    tracking: TrackingConfig,
    config: StudyConfig,
    n_trials: int,
    progress: Progress | None,
) -> float:
    """Run the trials on the cluster; returns the sum of their own seconds."""
    from cytolake.tune.trials import run_trials

    done = n_trials - len(todo)

    def told(n_done: int) -> None:
        if progress is not None:
            progress("trials", done + n_done, n_trials)

    with start_run(tracking, "study", params={k: str(v) for k, v in asdict(config).items()}) as run:
        calls = [(train_and_ask, (pack.path, trial, questions, runs_root, tracking, run.run_id)) for trial in todo]
        seconds = run_trials(calls, [trial.pretrain for trial in todo], runs_root / "tune", config.concurrent, told)
        run.log_metrics({"trials": len(todo), "trial_seconds": sum(seconds)})
    return sum(seconds)


def _curves(
    trials: Sequence[StudyTrial],
    found: dict[PretrainConfig, dict[str, Any]],
    classes: tuple[str, ...],
    config: StudyConfig,
) -> list[StudyCurve]:
    curves = []
    for objective, knob in dict.fromkeys((trial.objective, trial.knob) for trial in trials):
        of_curve = [trial for trial in trials if (trial.objective, trial.knob) == (objective, knob)]
        strengths = tuple(sorted({trial.strength for trial in of_curve}))
        by_place = {(trial.strength, trial.seed): found[trial.pretrain] for trial in of_curve}
        answers = [[by_place[strength, seed] for seed in config.seeds] for strength in strengths]
        recall = np.array([[recall_of_classes(np.array(a["confusion"])) for a in row] for row in answers])
        names = answers[0][0]["agreement"]
        curves.append(
            StudyCurve(
                objective=objective,
                knob=knob,
                strengths=strengths,
                accuracy=recall.mean(axis=2),
                effects=trade_offs(strengths, recall, classes, config.level),
                agreement={
                    name: np.array([[a["agreement"][name]["ami"] for a in row] for row in answers]) for name in names
                },
            )
        )
    return curves
