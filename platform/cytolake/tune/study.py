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

from cytolake.benchmark.linear_probe import ProbeConfig, linear_probe, make_splits
from cytolake.benchmark.probe_data import ProbeData, label_crops
from cytolake.benchmark.split import SplitBy, classes_in_both
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.embed.extract import embed_rows
from cytolake.models import load_encoder
from cytolake.models.augment.knobs import KNOBS
from cytolake.packs.pack import Pack
from cytolake.tracking import TrackingConfig, start_run
from cytolake.train.config import PretrainConfig
from cytolake.train.pretrain import PretrainError, finished_run, pretrain
from cytolake.tune.clusterings import cluster_agreement, terciles
from cytolake.tune.trade_offs import TradeOffs, confusion_matrix, recall_of_classes, trade_offs

Progress = Callable[[str, int, int], None]

MASK_RATIO = "mask_ratio"
"""A knob of the masked autoencoder alone; its strength is the ratio."""
DENSITY = "foreground"
"""Tercile of the share of a crop that is foreground."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """What is varied, and what is asked of every encoder."""

    objectives: tuple[str, ...] = ("mae", "simclr", "vicreg")
    """Self-supervised objectives, as `pretrain.objective.name`."""
    knobs: tuple[str, ...] = ("crop_scale", "gamma")
    """Knobs of `cytolake.models.augment.knobs.KNOBS`, varied one at a time on the recipe's augmentations."""
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Three or more, increasing, from 0 (off) to 1."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds."""
    label: str = "perturbation"
    """Column of `wells` whose classes are told apart."""
    split: SplitBy = "plate"
    split_seeds: tuple[int, ...] = (0, 1)
    """Splits; their test parts are counted in one confusion matrix."""
    nuisances: tuple[str, ...] = ("plate", "batch")
    """Further columns of `wells` that clusters are compared with."""
    block: int = -1
    """Block whose mean pooling is asked, -1 = last: one and the same in all trials."""
    crops: int = 1500
    """Crops that every encoder is asked about, drawn once."""
    regularisation: float = 0.01
    """Inverse strength of the probes' penalty."""
    workers: int = 0
    """Ray Train workers of each training; 0 trains inside its trial, which is quickest for small encoders."""
    concurrent: int = 0
    """Trainings at the same time; 0 means as many as the cluster has CPUs or GPUs for."""
    level: float = 0.05
    """False discovery rate of effects on classes."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.knobs) - set(KNOBS) - {MASK_RATIO})
        if unknown or not self.knobs:
            raise ValueError(f"study.knobs has {', '.join(unknown) or 'none'}, expected some of {', '.join(KNOBS)}.")
        if len(self.strengths) < 3 or list(self.strengths) != sorted(set(self.strengths)):
            raise ValueError(f"study.strengths is {self.strengths}, expected three or more, increasing.")
        if self.strengths[0] < 0 or self.strengths[-1] > 1:
            raise ValueError(f"study.strengths is {self.strengths}, expected numbers from 0 to 1.")
        for name in ("objectives", "seeds", "split_seeds"):
            if not getattr(self, name):
                raise ValueError(f"study.{name} is empty, expected one or more.")


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


def study_trials(config: StudyConfig, base: PretrainConfig) -> tuple[list[StudyTrial], dict[str, str]]:
    """Every trial, strength 0 of each knob included, and what cannot be tried.

    Args:
        config: What is varied.
        base: All else.
    """
    trials: list[StudyTrial] = []
    skipped: dict[str, str] = {}
    base = dataclasses.replace(base, workers=config.workers, min_workers=None, evaluate_every=None)
    for objective in config.objectives:
        try:
            trained = dataclasses.replace(base, objective=dataclasses.replace(base.objective, name=objective))  # type: ignore[arg-type]
        except ValueError as error:  # a masked autoencoder of a ResNet
            skipped[objective] = str(error)
            continue
        for knob in config.knobs:
            if knob == MASK_RATIO and objective != "mae":
                skipped[f"{objective}, {knob}"] = "only the masked autoencoder masks"
                continue
            for strength in config.strengths:
                try:
                    varied = _varied(trained, knob, strength)
                except ValueError as error:
                    skipped[f"{objective}, {knob} {strength:g}"] = str(error)
                    continue
                trials += [
                    StudyTrial(
                        objective=objective,
                        knob=knob,
                        strength=strength,
                        seed=seed,
                        pretrain=dataclasses.replace(varied, seed=seed),
                    )
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
    """Train what is missing, ask every encoder the same, and say which classes each knob helps and harms.

    Raises:
        PretrainError: A trial failed. The others are kept, and the same command goes on from them.
        ValueError: A label or split that the screen does not allow.
    """
    started = time.monotonic()
    runs_root = catalog.root / "runs"
    tracking = tracking.at(catalog.root)
    trials, skipped = study_trials(config, base)
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


@dataclass(frozen=True, slots=True)
class Questions:
    """What every encoder is asked: needs the pack and no catalog, so any process can ask."""

    pack_path: Path
    rows: NDArray[np.int64]
    """Of the pack, in the order of `data.crop_ids`."""
    data: ProbeData
    tests: list[NDArray[np.bool_]]
    """(W,) wells held out, of each split."""
    labels: dict[str, NDArray[np.intp]]
    """(N,) codes that clusters are compared with."""
    classes: tuple[str, ...]
    """Names of the classes that every split has in both parts."""
    config: StudyConfig

    @property
    def key(self) -> str:
        """Changes with anything asked: answers of another key do not count."""
        names = ("label", "split", "split_seeds", "nuisances", "block", "crops", "regularisation")
        asked = {name: getattr(self.config, name) for name in names}
        return content_id(json.dumps(asked), *self.classes, *self.data.crop_ids)[:16]

    def __call__(self, encoder_path: Path) -> dict[str, Any]:
        """`label` and `told` class of every crop in a test part, their `confusion` (K, K) over all splits, and `ami`,
        `nmi`, `ari` for each labelling."""
        vectors = self.vectors(encoder_path)
        label, told = self.told(vectors)
        agreement = cluster_agreement(vectors, self.labels, restarts=20, seeds=(0,))
        return {
            "label": label.tolist(),
            "told": told.tolist(),
            "confusion": confusion_matrix(label, told, len(self.classes)).tolist(),
            "agreement": {name: asdict(each) for name, each in agreement.items()},
        }

    def vectors(self, encoder_path: Path) -> NDArray[np.float32]:
        """(N, D) of the crops that are asked about."""
        pack = Pack.open(self.pack_path)
        return np.asarray(embed_rows(load_encoder(encoder_path), pack, self.rows)[self.config.block])

    def told(self, vectors: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """True and told class (positions in `classes`) of every crop in a test part, one split after the other."""
        code = {self.data.classes.index(name): k for k, name in enumerate(self.classes)}
        label = np.array([code.get(int(c), -1) for c in self.data.label_of_well[self.data.well_of_crop]], dtype=np.intp)
        parts = []
        for is_test_W in self.tests:
            is_test = is_test_W[self.data.well_of_crop]
            train, test = np.flatnonzero((label >= 0) & ~is_test), np.flatnonzero((label >= 0) & is_test)
            probe = linear_probe(vectors[train], label[train], regularisation=self.config.regularisation)
            parts.append((label[test], probe.classes[probe.logits(vectors[test]).argmax(axis=1)]))
        return np.concatenate([true for true, _ in parts]), np.concatenate([told for _, told in parts])


def pin_questions(catalog: Catalog, pack: Pack, config: StudyConfig) -> Questions:
    """Draw the crops by their ids alone, so that every trial of every study with this pack is asked about the same.

    Raises:
        ValueError: A label or a split that these crops do not allow.
    """
    crop_ids = pack.index.column("crop_id").to_pylist()
    drawn = np.argsort([content_id("study", crop_id) for crop_id in crop_ids], kind="stable")
    crops = pack.index.select(["crop_id", "well_id"]).take(np.sort(drawn[: config.crops]))
    what = f"pack {pack.pack_id}"
    data = label_crops(catalog, crops, config.label, include_controls=False, what=what)
    probe = ProbeConfig(label=config.label, split=config.split, seeds=config.split_seeds, bootstrap_draws=1)
    tests = [split.is_test for split in make_splits(data, probe)]
    shared = set(range(len(data.classes)))
    for is_test in tests:
        shared &= set(classes_in_both(data.label_of_well, is_test).tolist())
    if len(shared) < 2:
        raise ValueError(
            f"{what}: {len(shared)} classes of {config.label} are in both parts of every split, expected two or more. "
            "Raise study.crops, or take another study.label or study.split."
        )
    labels = {config.label: data.label_of_well[data.well_of_crop]}
    for name in config.nuisances:
        try:
            other = label_crops(catalog, crops, name, include_controls=True, what=what)
        except ValueError:
            continue  # one plate or batch: nothing to compare with
        labels[name] = other.label_of_well[other.well_of_crop]
    labels[DENSITY] = terciles(_foreground(catalog, data.crop_ids))
    return Questions(
        pack_path=pack.path,
        rows=pack.rows_of(data.crop_ids),
        data=data,
        tests=tests,
        labels=labels,
        classes=tuple(name for k, name in enumerate(data.classes) if k in shared),
        config=config,
    )


def _foreground(catalog: Catalog, crop_ids: Sequence[str]) -> NDArray[np.float64]:
    table = catalog.table("crops", columns=["crop_id", "foreground_share"])
    share = dict(zip(table["crop_id"].to_pylist(), table["foreground_share"].to_pylist(), strict=True))
    return np.array([np.nan if share.get(c) is None else share[c] for c in crop_ids], dtype=float)


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
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(answers), encoding="utf-8")
    unfinished.replace(path)
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
        if len(strengths) < 3:
            continue
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
