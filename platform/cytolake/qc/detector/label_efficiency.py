"""Label efficiency of an artefact detector: its scores on held-out plates by the number of labels per class.

Every seed holds out other plates (or other wells of one plate) and draws other labels from the rest; with more labels
it keeps those it had. Spoilt sites are few on real plates, so each held-out site has a weight that makes the spoilt
ones as rare as `prevalence` says: nothing is thrown away, and precision and calibration read as they would in use.

Source: the curves are those of Masud et al. 2022, arXiv 2208.04592; splits by plate, weights by prevalence, calibration
and intervals are ours.

Letters: M held-out sites, K classes, G groups (plates, or wells of one plate), S seeds, R resamples.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.ids import content_id
from cytolake.qc.detector.detector import ONE_CLASS, ArtefactDetector, DetectorConfig, Example
from cytolake.qc.detector.detector_scores import KIND_METRICS, binary_scores, kind_scores
from cytolake.qc.detector.site_split import DetectionTask, Unit
from cytolake.statistics.intervals import few_groups_interval

Numbers = NDArray[np.float64]
_AT_ONCE = 100  # resamples: of 10,000 sites 8 MB for each intermediate


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEfficiencyConfig:
    """Settings of the curve."""

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    labels_per_class: tuple[int, ...] = (1, 5, 10, 25, 50, 100)
    """Points of the curve. A seed leaves out points for which a class has too few training sites."""
    seeds: tuple[int, ...] = tuple(range(10))
    held_out_share: float = 0.5
    """Share of held-out plates; at least one plate is held out and one is used for training."""
    prevalence: float = 0.03
    """Share of spoilt sites assumed by the scores and the detector."""
    n_resamples: int = 200
    """Resamples of the held-out plates for 95 % intervals; 0: no intervals. An interval needs at least three plates."""

    def __post_init__(self) -> None:
        def check(name: str, is_good: bool, expected: str) -> None:
            if not is_good:
                raise ValueError(f"label efficiency, {name}: found {getattr(self, name)!r}, expected {expected}.")

        sizes = self.labels_per_class
        check(
            "labels_per_class", bool(sizes) and sorted(set(sizes)) == [*sizes] and sizes[0] > 0, "rising numbers from 1"
        )
        check("seeds", bool(self.seeds) and len(set(self.seeds)) == len(self.seeds), "one or more, all different")
        check("seeds", min(self.seeds) >= 0, "0 or more each")
        check("held_out_share", 0 < self.held_out_share < 1, "between 0 and 1")
        check("prevalence", 0 < self.prevalence < 1, "between 0 and 1")
        check("n_resamples", self.n_resamples >= 0, "0 or more")


@dataclass(frozen=True, slots=True)
class Point:
    """One metric at one number of labels."""

    n_labels: int
    """Of each class."""
    metric: str
    value: float
    """Mean over seeds."""
    low: float
    """End of the 95 % interval over plates, or over wells if these are held out; nan without an interval."""
    high: float
    of_seed: dict[int, float]
    """Seed to its value."""
    n_train: int
    """Sites fitted on, mean over seeds."""
    n_test: int
    """Sites scored on, mean over seeds."""
    draws: Numbers = field(repr=False, compare=False)
    """(R,) the value of each resample, nan where it is not defined. The same plates give the same resamples, so that
    differences between detectors can be taken draw by draw."""


@dataclass(frozen=True, slots=True)
class LabelEfficiency:
    """A measured curve."""

    config: LabelEfficiencyConfig
    unit: Unit
    """Unit that is held out."""
    n_groups: int
    """Plates or wells in the test part of any seed."""
    classes: tuple[str, ...]
    """Classes that the detectors separate, normal first."""
    points: tuple[Point, ...]
    of_kind: dict[str, Point]
    """Kind of artefact to the AUROC of its sites against normal ones, at the most labels. Kinds that are in the test
    part of no seed are left out."""
    of_group: dict[str, float]
    """Plate or well to the AUROC on its sites alone, at the most labels, mean over seeds. Those without both sides are
    left out."""
    confusion: dict[int, Numbers]
    """Labels per class to (K, K): of the sites of the class in the row, the share predicted as the class in the column.
    Over all seeds, with equal weights of sites. Empty if kinds are not separated."""
    held_out: dict[int, tuple[str, ...]]
    """Seed to the plates (or wells) it was scored on."""

    def curve(self, metric: str) -> list[Point]:
        """Points of one metric, by increasing number of labels."""
        return [point for point in self.points if point.metric == metric]


def label_efficiency(
    examples: Sequence[Example],
    groups: Sequence[str],
    features: Sequence[str],
    config: LabelEfficiencyConfig | None = None,
    unit: Unit = "plate",
) -> LabelEfficiency:
    """Measure the curve.

    Args:
        examples: Labelled sites of at least two plates.
        groups: Plate of each site; or well, for sites of one plate.
        features: Names of the columns of their deviations.
        unit: What the groups are. Wells are held out by class, a share of the normal and of the spoilt ones.

    Raises:
        ValueError: Fewer than two groups; or no point, because a class has too few sites on too few plates.
    """
    config = config or LabelEfficiencyConfig()
    task = detection_task([example.label for example in examples], groups, config, unit)
    tested: dict[int, list[_Tested]] = defaultdict(list)
    for split in task.splits:
        for n in config.labels_per_class:
            if task.most_labels(split) < n:
                break
            train = np.concatenate([order[:n] for order in task.drawn(split)])
            detector = ArtefactDetector.fit(
                [examples[int(i)] for i in train], features, replace(config.detector, prevalence=config.prevalence)
            )
            verdicts = detector.predict([examples[int(i)].deviations for i in split.test])
            probability_MK = np.zeros((len(split.test), len(task.classes)))
            place = [task.classes.index(name) for name in detector.classes]
            probability_MK[:, place] = [verdict.of_site for verdict in verdicts]
            label, kind, group = task.label[split.test], task.kind[split.test], task.group[split.test]
            tested[n].append(_Tested(split.seed, probability_MK, label, kind, group, len(train)))
    if not tested:
        raise ValueError(
            f"label efficiency: no seed of {len(config.seeds)} leaves {config.labels_per_class[0]} labelled sites of "
            f"every class ({', '.join(task.classes)}) on the training {unit}s and both kinds of sites on the others. "
            f"Label more sites, of more {unit}s."
        )
    n_groups, with_kinds = len(task.names), not task.is_binary
    points: list[Point] = []
    for n, tests in sorted(tested.items()):
        points += _points(n, tests, n_groups, config, partial(_scores, config, with_kinds))
    most, last = max(tested), tested[max(tested)]
    of_kind = {
        kind: _points(most, last, n_groups, config, partial(_auroc_of_kind, config, number))[0]
        for number, kind in enumerate(task.kinds)
        if number > 0 and any((test.kind == number).any() for test in last)
    }
    return LabelEfficiency(
        config=config,
        unit=unit,
        n_groups=len(np.unique(np.concatenate([test.group for test in last]))),
        classes=task.classes,
        points=tuple(points),
        of_kind=of_kind,
        of_group=_of_groups(last, task.names, config),
        confusion={n: _confusion(tests, len(task.classes)) for n, tests in sorted(tested.items())}
        if with_kinds
        else {},
        held_out={split.seed: split.held_out for split in task.splits},
    )


def detection_task(
    labels: Sequence[str], groups: Sequence[str], config: LabelEfficiencyConfig, unit: Unit = "plate"
) -> DetectionTask:
    """The splits of `label_efficiency`.

    Raises:
        ValueError: Fewer than two groups.
    """
    is_one_class = config.detector.head in ONE_CLASS
    return DetectionTask.of(
        labels,
        groups,
        config.seeds,
        config.held_out_share,
        unit,
        is_binary=is_one_class or config.detector.is_binary,
        is_one_class=is_one_class,
    )


def score_rows(
    result: LabelEfficiency,
    representation_id: str,
    protocol_key: str,
    *,
    benchmark: str = "",
    identity: str = "",
    details: Mapping[tuple[str, int], Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table `scores`: one for each seed, and the mean with its interval (seed -1), of every point.

    Args:
        result: Of `label_efficiency`.
        representation_id: Of the encoder, where it is one of the catalog; otherwise a name for the features.
        protocol_key: With the config it makes the protocol: how features were measured, or which sites were labelled.
        benchmark: Name of the benchmark; `artefact_detector_<head>` where empty.
        identity: What else makes the ids of the rows.
        details: Metric and labels of each class to what the row of the mean says more; nan becomes null.
    """
    config = result.config
    key = content_id(protocol_key, repr(sorted(asdict(config).items())), *result.classes)
    parts = (identity,) if identity else ()
    scored_at = datetime.now(UTC)
    rows = []
    for point in result.points:
        label = "artefact_kind" if point.metric in KIND_METRICS else "is_artefact"
        n_classes = len(result.classes) if point.metric in KIND_METRICS else 2
        shared = {
            "representation_id": representation_id, "label": label, "metric": point.metric, "split": result.unit,
            "benchmark": benchmark or f"artefact_detector_{config.detector.head}", "n_train": point.n_train,
            "n_test": point.n_test, "n_classes": n_classes, "alignment": "none", "protocol": key,
            "scored_at": scored_at,
        }  # fmt: skip
        of_seeds: list[tuple[int, float, float | None, float | None, str, str | None]] = [
            (seed, value, None, None, ",".join(result.held_out[seed]), None) for seed, value in point.of_seed.items()
        ]
        ends = (None, None) if math.isnan(point.low) else (point.low, point.high)
        said = (details or {}).get((point.metric, point.n_labels))
        text = None if said is None else json.dumps(_without_nan(said), sort_keys=True)
        of_seeds.append((-1, point.value, *ends, f"{len(point.of_seed)} splits", text))
        rows += [
            shared
            | {
                "score_id": content_id("score", representation_id, key, *parts, point.metric, point.n_labels, seed),
                "seed": seed, "value": value, "ci_low": low, "ci_high": high, "held_out": held_out, "details": text,
            }
            for seed, value, low, high, held_out, text in of_seeds
        ]  # fmt: skip
    return rows


