"""Intervals over plates for benchmarks that look at all plates at once, by leaving some of the plates out.

Another screen would have other plates, and wells of one plate share its effects, so an interval over genes or
perturbations alone covers too little. Where a benchmark is not a mean over plates (recall of relations, average
precision), the delete-d jackknife gives its variance: with d of U plates left out, (U - d) / d times the variance of
the values over many choices of the d. Statistics that count what passes a threshold, as recall does, need d to grow
with U (Shao and Wu 1989, doi:10.1214/aos/1176347263): with d = 1 the standard error is up to twice too large, with
d = U / 2 it is a quarter too small; 3 U / 8 is right within 15 % in simulations (`make bench-coverage`).

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
from scipy import stats

from cytolake.benchmark.profiles.asked import Asked, Score, finite
from cytolake.benchmark.profiles.wells import Wells
from cytolake.benchmark.unit_scores import MIN_UNITS
from cytolake.storage.natural_order import natural_order

PLATE_METRICS: Mapping[str, tuple[str, ...]] = {
    "relations": ("recall_05_95", "recall_10_90"),
    "activity": ("mean_average_precision",),
    "mechanism": ("mean_average_precision",),
    "nsc": ("nsc",),
}
"""Metrics of each task that have an interval over plates."""
MAX_UNITS = 16
"""More plates are left out in so many groups."""
MAX_SUBSETS = 12
"""Each takes the benchmark once more, without draws."""
DELETED_SHARE = 3 / 8
FEWEST_DRAWS = 19

Measure = Callable[[Asked], Iterator[Score]]


def with_plate_intervals(task: str, measure: Measure, asked: Asked) -> list[Score]:
    """The scores of a task; those of `PLATE_METRICS` with an interval over plates where there are three or more.

    The interval that the task itself gives is kept as `over_classes` in the details. Scores without an interval over
    plates say why in `no_plate_interval`.
    """
    scores = list(measure(asked))
    metrics = PLATE_METRICS.get(task, ())
    concerned = [each for each in scores if each["metric"] in metrics and each["value"] is not None]
    if not concerned:
        return scores
    names, unit_W = _units(asked.wells)
    if len(names) < MIN_UNITS:
        for each in concerned:
            each["details"]["no_plate_interval"] = f"{len(names)} plates, expected {MIN_UNITS} or more"
        return scores
    lean = replace(asked, config=replace(asked.config, draws=FEWEST_DRAWS))
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
    """Which units are left out together: all choices of about 3/8 of them, or a seeded sample, as even as can be."""
    size = max(1, math.floor(DELETED_SHARE * n_units))
    if math.comb(n_units, size) <= MAX_SUBSETS:
        return list(itertools.combinations(range(n_units), size))
    random = np.random.default_rng([n_units, size])
    deck: list[int] = []
    sampled: set[tuple[int, ...]] = set()
    while len(sampled) < MAX_SUBSETS:
        if len(deck) < size:  # dealt like cards, so that every unit is left out about as often
            deck += [int(i) for i in random.permutation(n_units) if i not in deck]
        sampled.add(tuple(sorted(deck[:size])))
        deck = deck[size:]
    return sorted(sampled)


def _set_interval(score: Score, values: Sequence[float], names: Sequence[str]) -> None:
    """`values`: each without some of the units."""
    n, left_out = len(names), _left_out(len(names))
    size, is_sample = len(left_out[0]), len(left_out) < math.comb(n, len(left_out[0]))
    variance = (n - size) / size * float(np.var(values, ddof=1 if is_sample else 0))
    half = float(stats.t.ppf(0.975, n - 1)) * math.sqrt(variance)
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


def _subset(asked: Asked, rows: NDArray[np.intp]) -> Asked:
    """What is asked of some of the wells."""

    def some(values: Any) -> Any:
        return values[rows] if isinstance(values, np.ndarray) else tuple(values[i] for i in rows.tolist())

    wells = Wells(**{each.name: some(getattr(asked.wells, each.name)) for each in fields(Wells)})
    statistics = None if asked.pixel_statistics is None else asked.pixel_statistics[rows]
    compared = replace(asked.compared, vectors=asked.compared.vectors[rows], is_control=asked.compared.is_control[rows])
    return replace(asked, vectors=asked.vectors[rows], wells=wells, compared=compared, pixel_statistics=statistics)
