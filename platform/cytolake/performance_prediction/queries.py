"""Queries with known performance, to fit and judge a predictor.

A query is one profile (of a well or a crop). Its performance is one of two measures: the average precision with which
cosine similarity ranks the other profiles of its perturbation above those of all others, or its replicate consistency,
the mean cosine with those other profiles.

Shapes: N queries, D features of a vector, M numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.average_precision import average_precision
from cytolake.benchmark.retrieval.pairs import PairRules
from cytolake.performance_prediction.query_map import SHORTEST
from cytolake.statistics.unit_vectors import unit_vectors

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]
Measure = Literal["average_precision", "replicate_consistency"]
LOWEST: Mapping[Measure, float] = {"average_precision": 0.0, "replicate_consistency": -1.0}
"""Lowest possible value of each measure; the highest is 1."""
MIN_QUERIES, MIN_GROUPS, MIN_CONTROLS = 30, 10, 4


@dataclass(frozen=True, slots=True)
class Queries:
    """N queries with known performance."""

    vectors: Numbers
    """(N, D) profiles."""
    perturbation: list[str]
    """(N,) perturbation, which a query should retrieve."""
    family: list[str]
    """(N,) compound or gene, which is held out whole."""
    description: list[str]
    """(N,) labels of the plate map as text; empty without labels."""
    numbers: Numbers
    """(N, M) numbers of the plate map, such as the dose; NaN where missing."""
    performance: Numbers
    """(N,) value of `measure` for each query."""
    controls: Numbers
    """(controls, D) profiles of the negative controls."""
    measure: Measure = "average_precision"
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.perturbation)

    def rows(self, index: Codes) -> Queries:
        """Some of the queries, with all controls."""
        return replace(
            self,
            vectors=self.vectors[index],
            perturbation=[self.perturbation[i] for i in index],
            family=[self.family[i] for i in index],
            description=[self.description[i] for i in index],
            numbers=self.numbers[index],
            performance=self.performance[index],
        )


def queries_of_profiles(
    vectors: Numbers,
    perturbation: Sequence[str],
    family: Sequence[str],
    description: Sequence[str],
    numbers: Numbers,
    plate: Sequence[str],
    is_control: NDArray[np.bool_],
    most: int = 0,
    seed: int = 0,
    measure: Measure = "average_precision",
) -> Queries:
    """Every treated profile as a query, with its performance.

    Args:
        vectors: (N, D) profiles, aligned as in the search.
        perturbation: (N,) perturbation; rows with an empty name are left out.
        family: (N,) compound or gene, which is held out whole.
        description: (N,) texts of the plan.
        numbers: (N, M) numbers of the plan.
        plate: (N,) plate of each.
        is_control: (N,) negative controls.
        most: Most queries, a random sample of more; 0 takes all.

    Raises:
        ValueError: Fewer than 4 controls, 30 queries or 10 families; or equal performance of all queries.
    """
    if is_control.sum() < MIN_CONTROLS:
        raise ValueError(
            f"{int(is_control.sum())} negative controls among {len(is_control)} profiles, expected at least "
            f"{MIN_CONTROLS}: queries are measured against them. Mark the controls in the plate map."
        )
    named = np.array([bool(name) for name in perturbation]) | is_control
    performance = np.full(len(is_control), np.nan)
    used = np.flatnonzero(named)
    performance[used] = realised_performance(
        vectors[used], _take(perturbation, used), _take(plate, used), is_control[used], measure
    )
    rows = np.flatnonzero(np.isfinite(performance)).astype(np.intp)
    alone = int((named & ~is_control).sum()) - len(rows)
    notes = [f"{alone:,} profiles have no replicate and are no queries"] if alone else []
    if most and len(rows) > most:
        notes.append(f"{most:,} of {len(rows):,} queries drawn")
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    n_families = len(set(_take(family, rows)))
    if len(rows) < MIN_QUERIES or n_families < MIN_GROUPS:
        raise ValueError(
            f"{len(rows)} queries of {n_families} compounds or genes with replicates, expected at least {MIN_QUERIES} "
            f"of {MIN_GROUPS}: some must be held out whole."
        )
    if np.ptp(performance[rows]) == 0:
        raise ValueError(
            f"all {len(rows)} queries have the {measure.replace('_', ' ')} {performance[rows[0]]:g}: there is "
            "nothing to predict."
        )
    return Queries(
        vectors=np.asarray(vectors[rows], dtype=float),
        perturbation=_take(perturbation, rows),
        family=_take(family, rows),
        description=_take(description, rows),
        numbers=np.asarray(numbers, dtype=float)[rows],
        performance=performance[rows],
        controls=np.asarray(vectors[is_control], dtype=float),
        measure=measure,
        notes=tuple(notes),
    )


def realised_performance(
    vectors: Numbers,
    perturbation: Sequence[str],
    plate: Sequence[str],
    is_control: NDArray[np.bool_],
    measure: Measure = "average_precision",
) -> Numbers:
    """(N,) performance of each profile as a query; NaN for controls, and for a perturbation with one profile.

    Positives are profiles of the same perturbation, on other plates where every perturbation has several plates,
    because replicates of one plate share more than the perturbation. Negatives are all others, controls included.
    """
    names = np.where(is_control, "\0control", np.asarray(perturbation, dtype=object)).astype(str)
    plates: dict[str, set[str]] = {}
    for name, on, control in zip(names.tolist(), plate, is_control.tolist(), strict=True):
        if not control:
            plates.setdefault(name, set()).add(on)
    is_across = bool(plates) and all(len(each) > 1 for each in plates.values())
    if measure == "replicate_consistency":
        values = _replicate_cosine(vectors, names, np.asarray(plate, dtype=str), is_across)
    else:
        table = pa.table({"perturbation": names.tolist(), "plate": list(plate)})
        across = ("plate",) if is_across else ()
        rules = PairRules(pos_sameby=("perturbation",), pos_diffby=across, neg_diffby=("perturbation",))
        scores = average_precision(table, vectors, rules)["average_precision"]
        values = np.array([np.nan if v is None else v for v in scores.to_pylist()], dtype=float)
    values[is_control] = np.nan
    return values


def _replicate_cosine(vectors: Numbers, names: NDArray[np.str_], plate: NDArray[np.str_], is_across: bool) -> Numbers:
    """(N,) mean cosine with the others of the same name, on other plates where `is_across`; NaN without others."""
    unit_ND = unit_vectors(np.asarray(vectors, dtype=float), least_length=SHORTEST)
    of_name = np.unique(names, return_inverse=True)[1]
    on_plate = np.unique(plate, return_inverse=True)[1]
    # The sum over all of a name, less those that do not count: the same plate, or the query itself.
    pair = of_name * (on_plate.max() + 1) + on_plate if is_across else np.arange(len(names))
    dots, counts = np.zeros(len(names)), np.zeros(len(names))
    for codes, sign in ((of_name, 1.0), (np.unique(pair, return_inverse=True)[1], -1.0)):
        sums = np.zeros((codes.max() + 1, unit_ND.shape[1]))
        np.add.at(sums, codes, unit_ND)
        dots += sign * np.einsum("nd,nd->n", sums[codes], unit_ND)
        counts += sign * np.bincount(codes)[codes]
    return np.where(counts > 0, dots / np.maximum(counts, 1), np.nan)


def _take(values: Sequence[str], rows: Codes) -> list[str]:
    return [values[i] for i in rows.tolist()]
