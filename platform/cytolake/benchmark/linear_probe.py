"""Linear probe: how well a linear map tells the labels of unseen plates from frozen vectors.

Source: the block search of Kraus et al. 2024 ("ViTally Consistent", arXiv 2411.02572): multinomial logistic regression,
balanced accuracy. Here whole plates or batches are held out.

Shapes: N training crops, M test crops, D features, K classes, W wells.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cytolake.benchmark.intervals import Interval, WellCounts, balanced_accuracy, bootstrap_over_wells
from cytolake.benchmark.probe_data import ProbeData, check_label, standardise_by_plate_controls
from cytolake.benchmark.split import SPLITS, Split, SplitBy, classes_in_both, hold_out_groups, hold_out_wells
from cytolake.catalog.ids import content_id

Align = Literal["none", "plate_controls"]
CROP_METRIC = "balanced_accuracy"
WELL_METRIC = "balanced_accuracy_wells"
METRICS = (CROP_METRIC, WELL_METRIC)
_INNER_STREAM = 1  # splits that choose the regularisation differ from those that are scored


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """What is predicted, from which wells, and how it is scored."""

    label: str = "perturbation"
    """Column of `wells` to predict."""
    split: SplitBy = "plate"
    """What is held out whole. `well` is for screens with too few plates, and reads higher."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One split for each; distinct as long as there are distinct ones."""
    held_out_share: float = 0.25
    """Share of the plates, batches or wells in the test part; at least one."""
    include_controls: bool = False
    """Count negative-control wells as a class."""
    align: Align = "none"
    """`plate_controls`: every representation is first standardised by the negative controls of each plate."""
    regularisation: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Inverse strengths C to choose from, on held-out groups of the training part; one value is taken as it is."""
    max_iterations: int = 500
    """Limit of L-BFGS; fits that reach it are counted in `ProbeResult.n_not_converged`."""
    bootstrap_draws: int = 1000
    """Resamples of wells behind the 95 % interval."""
    concurrent_trials: int = 2
    """Ray Tune trials that run at the same time, one CPU each."""

    def __post_init__(self) -> None:
        check_label(self.label)
        if self.split not in SPLITS:
            raise ValueError(f"probe.split is {self.split!r}, expected one of {', '.join(SPLITS)}.")
        if self.align not in get_args(Align):
            raise ValueError(f"probe.align is {self.align!r}, expected one of {', '.join(get_args(Align))}.")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"probe.seeds is {self.seeds}, expected different numbers from 0 up, such as (0, 1, 2).")
        if not 0 < self.held_out_share < 1:
            raise ValueError(f"probe.held_out_share is {self.held_out_share}, expected between 0 and 1.")
        if not self.regularisation or min(self.regularisation) <= 0:
            raise ValueError(f"probe.regularisation is {self.regularisation}, expected one or more numbers above 0.")
        for name in ("max_iterations", "bootstrap_draws", "concurrent_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"probe.{name} is {getattr(self, name)}, expected 1 or more.")

    @property
    def benchmark(self) -> str:
        """Name in the `scores` table: says whether the vectors were aligned."""
        return "linear_probe" if self.align == "none" else f"linear_probe_{self.align}"


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """Logistic regression on standardised features."""

    classes: NDArray[np.intp]
    """(K,)"""
    weight: NDArray[np.float32]
    """(K, D)"""
    bias: NDArray[np.float32]
    """(K,)"""
    mean: NDArray[np.float32]
    """(D,) of the training crops."""
    scale: NDArray[np.float32]
    """(D,) standard deviation of the training crops; infinite for a constant feature, which then has no say."""
    converged: bool
    """False when the optimiser reached its limit of iterations."""

    def logits(self, vectors_MD: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M, K) log odds up to a constant for each crop."""
        standardised = (vectors_MD - self.mean) / self.scale
        return np.asarray(standardised @ self.weight.T + self.bias)


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Scores of one representation."""

    representation_id: str
    summary: dict[str, Interval]
    """For each metric, the mean over seeds and its interval."""
    rows: list[dict[str, Any]]
    """Rows of the `scores` table."""
    n_classes: int
    """Classes in all splits together."""
    dropped_classes: tuple[str, ...]
    """Classes that some split could not use: no well in its train part, or none in its test part."""
    n_not_converged: int
    """Scored fits that reached the limit of iterations."""


def linear_probe(
    train_ND: NDArray[np.float32],
    labels_N: NDArray[np.intp],
    *,
    regularisation: float,
    max_iterations: int = 500,
) -> FittedProbe:
    """Fit multinomial logistic regression, features standardised by the training crops, classes weighted equally.

    Args:
        train_ND: (N, D) vectors.
        labels_N: (N,) at least two classes.
        regularisation: Inverse strength C of the L2 penalty.
        max_iterations: Limit of L-BFGS.

    Raises:
        ValueError: A vector that is not finite.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if not np.isfinite(train_ND).all():
        crop = int(np.argwhere(~np.isfinite(train_ND))[0, 0])
        raise ValueError(
            f"training vector {crop} of {len(train_ND)} is not finite. Expected finite embeddings: check the encoder's "
            "loss curve, train again and embed again."
        )
    mean_D = train_ND.mean(axis=0, dtype=np.float64).astype(np.float32)
    sd_D = train_ND.std(axis=0, dtype=np.float64).astype(np.float32)
    # A feature that is constant but for rounding must not become noise of size 1.
    scale_D = np.where(sd_D > 1e-6 * np.abs(mean_D) + 1e-30, sd_D, np.float32(np.inf))
    model = LogisticRegression(C=regularisation, max_iter=max_iterations, class_weight="balanced")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # counted below
        model.fit((train_ND - mean_D) / scale_D, labels_N)
    weight, bias = np.asarray(model.coef_, np.float32), np.asarray(model.intercept_, np.float32)
    if len(weight) == 1:  # two classes: scikit-learn keeps only the second's log odds
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    converged = bool(np.max(model.n_iter_) < max_iterations)
    return FittedProbe(np.asarray(model.classes_, np.intp), weight, bias, mean_D, scale_D, converged)