def _without_nan(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, Mapping):
        return {name: _without_nan(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


@dataclass(frozen=True, slots=True)
class _Tested:
    """Predictions for the held-out sites of one seed."""

    seed: int
    probability: Numbers
    """(M, K)"""
    label: NDArray[np.intp]
    """(M,) 0 is normal."""
    kind: NDArray[np.intp]
    """(M,) 0 is normal; kinds also where the detector is binary."""
    group: NDArray[np.intp]
    """(M,)"""
    n_train: int

    def weights(self, prevalence: float, group_RG: Numbers) -> Numbers:
        """(R, M) groups counting as drawn; normal sites add up to 1 - prevalence, all classes, each alike, to the
        rest."""
        weight_RM = group_RG[:, self.group].astype(float)
        is_normal = self.label == 0
        spoilt = [self.label == k for k in np.unique(self.label[~is_normal])]
        total_KR = [weight_RM[:, members].sum(axis=1) for members in spoilt]
        n_classes_R = np.maximum(np.sum([total > 0 for total in total_KR], axis=0), 1)
        shares = [(is_normal, weight_RM[:, is_normal].sum(axis=1), np.full(len(group_RG), 1 - prevalence))]
        shares += [(m, total, prevalence / n_classes_R) for m, total in zip(spoilt, total_KR, strict=True)]
        for members, total, share in shares:
            weight_RM[:, members] *= np.divide(share, total, out=np.zeros(len(total)), where=total > 0)[:, None]
        return weight_RM


def _scores(config: LabelEfficiencyConfig, with_kinds: bool, test: _Tested, group_RG: Numbers) -> dict[str, Numbers]:
    weight_RM = test.weights(config.prevalence, group_RG)
    spoilt = 1 - test.probability[:, 0]
    found = binary_scores(spoilt, test.label > 0, weight_RM, config.detector.threshold)
    return found | (kind_scores(test.probability.argmax(axis=1), test.label, weight_RM) if with_kinds else {})


def _auroc_of_kind(config: LabelEfficiencyConfig, kind: int, test: _Tested, group_RG: Numbers) -> dict[str, Numbers]:
    weight_RM = group_RG[:, test.group] * ((test.kind == 0) | (test.kind == kind))
    spoilt = 1 - test.probability[:, 0]
    return {"auroc": binary_scores(spoilt, test.label > 0, weight_RM, config.detector.threshold)["auroc"]}


def _points(
    n: int,
    tests: Sequence[_Tested],
    n_groups: int,
    config: LabelEfficiencyConfig,
    scores: Callable[[_Tested, Numbers], dict[str, Numbers]],
) -> list[Point]:
    each = [scores(test, np.ones((1, n_groups))) for test in tests]
    # Groups that any seed held out are drawn for all seeds together; a seed with none of its own drawn gives nan.
    tested = np.unique(np.concatenate([test.group for test in tests]))
    rng = np.random.default_rng(0)  # fixed: equal groups give equal resamples
    group_RG = np.zeros((config.n_resamples, n_groups))
    group_RG[:, tested] = rng.multinomial(len(tested), np.full(len(tested), 1 / len(tested)), config.n_resamples)
    draws: dict[str, list[Numbers]] = defaultdict(list)
    for part in np.split(group_RG, range(_AT_ONCE, len(group_RG), _AT_ONCE)):
        of_seeds = [scores(test, part) for test in tests]
        for metric in each[0]:
            draws[metric].append(_known_mean(np.stack([found[metric] for found in of_seeds])))
    points = []
    for metric in each[0]:
        value = float(_known_mean(np.stack([found[metric] for found in each]))[0])
        of_draws = np.concatenate(draws[metric])
        low, high = few_groups_interval(value, of_draws, len(tested))
        points.append(
            Point(
                n,
                metric,
                value,
                low,
                high,
                {test.seed: float(found[metric][0]) for test, found in zip(tests, each, strict=True)},
                round(float(np.mean([test.n_train for test in tests]))),
                round(float(np.mean([len(test.label) for test in tests]))),
                of_draws,
            )
        )
    return points


def _of_groups(tests: Sequence[_Tested], names: Sequence[str], config: LabelEfficiencyConfig) -> dict[str, float]:
    each = [_scores(config, False, test, np.eye(len(names)))["auroc"] for test in tests]
    mean = _known_mean(np.stack(each))
    return {name: float(value) for name, value in zip(names, mean, strict=True) if math.isfinite(value)}


def _known_mean(values_SR: Numbers) -> Numbers:
    """(R,) mean over the seeds with a value; nan if there is none."""
    is_known = np.isfinite(values_SR)
    n = is_known.sum(axis=0)
    return np.asarray(
        np.divide(np.where(is_known, values_SR, 0).sum(axis=0), n, out=np.full(len(n), math.nan), where=n > 0)
    )


def _confusion(tests: Sequence[_Tested], n_classes: int) -> Numbers:
    count_KK = np.zeros((n_classes, n_classes))
    for test in tests:
        np.add.at(count_KK, (test.label, test.probability.argmax(axis=1)), 1)
    total = count_KK.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(count_KK, total, out=np.zeros_like(count_KK), where=total > 0))
