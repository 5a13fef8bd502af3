"""How many labels an artefact detector needs: its scores on plates that no label is from, by labels of each class.

Every seed holds out other plates and draws other labels from the rest; with more labels it keeps those it had. Spoilt
sites are few on real plates, so each held-out site has a weight that makes the spoilt ones as rare as `prevalence`
says: nothing is thrown away, and precision and calibration read as they would in use.

Source: the curves are those of Masud et al. 2022, arXiv 2208.04592; splits by plate, weights by prevalence, calibration
and intervals are ours.

Letters: M held-out sites, K classes, P plates, R resamples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.qc.detector import ARTEFACT, ONE_CLASS, ArtefactDetector, DetectorConfig, Example
from cytolake.catalog.ids import content_id
from cytolake.catalog.qc.labels import NORMAL

Numbers = NDArray[np.float64]

BINARY_METRICS = ("auroc", "auprc", "recall_at_1_percent_fpr", "balanced_accuracy", "macro_f1", "calibration_error")
"""Normal against spoilt. `recall_at_1_percent_fpr`: share of the spoilt sites that are found where 1 in 100 normal ones
is failed. `balanced_accuracy`, `macro_f1`: at the detector's threshold. `calibration_error`: expected, over 10 bins of
the probability."""
KIND_METRICS = ("balanced_accuracy_of_kinds", "macro_f1_of_kinds")
"""Normal and every kind as classes of their own, the likeliest taken."""
FALSE_POSITIVE_RATE = 0.01
_BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelEfficiencyConfig:
    """How the curve is measured."""

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    labels_per_class: tuple[int, ...] = (1, 5, 10, 25, 50, 100)
    """Points of the curve. A point that a class of the training plates cannot fill is left out for that seed."""
    seeds: tuple[int, ...] = tuple(range(10))
    held_out_share: float = 0.5
    """Share of the plates that are scored on; at least one, and at least one is trained on."""
    prevalence: float = 0.03
    """Share of spoilt sites that the scores are for; the detector is told the same."""
    n_resamples: int = 200
    """Of the held-out plates, for the 95 % intervals; 0: no intervals."""

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
    """End of the 95 % interval over resampled plates; nan without."""
    high: float
    of_seed: dict[int, float]
    """Seed to its own value."""
    n_train: int
    """Sites fitted on, mean over seeds."""
    n_test: int
    """Sites scored on, mean over seeds."""


@dataclass(frozen=True, slots=True)
class LabelEfficiency:
    """A measured curve."""

    config: LabelEfficiencyConfig
    classes: tuple[str, ...]
    """That the detectors tell apart, normal first."""
    points: tuple[Point, ...]
    confusion: dict[int, Numbers]
    """Labels of each class to (K, K): of the sites of the class in the row, the share taken for the one in the column.
    Over all seeds, each site counted alike. Empty where kinds are not told apart."""
    held_out: dict[int, tuple[str, ...]]
    """Seed to the plates it was scored on."""

    def curve(self, metric: str) -> list[Point]:
        """Points of one metric, by rising numbers of labels."""
        return [point for point in self.points if point.metric == metric]


def label_efficiency(
    examples: Sequence[Example],
    plates: Sequence[str],
    features: Sequence[str],
    config: LabelEfficiencyConfig | None = None,
) -> LabelEfficiency:
    """Measure the curve.

    Args:
        examples: Labelled sites of two plates or more.
        plates: Which plate each is of.
        features: Names of the columns of their deviations.
        config: Points, seeds, head.

    Raises:
        ValueError: Fewer than two plates; or no point of the curve: a class with too few sites on too few plates.
    """
    config = config or LabelEfficiencyConfig()
    names = sorted(set(plates))
    if len(names) < 2:
        raise ValueError(
            f"label efficiency: sites of {len(names)} plate ({', '.join(names) or 'none'}), expected two or more: "
            "labels of one plate say nothing of how a detector does on the next. Label sites of other plates."
        )
    is_one_class = config.detector.head in ONE_CLASS
    is_binary = is_one_class or config.detector.is_binary
    labels = [example.label if example.label == NORMAL or not is_binary else ARTEFACT for example in examples]
    classes = (NORMAL, *([ARTEFACT] if is_binary else sorted(set(labels) - {NORMAL})))
    label_N = np.array([classes.index(label) for label in labels])
    plate_N = np.array([names.index(plate) for plate in plates])
    told: dict[int, list[_Tested]] = defaultdict(list)
    held_out: dict[int, tuple[str, ...]] = {}
    for seed in config.seeds:
        rng = np.random.default_rng([seed, 71])
        n_out = min(len(names) - 1, max(1, round(config.held_out_share * len(names))))
        out = rng.permutation(len(names))[:n_out]
        held_out[seed] = tuple(names[p] for p in sorted(out))
        is_test = np.isin(plate_N, out)
        if not (is_test & (label_N == 0)).any() or not (is_test & (label_N > 0)).any():
            continue
        orders = [rng.permutation(np.flatnonzero((label_N == k) & ~is_test)) for k in range(len(classes))]
        drawn = orders[:1] if is_one_class else orders
        test = np.flatnonzero(is_test)
        for n in config.labels_per_class:
            if min(map(len, drawn)) < n:
                break
            train = np.concatenate([order[:n] for order in drawn])
            detector = ArtefactDetector.fit(
                [examples[int(i)] for i in train], features, replace(config.detector, prevalence=config.prevalence)
            )
            verdicts = detector.predict([examples[int(i)].deviations for i in test])
            probability_MK = np.zeros((len(test), len(classes)))
            place = [classes.index(name) for name in detector.classes]
            probability_MK[:, place] = [verdict.of_site for verdict in verdicts]
            told[n].append(_Tested(seed, probability_MK, label_N[test], plate_N[test], len(train)))
    if not told:
        raise ValueError(
            f"label efficiency: no seed of {len(config.seeds)} leaves {config.labels_per_class[0]} labelled sites of "
            f"every class ({', '.join(classes)}) on the training plates and both kinds of sites on the others. Label "
            "more sites, of more plates."
        )
    points: list[Point] = []
    for n, tests in sorted(told.items()):
        points += _points(n, tests, len(names), config, with_kinds=not is_binary)
    confusion = {} if is_binary else {n: _confusion(tests, len(classes)) for n, tests in sorted(told.items())}
    return LabelEfficiency(config, classes, tuple(points), confusion, held_out)


def binary_scores(
    probability_M: Numbers, is_spoilt_M: NDArray[np.bool_], weight_M: Numbers, threshold: float
) -> dict[str, float]:
    """`BINARY_METRICS` of the probabilities of being spoilt.

    Args:
        probability_M: (M,)
        is_spoilt_M: (M,)
        weight_M: (M,) how much each site counts; 0 leaves it out.
        threshold: Above it a site is taken for spoilt.

    Returns:
        nan where a side has no weight.
    """
    spoilt, normal = float(weight_M[is_spoilt_M].sum()), float(weight_M[~is_spoilt_M].sum())
    if spoilt <= 0 or normal <= 0:
        return dict.fromkeys(BINARY_METRICS, math.nan)
    order = np.argsort(-probability_M, kind="stable")
    ranked, is_hit, weight = probability_M[order], is_spoilt_M[order], weight_M[order]
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True))  # sites that score alike are found together
    found = np.append(0.0, np.cumsum(weight * is_hit)[last]) / spoilt
    failed = np.append(0.0, np.cumsum(weight * ~is_hit)[last]) / normal
    flagged = np.cumsum(weight)[last]
    precision = np.divide(found[1:] * spoilt, flagged, out=np.ones(len(last)), where=flagged > 0)
    is_taken = probability_M > threshold
    hits, alarms = float(weight_M[is_taken & is_spoilt_M].sum()), float(weight_M[is_taken & ~is_spoilt_M].sum())
    f1_spoilt = 2 * hits / (spoilt + hits + alarms)
    f1_normal = 2 * (normal - alarms) / (2 * normal - alarms + spoilt - hits)
    cell = np.minimum((probability_M * _BINS).astype(int), _BINS - 1)
    gap = np.bincount(cell, weight_M * (probability_M - is_spoilt_M), minlength=_BINS)
    return {
        "auroc": float(np.sum(np.diff(failed) * (found[1:] + found[:-1]) / 2)),
        "auprc": float(np.sum(np.diff(found) * precision)),
        "recall_at_1_percent_fpr": float(found[failed <= FALSE_POSITIVE_RATE + 1e-12].max()),
        "balanced_accuracy": (hits / spoilt + (normal - alarms) / normal) / 2,
        "macro_f1": (f1_spoilt + f1_normal) / 2,
        "calibration_error": float(np.abs(gap).sum() / (spoilt + normal)),
    }


def kind_scores(taken_M: NDArray[np.intp], label_M: NDArray[np.intp], weight_M: Numbers) -> dict[str, float]:
    """`KIND_METRICS`, over the classes that have weight."""
    n = int(max(taken_M.max(), label_M.max())) + 1
    told_KK = np.bincount(label_M * n + taken_M, weight_M, minlength=n * n).reshape(n, n)
    of_class, as_class, right = told_KK.sum(axis=1), told_KK.sum(axis=0), np.diag(told_KK)
    is_there = of_class > 0
    if not is_there.any():
        return dict.fromkeys(KIND_METRICS, math.nan)
    return {
        "balanced_accuracy_of_kinds": float((right[is_there] / of_class[is_there]).mean()),
        "macro_f1_of_kinds": float((2 * right[is_there] / (of_class + as_class)[is_there]).mean()),
    }


def score_rows(result: LabelEfficiency, representation_id: str, features_key: str) -> list[dict[str, Any]]:
    """Rows of the table `scores`: one for each seed, and the mean with its interval (seed -1), of every point.

    Args:
        result: Of `label_efficiency`.
        representation_id: Of the encoder, where it is one of the catalog; otherwise a name for the features.
        features_key: How the features were measured; makes the ids of the rows.
    """
    config = result.config
    key = content_id(features_key, repr(sorted(asdict(config).items())), *result.classes)
    benchmark = f"artefact_detector_{config.detector.head}"
    scored_at = datetime.now(UTC)
    rows = []
    for point in result.points:
        label = "artefact_kind" if point.metric in KIND_METRICS else "is_artefact"
        n_classes = len(result.classes) if point.metric in KIND_METRICS else 2
        shared = {
            "representation_id": representation_id, "benchmark": benchmark, "label": label, "metric": point.metric,
            "split": "plate", "n_train": point.n_train, "n_test": point.n_test, "n_classes": n_classes,
            "alignment": "none", "protocol": key, "details": None, "scored_at": scored_at,
        }  # fmt: skip
        of_seeds: list[tuple[int, float, float | None, float | None, str]] = [
            (seed, value, None, None, ",".join(result.held_out[seed])) for seed, value in point.of_seed.items()
        ]
        ends = (None, None) if math.isnan(point.low) else (point.low, point.high)
        of_seeds.append((-1, point.value, *ends, f"{len(point.of_seed)} splits"))
        rows += [
            shared
            | {
                "score_id": content_id("score", representation_id, key, point.metric, point.n_labels, seed),
                "seed": seed, "value": value, "ci_low": low, "ci_high": high, "held_out": held_out,
            }
            for seed, value, low, high, held_out in of_seeds
        ]  # fmt: skip
    return rows


def label_efficiency_svg(curves: Mapping[str, LabelEfficiency], metric: str = "auroc") -> str:
    """The curves as one SVG element, to be put into a page; text and axes take the page's own colour.

    Args:
        curves: Name of a detector to its curve, at most six.
        metric: One of `BINARY_METRICS` or `KIND_METRICS`.

    Raises:
        ValueError: A metric that a curve has not, or more curves than can be told apart.
    """
    if not curves or len(curves) > len(_COLOURS):
        raise ValueError(f"label efficiency: {len(curves)} curves, expected 1 to {len(_COLOURS)}.")
    for name, curve in curves.items():
        if not curve.curve(metric):
            known = ", ".join(sorted({point.metric for point in curve.points}))
            raise ValueError(f"label efficiency, curve {name}: no metric {metric!r}. There are: {known}.")
    width, height, left, top, right, bottom = 560, 320, 52, 18, 18, 46
    lines = {name: curve.curve(metric) for name, curve in curves.items()}
    sizes = sorted({point.n_labels for points in lines.values() for point in points})
    ends = [end for points in lines.values() for p in points for end in (p.value, p.low, p.high) if math.isfinite(end)]
    lowest = min(0.9, math.floor(10 * min(ends)) / 10) if ends else 0.0
    lowest = max(0.0, lowest)

    def x(n: int) -> float:
        span = math.log(sizes[-1] / sizes[0]) or 1.0
        return left + (width - left - right) * math.log(n / sizes[0]) / span

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - lowest) / (1 - lowest))

    title = metric.upper() if metric in ("auroc", "auprc") else metric.replace("_", " ")
    parts = [
        f'<svg viewBox="0 0 {width} {height + 20 * len(lines)}" role="img" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="currentColor" style="max-width:{width}px;width:100%">',
        f"<title>{escape(title)} by labels of each class</title>",
    ]
    ticks = np.linspace(lowest, 1, 6)
    for tick in ticks:
        parts.append(
            f'<line x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="currentColor" '
            f'stroke-opacity="0.15"/><text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2f}</text>'
        )
    parts += [f'<text x="{x(n):.1f}" y="{height - bottom + 18}" text-anchor="middle">{n}</text>' for n in sizes]
    parts.append(
        f'<text x="{(left + width - right) / 2:.0f}" y="{height - 8}" text-anchor="middle">labelled sites of each class'
        f'</text><text x="14" y="{(top + height - bottom) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(top + height - bottom) / 2:.0f})">{escape(title)}</text>'
    )
    for number, (name, points) in enumerate(lines.items()):
        colour, dash = _COLOURS[number], _DASHES[number]
        points = [point for point in points if math.isfinite(point.value)]
        band = [point for point in points if math.isfinite(point.low)]
        if band:
            edge = [(p.n_labels, p.high) for p in band] + [(p.n_labels, p.low) for p in reversed(band)]
            outline = " ".join(f"{x(n):.1f},{y(value):.1f}" for n, value in edge)
            parts.append(f'<polygon points="{outline}" fill="{colour}" fill-opacity="0.15"/>')
        path = " ".join(f"{x(p.n_labels):.1f},{y(p.value):.1f}" for p in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<circle cx="{x(p.n_labels):.1f}" cy="{y(p.value):.1f}" r="3.5" fill="{colour}"><title>{escape(name)}, '
            f"{p.n_labels} labels: {p.value:.3f}</title></circle>"
            for p in points
        ]
        level = height + 20 * number + 8
        parts.append(
            f'<line x1="{left}" x2="{left + 28}" y1="{level}" y2="{level}" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/><text x="{left + 36}" y="{level + 4}">{escape(name)}</text>'
        )
    return "\n".join([*parts, "</svg>"])


# Blue, orange, green, pink, sky, vermilion of Okabe and Ito: told apart with colour blindness, on light and dark.
_COLOURS = ("#2a78d6", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_DASHES = ("none", "7 3", "2 3", "9 3 2 3", "5 5", "1 4")


@dataclass(frozen=True, slots=True)
class _Tested:
    """What a detector said of the held-out sites of one seed."""

    seed: int
    probability: Numbers
    """(M, K)"""
    label: NDArray[np.intp]
    """(M,) 0 is normal."""
    plate: NDArray[np.intp]
    """(M,)"""
    n_train: int

    def weights(self, prevalence: float, plate_P: Numbers) -> Numbers:
        """(M,) plates counting as told; normal sites add up to 1 - prevalence, all kinds, each alike, to the rest."""
        weight = plate_P[self.plate].astype(float)
        is_normal = self.label == 0
        total = weight[is_normal].sum()
        if total > 0:
            weight[is_normal] *= (1 - prevalence) / total
        kinds = [k for k in np.unique(self.label[~is_normal]) if weight[self.label == k].sum() > 0]
        for k in kinds:
            weight[self.label == k] *= prevalence / len(kinds) / weight[self.label == k].sum()
        return weight


def _points(
    n: int, tests: Sequence[_Tested], n_plates: int, config: LabelEfficiencyConfig, *, with_kinds: bool
) -> list[Point]:
    def scores(test: _Tested, plate_P: Numbers) -> dict[str, float]:
        weight = test.weights(config.prevalence, plate_P)
        spoilt = 1 - test.probability[:, 0]
        found = binary_scores(spoilt, test.label > 0, weight, config.detector.threshold)
        return found | (kind_scores(test.probability.argmax(axis=1), test.label, weight) if with_kinds else {})

    each = [scores(test, np.ones(n_plates)) for test in tests]
    rng = np.random.default_rng(0)  # fixed: equal plates give equal resamples
    draws: dict[str, list[float]] = defaultdict(list)
    for _ in range(config.n_resamples):
        # Plates are drawn for all seeds together; a seed none of whose held-out plates was drawn gives nan.
        plate_P = rng.multinomial(n_plates, np.full(n_plates, 1 / n_plates)).astype(float)
        of_seeds = [scores(test, plate_P) for test in tests]
        for metric in each[0]:
            known = [found[metric] for found in of_seeds if math.isfinite(found[metric])]
            if known:
                draws[metric].append(float(np.mean(known)))
    points = []
    for metric in each[0]:
        low, high = np.percentile(draws[metric], (2.5, 97.5)) if draws[metric] else (math.nan, math.nan)
        points.append(
            Point(
                n,
                metric,
                float(np.mean([found[metric] for found in each])),
                float(low),
                float(high),
                {test.seed: found[metric] for test, found in zip(tests, each, strict=True)},
                round(float(np.mean([test.n_train for test in tests]))),
                round(float(np.mean([len(test.label) for test in tests]))),
            )
        )
    return points


def _confusion(tests: Sequence[_Tested], n_classes: int) -> Numbers:
    told_KK = np.zeros((n_classes, n_classes))
    for test in tests:
        np.add.at(told_KK, (test.label, test.probability.argmax(axis=1)), 1)
    total = told_KK.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(told_KK, total, out=np.zeros_like(told_KK), where=total > 0))