def make_splits(data: ProbeData, config: ProbeConfig) -> list[Split]:
    """The splits of a probe, checked: each has two or more classes in both parts.

    Raises:
        ValueError: Too few plates or batches, or a split without two classes to tell apart.
    """
    splits = _splits(data, config, np.flatnonzero(data.label_of_well >= 0), config.seeds, stream=0)
    for split in splits:
        if len(classes_in_both(data.label_of_well, split.is_test)) < 2:
            raise ValueError(
                f"label {data.label}, split by {config.split}, seed {split.seed}: with {', '.join(split.held_out[:4])} "
                "held out, fewer than 2 classes have wells in both parts. Replicate the perturbations over plates, or "
                "set probe.split=well or another probe.label."
            )
    return splits


def probe_representation(
    vectors_ND: NDArray[np.float32],
    representation_id: str,
    data: ProbeData,
    config: ProbeConfig,
    scores_key: str,
) -> ProbeResult:
    """Score one representation on every split.

    Args:
        vectors_ND: (N, D) in the order of `data.crop_ids`.
        representation_id: Whose vectors they are.
        data: Labels and wells.
        config: What to score.
        scores_key: `probe_key(data, config)`; makes the ids of the rows.
    """
    # A second BLAS thread gains nothing on matrices this small, and with the other trials' threads loses minutes.
    with threadpool_limits(limits=1):
        return _probe_splits(vectors_ND, representation_id, data, config, scores_key)


