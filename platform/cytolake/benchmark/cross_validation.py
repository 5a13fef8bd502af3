"""Nested cross-validation of linear probes: every unit is scored by probes fitted without it.

The same fits give, for every unit, the scores of all others by probes fitted without both. These scores choose the
strength of the regularisation, and allow a block to be chosen on other plates than it is reported on.

N crops, D features, W wells, U units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.linear_probe import (
    CROP_METRIC,
    PROBE_METRICS,
    WELL_METRIC,
    FittedProbe,
    ProbeConfig,
    linear_probe,
    score_id,
)
from cytolake.benchmark.probe_data import ProbeData, standardise_by_plate_controls
from cytolake.benchmark.split import hold_out_wells
from cytolake.benchmark.unit_scores import Candidate, UnitScores
from cytolake.benchmark.units import Units, group_names, held_out_units
from cytolake.statistics.balanced_accuracy import WellCounts, balanced_accuracy
from cytolake.statistics.intervals import Interval
from cytolake.statistics.threads import limited_threads

Numbers = NDArray[np.float64]
MAX_SHARED_FOLDS = 6
"""Up to this many folds, one fit for each pair of folds serves both; with more, the units outside a fold are divided
into `INNER_FOLDS`."""
INNER_FOLDS = 3


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Scores of one representation."""

    representation_id: str
    summary: dict[str, Interval]
    """For each metric, the mean over units and its interval."""
    candidates: dict[str, Candidate]
    """For each metric, the scores of every unit, for comparisons and choices."""
    rows: list[dict[str, Any]]
    """Rows of the `scores` table."""
    n_classes: int
    """Classes in all splits together."""
    dropped_classes: tuple[str, ...]
    """Classes that some split could not use, without a well in its train or test part."""
    n_not_converged: int
    """Scored fits that reached the limit of iterations."""


def probe_representation(
    vectors_ND: NDArray[np.float32],
    representation_id: str,
    data: ProbeData,
    config: ProbeConfig,
    scores_key: str,
    *,
    nested: bool = True,
) -> ProbeResult:
    """Score one representation on every unit.

    Args:
        vectors_ND: (N, D) in the order of `data.crop_ids`.
        representation_id: Representation of the vectors.
        data: Labels and wells.
        scores_key: `probe_key(data, config)`, part of the ids of the rows.
        nested: False leaves out the fits for a choice between representations, where there is one strength of
            regularisation; for curves during training.

    Raises:
        ValueError: Too few units, or a fold without two classes in both parts.
    """
    # A second BLAS thread gains nothing on matrices this small, and costs minutes next to the threads of other trials.
    with limited_threads():
        return _CrossValidation(vectors_ND, data, config, nested).result(representation_id, scores_key)


