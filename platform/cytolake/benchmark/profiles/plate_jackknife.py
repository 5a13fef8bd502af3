"""Intervals over plates by the delete-d jackknife, for benchmarks that are not a mean over plates.

Another screen would have other plates, and wells of one plate share its effects, so an interval over genes or
perturbations alone is too narrow. Recall of relations and average precision are no means over plates, so the delete-d
jackknife gives their variance: with d of U plates left out, (U - d) / d times the variance of the values over many
choices of the d plates. Statistics with a threshold, such as recall, need a d that grows with U (Shao and Wu 1989,
doi:10.1214/aos/1176347263): in simulations (`make bench-coverage`) the standard error is up to twice too large with
d = 1, a quarter too small with d = U / 2, and within 15 % of the truth with d = 3 U / 8.

U units (plates, or groups of plates where there are many), W wells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.profiles.profile_input import BenchmarkInput, ScoreRow, finite
from cytolake.benchmark.profiles.wells import Wells
from cytolake.benchmark.unit_scores import MIN_UNITS
from cytolake.statistics.intervals import delete_d_variance, student_quantile
from cytolake.storage.natural_order import natural_order

PLATE_METRICS: Mapping[str, tuple[str, ...]] = {
    "relations": ("recall_05_95", "recall_10_90"),
    "activity": ("mean_average_precision",),
    "mechanism": ("mean_average_precision",),
    "nsc": ("nsc",),
}
"""Metrics of each task with an interval over plates."""
MAX_UNITS = 16
"""Most units; more plates are combined into as many groups."""
MAX_SUBSETS = 12
"""Most subsets; each runs the benchmark once more, with few draws."""
DELETED_SHARE = 3 / 8
FEWEST_DRAWS = 19

Measure = Callable[[BenchmarkInput], Iterator[ScoreRow]]


def with_plate_intervals(task: str, measure: Measure, data: BenchmarkInput) -> list[ScoreRow]:
    """The scores of a task; those of `PLATE_METRICS` with an interval over plates where there are three or more.

    The task's own interval becomes `over_classes` in the details. Scores without an interval over plates have the
    reason in `no_plate_interval`.
    """
    scores = list(measure(data))
    metrics = PLATE_METRICS.get(task, ())
    concerned = [each for each in scores if each["metric"] in metrics and each["value"] is not None]
    if not concerned:
        return scores
    names, unit_W = _units(data.wells)
    if len(names) < MIN_UNITS:
        for each in concerned:
            each["details"]["no_plate_interval"] = f"{len(names)} plates, expected {MIN_UNITS} or more"
        return scores
    lean = replace(data, config=replace(data.config, draws=FEWEST_DRAWS))
    spread: dict[tuple[str, str], list[float]] = {}
    for left_out in _left_out(len(names)):
        try:
            remaining = list(measure(_subset(lean, np.flatnonzero(~np.isin(unit_W, left_out)))))
        except ValueError as error:
            for each in concerned:
                each["details"]["no_plate_interval"] = f"without {', '.join(names[i] for i in left_out)}: {error}"
            return scores
        for each in remaining:
            if each["value"] is not None:
                spread.setdefault((each["label"], each["metric"]), []).append(each["value"])
    for each in concerned:
        values = spread.get((each["label"], each["metric"]), [])
        if len(values) == len(_left_out(len(names))):
            _set_interval(each, values, names)
        else:
            each["details"]["no_plate_interval"] = "not defined without some of the plates"
    return scores


def _left_out(n_units: int) -> list[tuple[int, ...]]:
    """Sets of units that are left out together: all choices of about 3/8 of them, or an even seeded sample."""
    size = max(1, math.floor(DELETED_SHARE * n_units))
    if math.comb(n_units, size) <= MAX_SUBSETS:
        return list(itertools.combinations(range(n_units), size))
    random = np.random.default_rng([n_units, size])
    deck: list[int] = []
    sampled: set[tuple[int, ...]] = set()
    while len(sampled) < MAX_SUBSETS:
        if len(deck) < size:  # dealt like cards: every unit is left out about equally often
            deck += [int(i) for i in random.permutation(n_units) if i not in deck]
        sampled.add(tuple(sorted(deck[:size])))
        deck = deck[size:]
    return sorted(sampled)


def _set_interval(score: ScoreRow, values: Sequence[float], names: Sequence[str]) -> None:
    """Replace the interval; `values` are the scores without each set of units."""
    n = len(names)
    half = student_quantile(n - 1) * math.sqrt(delete_d_variance(values, n, len(_left_out(n)[0])))
    score["details"] |= {
        "interval_over": f"{n} {'plates' if n < MAX_UNITS else 'groups of plates'}",
        "over_classes": [score["ci_low"], score["ci_high"]],
    }
    score["ci_low"] = finite(max(0.0, score["value"] - half))
    score["ci_high"] = finite(min(1.0, score["value"] + half))


def _units(wells: Wells) -> tuple[list[str], NDArray[np.intp]]:
    """Names of the units, and the unit of each well."""
    plates = sorted(set(wells.plate), key=natural_order)
    if len(plates) <= MAX_UNITS:
        names = plates
    else:
        sizes = [len(plates[i::MAX_UNITS]) for i in range(MAX_UNITS)]
        names = [f"{plates[i]} and {size - 1} more" for i, size in enumerate(sizes)]
    unit_of = {plate: i % MAX_UNITS for i, plate in enumerate(plates)}
    return names, np.asarray([unit_of[plate] for plate in wells.plate], np.intp)


def _subset(data: BenchmarkInput, rows: NDArray[np.intp]) -> BenchmarkInput:
    """The input with some of the wells."""

    def some(values: Any) -> Any:
        return values[rows] if isinstance(values, np.ndarray) else tuple(values[i] for i in rows.tolist())

    wells = Wells(**{each.name: some(getattr(data.wells, each.name)) for each in fields(Wells)})
    statistics = None if data.pixel_statistics is None else data.pixel_statistics[rows]
    compared = replace(data.compared, vectors=data.compared.vectors[rows], is_control=data.compared.is_control[rows])
    return replace(data, vectors=data.vectors[rows], wells=wells, compared=compared, pixel_statistics=statistics)