def _probe_splits(
    vectors_ND: NDArray[np.float32], representation_id: str, data: ProbeData, config: ProbeConfig, scores_key: str
) -> ProbeResult:
    if config.align == "plate_controls":
        plates = np.asarray(data.plates)[data.well_of_crop]
        vectors_ND = standardise_by_plate_controls(vectors_ND, plates.tolist(), data.is_control[data.well_of_crop])
    label_N = data.label_of_well[data.well_of_crop]
    rows: list[dict[str, Any]] = []
    counts: dict[str, list[WellCounts]] = {metric: [] for metric in METRICS}
    n_not_converged, in_all, in_any = 0, set(range(len(data.classes))), set[int]()
    for split in make_splits(data, config):
        classes = classes_in_both(data.label_of_well, split.is_test)
        in_all &= set(classes.tolist())
        in_any |= set(classes.tolist())
        is_used, is_test = np.isin(label_N, classes), split.is_test[data.well_of_crop]
        train, test = np.flatnonzero(is_used & ~is_test), np.flatnonzero(is_used & is_test)
        strength = _choose_regularisation(vectors_ND, data, config, split, train)
        probe = linear_probe(
            vectors_ND[train], label_N[train], regularisation=strength, max_iterations=config.max_iterations
        )
        n_not_converged += not probe.converged
        sizes = {"n_train": len(train), "n_test": len(test), "n_classes": len(classes)}
        held_out = f"{len(split.held_out)} wells" if config.split == "well" else ",".join(split.held_out)
        for metric, each in _count(probe, vectors_ND[test], data, test).items():
            counts[metric].append(each)
            value = balanced_accuracy(each, data.label_of_well)
            rows.append({"metric": metric, "seed": split.seed, "value": value, **sizes, "held_out": held_out})
    summary = {
        metric: bootstrap_over_wells(splits, data.label_of_well, config.bootstrap_draws)
        for metric, splits in counts.items()
    }
    for metric, interval in summary.items():
        of_metric = [row for row in rows if row["metric"] == metric]
        rows.append(
            {
                "metric": metric,
                "seed": -1,
                "value": interval.value,
                "ci_low": interval.low,
                "ci_high": interval.high,
                "n_train": round(float(np.mean([row["n_train"] for row in of_metric]))),
                "n_test": round(float(np.mean([row["n_test"] for row in of_metric]))),
                "n_classes": len(in_any),
                "held_out": f"{len(of_metric)} splits",
                "details": json.dumps({"recall": _recall_by_class(counts[metric], data)}),
            }
        )
    shared = {"benchmark": config.benchmark, "label": config.label, "split": config.split}
    scored_at = datetime.now(UTC)
    rows = [
        {
            "score_id": score_id(representation_id, row["metric"], scores_key, row["seed"]),
            "representation_id": representation_id,
            **shared,
            "ci_low": None,
            "ci_high": None,
            "alignment": config.align,
            "protocol": scores_key,
            "details": None,
            **row,
            "scored_at": scored_at,
        }
        for row in rows
    ]
    dropped = tuple(name for i, name in enumerate(data.classes) if i not in in_all)
    return ProbeResult(representation_id, summary, rows, len(in_any), dropped, n_not_converged)


def _recall_by_class(splits: Sequence[WellCounts], data: ProbeData) -> dict[str, float]:
    """Share of each class told correctly, over all splits; classes that were never tested are left out."""
    correct, total = (
        np.bincount(np.maximum(data.label_of_well, 0), weights=each * (data.label_of_well >= 0), minlength=1)
        for each in (sum(split.correct for split in splits), sum(split.total for split in splits))
    )
    return {
        name: round(float(correct[i] / total[i]), 4)
        for i, name in enumerate(data.classes)
        if i < len(total) and total[i] > 0
    }


def probe_key(data: ProbeData, config: ProbeConfig) -> str:
    """Changes when the config, the crops or their labels change: scores under one key are comparable."""
    settings = {name: value for name, value in asdict(config).items() if name != "concurrent_trials"}
    wells = [
        f"{well}:{plate}:{batch}:{label}:{int(control)}"
        for well, plate, batch, label, control in zip(
            data.well_ids, data.plates, data.batches, data.label_of_well.tolist(), data.is_control.tolist(), strict=True
        )
    ]
    return content_id(repr(sorted(settings.items())), *data.classes, "|", *wells, "|", *data.crop_ids)


def score_id(representation_id: str, metric: str, key: str, seed: int) -> str:
    """Id of one row of the `scores` table."""
    return content_id(representation_id, metric, key, str(seed))