class _CrossValidation:
    """The fits of one representation."""

    def __init__(
        self, vectors_ND: NDArray[np.float32], data: ProbeData, config: ProbeConfig, nested: bool = True
    ) -> None:
        if config.align == "plate_controls":
            plates = np.asarray(data.plates)[data.well_of_crop]
            controls = data.is_control[data.well_of_crop]
            vectors_ND = standardise_by_plate_controls(vectors_ND, plates.tolist(), controls)
        self.vectors, self.data, self.config = vectors_ND, data, config
        self.label_N = data.label_of_well[data.well_of_crop]
        self.nested = nested or len(config.regularisation) > 1
        self.n_not_converged = 0
        self._shared: dict[tuple[tuple[int, ...], float], dict[str, Numbers]] = {}

    def result(self, representation_id: str, scores_key: str) -> ProbeResult:
        deals = check_units(self.data, self.config)
        units = deals[0]
        n = len(units.names)
        sums = {metric: np.zeros(n) for metric in PROBE_METRICS}
        n_scored = {metric: np.zeros(n) for metric in PROBE_METRICS}
        inner: dict[str, list[Numbers]] = {metric: [] for metric in PROBE_METRICS}
        counts: dict[str, list[WellCounts]] = {metric: [] for metric in PROBE_METRICS}
        rows: list[dict[str, Any]] = []
        in_all, in_any = set(range(len(self.data.classes))), set[int]()
        n_train_units: list[float] = []
        n_never_held_out = _n_never_held_out(self.data, self.config, units)
        for deal in deals:
            self._shared.clear()
            for fold in range(deal.n_folds):
                strength, of_others = self._choose_strength(deal, fold)
                classes, train, test = self._parts(deal, (fold,), (fold,))
                in_all &= set(classes.tolist())
                in_any |= set(classes.tolist())
                probe = self._fit(train, strength)
                self.n_not_converged += not probe.converged
                n_train_units.append(float((deal.fold != fold).sum()) + n_never_held_out)
                held_out = [name for name, of in zip(deal.names, deal.fold, strict=True) if of == fold]
                for metric, each in _count(probe, self.vectors[test], self.data, test).items():
                    counts[metric].append(each)
                    score_U = _unit_scores(each, deal, self.data)
                    is_scored = np.isfinite(score_U)
                    sums[metric][is_scored] += score_U[is_scored]
                    n_scored[metric] += is_scored
                    if deal is units:
                        inner[metric].append(of_others[metric])
                    rows.append(
                        {
                            "metric": metric,
                            "seed": len(n_train_units) - 1,
                            "value": balanced_accuracy(each, self.data.label_of_well),
                            "n_train": len(train),
                            "n_test": int(each.total.sum()),
                            "n_classes": len(classes),
                            "held_out": ",".join(held_out),
                        }
                    )
        candidates = {}
        n_test = int(sum((each.total > 0).sum() for each in counts[WELL_METRIC][: units.n_folds]))
        for metric in PROBE_METRICS:
            scored = n_scored[metric] > 0
            names = tuple(name for name, is_scored in zip(units.names, scored, strict=True) if is_scored)
            score_U = sums[metric][scored] / n_scored[metric][scored]
            scores = UnitScores(units.kind, names, score_U, float(np.mean(n_train_units)), n_test)
            by_fold = np.stack(inner[metric])[:, scored]
            candidates[metric] = Candidate(scores, by_fold[units.fold[scored]])
            of_metric = [row for row in rows if row["metric"] == metric]
            interval = scores.interval()
            details = {
                "recall": _recall_by_class(counts[metric], self.data),
                "unit": units.kind,
                "units": list(names),
                "unit_scores": _rounded(score_U),
                "fold_of_unit": units.fold[scored].tolist(),
                "inner": [_rounded(each) for each in by_fold] if self.nested else [],
                "n_train_units": scores.n_train,
                "n_test_wells": n_test,
                "classes_of_all_folds": [name for i, name in enumerate(self.data.classes) if i in in_all],
            }
            rows.append(
                {
                    "metric": metric,
                    "seed": -1,
                    "value": interval.value,
                    "ci_low": _finite_or_none(interval.low),
                    "ci_high": _finite_or_none(interval.high),
                    "n_train": round(float(np.mean([row["n_train"] for row in of_metric]))),
                    "n_test": int(sum(each.total.sum() for each in counts[metric][: units.n_folds])),
                    "n_classes": len(in_any),
                    "held_out": f"{len(of_metric)} splits",
                    "details": json.dumps(details),
                }
            )
        shared = {"benchmark": self.config.benchmark, "label": self.config.label, "split": self.config.split}
        scored_at = datetime.now(UTC)
        rows = [
            {
                "score_id": score_id(representation_id, row["metric"], scores_key, row["seed"]),
                "representation_id": representation_id,
                **shared,
                "ci_low": None,
                "ci_high": None,
                "alignment": self.config.align,
                "protocol": scores_key,
                "details": None,
                **row,
                "scored_at": scored_at,
            }
            for row in rows
        ]
        dropped = tuple(name for i, name in enumerate(self.data.classes) if i not in in_all)
        summary = {metric: candidate.scores.interval() for metric, candidate in candidates.items()}
        return ProbeResult(representation_id, summary, candidates, rows, len(in_any), dropped, self.n_not_converged)

    def _choose_strength(self, units: Units, fold: int) -> tuple[float, dict[str, Numbers]]:
        """The best strength on units outside the fold, by probes fitted without them.

        Returns:
            The strength, and for each metric (U,) the scores of the other units at that strength; NaN within the fold,
            and where no fit is possible.
        """
        nothing = {metric: np.full(len(units.names), np.nan) for metric in PROBE_METRICS}
        middle = sorted(self.config.regularisation)[len(self.config.regularisation) // 2]
        if not self.nested:
            return middle, nothing
        by_strength: dict[float, dict[str, Numbers]] = {}
        for strength in self.config.regularisation:
            scores = {metric: values.copy() for metric, values in nothing.items()}
            for left_out in self._inner_folds(units, fold):
                for metric, score_U in self._score_inner(units, fold, left_out, strength).items():
                    here = np.isfinite(score_U)
                    scores[metric][here] = score_U[here]
            by_strength[strength] = scores
        means = {
            strength: float(np.mean(values)) if len(values) else math.nan
            for strength, scores in by_strength.items()
            for values in [scores[CROP_METRIC][np.isfinite(scores[CROP_METRIC])]]
        }
        if not all(math.isfinite(mean) for mean in means.values()):
            return middle, by_strength[middle]
        best = max(means, key=lambda strength: means[strength])
        return best, by_strength[best]

    def _inner_folds(self, units: Units, fold: int) -> list[NDArray[np.bool_]]:
        """For each inner fit, (U,) the units that it leaves out and scores."""
        others = np.flatnonzero(units.fold != fold)
        if units.n_folds <= MAX_SHARED_FOLDS:
            return [units.fold == other for other in range(units.n_folds) if other != fold]
        parts = np.array_split(others, INNER_FOLDS)
        return [np.isin(np.arange(len(units.fold)), part) for part in parts]

    def _score_inner(self, units: Units, fold: int, left_out: NDArray[np.bool_], strength: float) -> dict[str, Numbers]:
        """(U,) scores of each metric on the units that are left out together with the fold; NaN elsewhere.

        With one unit outside the fold there is nothing left to fit on, so wells of that unit are held out instead.
        """
        if units.n_folds == 2:
            return self._score_wells_of(units, fold, strength)
        away = tuple(sorted({fold, *units.fold[left_out].tolist()})) if units.n_folds <= MAX_SHARED_FOLDS else ()
        if away and (away, strength) in self._shared:
            scores = self._shared[away, strength]
        else:
            is_away_W = units.is_held_out((fold,)) | ((units.of_well >= 0) & left_out[units.of_well])
            scores = self._score(
                units, is_away_W, is_away_W if away else is_away_W & ~units.is_held_out((fold,)), strength
            )
            if away:
                self._shared[away, strength] = scores
        return {metric: np.where(left_out, score_U, np.nan) for metric, score_U in scores.items()}

    def _score_wells_of(self, units: Units, fold: int, strength: float) -> dict[str, Numbers]:
        wells = np.flatnonzero((units.of_well >= 0) & ~units.is_held_out((fold,)))
        labels = [self.data.classes[i] for i in self.data.label_of_well[wells]]
        names = [self.data.well_ids[i] for i in wells]
        part = hold_out_wells(names, labels, self.config.held_out_share, [self.config.seeds[0]], stream=1)[0]
        is_test_W = np.zeros(len(self.data.well_ids), dtype=bool)
        is_test_W[wells[part.is_test]] = True
        return self._score(units, units.is_held_out((fold,)) | is_test_W, is_test_W, strength)

    def _score(
        self, units: Units, is_away_W: NDArray[np.bool_], is_test_W: NDArray[np.bool_], strength: float
    ) -> dict[str, Numbers]:
        """Fit on wells that are not left out, score the units of the test wells."""
        classes = _classes(self.data, is_away_W, is_test_W)
        if len(classes) < 2:
            return {metric: np.full(len(units.names), np.nan) for metric in PROBE_METRICS}
        train, test = self._crops(classes, ~is_away_W), self._crops(classes, is_test_W)
        counts = _count(self._fit(train, strength), self.vectors[test], self.data, test)
        return {metric: _unit_scores(each, units, self.data) for metric, each in counts.items()}

    def _parts(
        self, units: Units, away: tuple[int, ...], scored: tuple[int, ...]
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
        """Classes in both parts, crops to fit on, and crops to score."""
        is_away_W, is_test_W = units.is_held_out(away), units.is_held_out(scored)
        classes = _classes(self.data, is_away_W, is_test_W)
        return classes, self._crops(classes, ~is_away_W), self._crops(classes, is_test_W)

    def _crops(self, classes: NDArray[np.intp], is_in_W: NDArray[np.bool_]) -> NDArray[np.intp]:
        return np.flatnonzero(np.isin(self.label_N, classes) & is_in_W[self.data.well_of_crop])

    def _fit(self, train: NDArray[np.intp], strength: float) -> FittedProbe:
        return linear_probe(
            self.vectors[train],
            self.label_N[train],
            regularisation=strength,
            max_iterations=self.config.max_iterations,
        )


def check_units(data: ProbeData, config: ProbeConfig) -> list[Units]:
    """The units of a probe, in folds for every seed that gives different folds; each fold can be scored.

    Raises:
        ValueError: Too few units, or a fold without two classes in both parts.
    """
    deals: list[Units] = []
    for seed in config.seeds:
        units = held_out_units(data, config.split, config.held_out_share, seed, config.only)
        if deals and (units.n_folds == len(units.names) or units.names != deals[0].names):
            continue
        for fold in range(units.n_folds):
            away = units.is_held_out((fold,))
            if len(_classes(data, away, away)) < 2:
                held_out = [name for name, of in zip(units.names, units.fold, strict=True) if of == fold]
                raise ValueError(
                    f"label {data.label}, split by {config.split}: with {', '.join(held_out[:4])} held out, fewer than "
                    "2 classes have wells in both parts. Replicate the perturbations over plates, or set "
                    "probe.split=well or another probe.label."
                )
        deals.append(units)
    return deals


def _n_never_held_out(data: ProbeData, config: ProbeConfig, units: Units) -> int:
    """Number of plates or batches outside `config.only`, which every probe is fitted on."""
    if not config.only:
        return 0
    groups = group_names(data, config.split)
    return len({groups[well] for well in np.flatnonzero((data.label_of_well >= 0) & (units.of_well < 0))})


def _rounded(values: Numbers) -> list[float | None]:
    return [round(float(value), 5) if math.isfinite(value) else None for value in values]


def _classes(data: ProbeData, is_away_W: NDArray[np.bool_], is_test_W: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Classes with wells to fit on and wells to score."""
    both = np.intersect1d(data.label_of_well[~is_away_W], data.label_of_well[is_test_W])
    return np.asarray(both[both >= 0], dtype=np.intp)


def _unit_scores(counts: WellCounts, units: Units, data: ProbeData) -> Numbers:
    """(U,) mean over the classes of a unit of the share predicted correctly; NaN for a unit without test wells."""
    tested = np.flatnonzero(counts.total > 0)
    n_classes = len(data.classes)
    cell = units.of_well[tested] * n_classes + data.label_of_well[tested]
    n_cells = len(units.names) * n_classes
    correct = np.bincount(cell, weights=counts.correct[tested], minlength=n_cells).reshape(-1, n_classes)
    total = np.bincount(cell, weights=counts.total[tested], minlength=n_cells).reshape(-1, n_classes)
    recall_UK = np.divide(correct, total, out=np.zeros_like(correct), where=total > 0)
    n_present_U = (total > 0).sum(axis=1)
    no_score = np.full(len(n_present_U), np.nan)
    return np.asarray(np.divide(recall_UK.sum(axis=1), n_present_U, out=no_score, where=n_present_U > 0), np.float64)


def _recall_by_class(splits: Sequence[WellCounts], data: ProbeData) -> dict[str, float]:
    """Share of each class predicted correctly, over all splits, without classes that were never tested."""
    correct, total = (
        np.bincount(np.maximum(data.label_of_well, 0), weights=each * (data.label_of_well >= 0), minlength=1)
        for each in (sum(split.correct for split in splits), sum(split.total for split in splits))
    )
    return {
        name: round(float(correct[i] / total[i]), 4)
        for i, name in enumerate(data.classes)
        if i < len(total) and total[i] > 0
    }


def _count(
    probe: FittedProbe, vectors_MD: NDArray[np.float32], data: ProbeData, crops: NDArray[np.intp]
) -> dict[str, WellCounts]:
    """Correct predictions of each well: of its single crops, and of the well's mean logits."""
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


def _finite_or_none(value: float) -> float | None:
    """The number, or None where there is none."""
    return float(value) if math.isfinite(value) else None