def _splits(
    data: ProbeData, config: ProbeConfig, wells: NDArray[np.intp], seeds: Sequence[int], *, stream: int
) -> list[Split]:
    """Splits over some of the wells, told for all of them: a well outside `wells` is in no test part."""
    groups = data.plates if config.split == "plate" else data.batches
    if config.split == "well":
        labels = [data.classes[i] for i in data.label_of_well[wells]]
        parts = hold_out_wells([data.well_ids[i] for i in wells], labels, config.held_out_share, seeds, stream=stream)
    else:
        parts = hold_out_groups([groups[i] for i in wells], config.held_out_share, seeds)
    whole = []
    for part in parts:
        is_test = np.zeros(len(data.well_ids), dtype=bool)
        is_test[wells[part.is_test]] = True
        whole.append(Split(part.seed, part.held_out, is_test))
    return whole


def _choose_regularisation(
    vectors_ND: NDArray[np.float32], data: ProbeData, config: ProbeConfig, split: Split, train: NDArray[np.intp]
) -> float:
    """The strength that does best on groups held out of the training part; the test part is never looked at."""
    if len(config.regularisation) == 1:
        return config.regularisation[0]
    wells = np.unique(data.well_of_crop[train])
    inner: Split | None = None
    groups = {(data.plates if config.split == "plate" else data.batches)[i] for i in wells}
    if config.split != "well" and len(groups) > 1:
        inner = _splits(data, config, wells, [split.seed % len(groups)], stream=_INNER_STREAM)[0]
    if inner is None or len(_inner_classes(data, wells, inner)) < 2:
        # One training plate is left: hold out wells of it.
        labels = [data.classes[i] for i in data.label_of_well[wells]]
        part = hold_out_wells(
            [data.well_ids[i] for i in wells], labels, config.held_out_share, [split.seed], stream=_INNER_STREAM
        )[0]
        is_test = np.zeros(len(data.well_ids), dtype=bool)
        is_test[wells[part.is_test]] = True
        inner = Split(split.seed, part.held_out, is_test)
    classes = _inner_classes(data, wells, inner)
    if len(classes) < 2:
        return sorted(config.regularisation)[len(config.regularisation) // 2]  # nothing to choose by: the middle one
    label_N = data.label_of_well[data.well_of_crop]
    train = train[np.isin(label_N[train], classes)]
    is_test_N = inner.is_test[data.well_of_crop]
    fit_on, score_on = train[~is_test_N[train]], train[is_test_N[train]]
    scores = []
    for strength in config.regularisation:
        probe = linear_probe(
            vectors_ND[fit_on], label_N[fit_on], regularisation=strength, max_iterations=config.max_iterations
        )
        counts = _count(probe, vectors_ND[score_on], data, score_on)[CROP_METRIC]
        scores.append(balanced_accuracy(counts, data.label_of_well))
    return config.regularisation[int(np.argmax(scores))]


def _inner_classes(data: ProbeData, wells: NDArray[np.intp], inner: Split) -> NDArray[np.intp]:
    return classes_in_both(data.label_of_well[wells], inner.is_test[wells])


def _count(
    probe: FittedProbe, vectors_MD: NDArray[np.float32], data: ProbeData, crops: NDArray[np.intp]
) -> dict[str, WellCounts]:
    """Correct answers by well: of its crops one by one, and of the well's mean logits."""
    n_wells = len(data.well_ids)
    well_M = data.well_of_crop[crops]
    logits_MK = probe.logits(vectors_MD)
    is_correct_M = probe.classes[logits_MK.argmax(axis=1)] == data.label_of_well[well_M]
    total_W = np.bincount(well_M, minlength=n_wells).astype(np.float64)
    correct_W = np.bincount(well_M, weights=is_correct_M, minlength=n_wells)
    sums_WK = np.zeros((n_wells, logits_MK.shape[1]))
    np.add.at(sums_WK, well_M, logits_MK)
    in_test_W = total_W > 0
    well_is_correct_W = in_test_W & (probe.classes[sums_WK.argmax(axis=1)] == data.label_of_well)
    return {
        CROP_METRIC: WellCounts(np.asarray(correct_W, np.float64), np.asarray(total_W, np.float64)),
        WELL_METRIC: WellCounts(well_is_correct_W.astype(np.float64), in_test_W.astype(np.float64)),
    }
