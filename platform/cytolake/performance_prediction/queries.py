"""Predict how well a query will find its own, before the search runs or before the screen does.

A query is one profile (a well's, or a crop's). Its performance is one of two measures: the average precision with which
cosine similarity ranks the other profiles of its perturbation above those of all others, or its replicate consistency,
the mean cosine with those other profiles. It is predicted from

- the `vector`, before the search: how far it lies from the negative controls, in how many features, in which direction,
  and how crowded it is there with other compounds and genes. It needs the vector alone, so a search service can predict
  it of any query.
- the `plan`, before the screen: what is in the plate map, as numbers (dose) and as text (compound, gene, mechanism).

Perturbations of one group (all doses of a compound, all guides of a gene) are never on both sides: a figure is of
compounds and genes that the predictor has not seen. What is registered is the predictor where it beats the best
baseline on them, and else that baseline.

N queries, D features of a vector, M numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.baselines import (
    BEST,
    MEAN,
    PREDICTOR,
    TFIDF,
    Baseline,
    FittedBaseline,
    HeldOut,
    Verdict,
    fit_baselines,
    line_of,
    mean_score,
    ridge_of_words,
    score_each,
)
from cytolake.performance_prediction.correlations import Estimate
from cytolake.performance_prediction.query_map import Map
from cytolake.performance_prediction.query_performance import LOWEST, Measure, realised_performance
from cytolake.performance_prediction.regressors import Family, View
from cytolake.performance_prediction.stacked import (
    Predicted,
    Stack,
    StackConfig,
    balanced_folds,
    fit_stack,
    load_stack,
)
from cytolake.performance_prediction.text_features import surface

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]
Progress = Callable[[str, int, int], None]
Before = Literal["search", "screen"]
CARD_FILE, MAP_FILE = "queries.json", "map.npz"
FAMILIES: tuple[Family, ...] = ("tfidf", "ridge", "kernel_ridge", "boosting", "knn")
STRENGTH, LENGTH = "distance from controls", "text length"
DISTANCE, WORDS = "distance", "words"
BASELINES: Mapping[Before, tuple[Baseline, ...]] = {
    "search": (mean_score("vector"), line_of(STRENGTH, DISTANCE)),
    "screen": (mean_score("plan"), line_of(LENGTH, WORDS), ridge_of_words("text")),
}
MIN_QUERIES, MIN_GROUPS, MIN_CONTROLS = 30, 10, 4

__all__ = [
    "BEST", "LENGTH", "MEAN", "PREDICTOR", "STRENGTH", "TFIDF", "Before", "Map", "Measure", "Queries", "QueryPredictor",
    "QueryPredictorConfig", "QueryReport", "fit_query_predictor", "load_query_predictor", "queries_of_profiles",
    "realised_performance",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryPredictorConfig(StackConfig):
    """How a predictor of queries is fitted and judged: a stack, of which `tfidf` alone reads descriptions."""

    families: tuple[Family, ...] = FAMILIES
    heteroscedastic: bool = False
    """Let the width of an interval depend on the query: worth it from thousands of queries on."""
    outer_folds: int = 4
    """Folds that are held out, one after the other, to judge the whole fit."""
    by_direction: bool = False
    """Look at the direction of vectors alone, as where a service keeps them at unit length. Of vectors that were
    centred on their controls the length says most."""
    bootstrap_draws: int = 1000
    """Resamples of the intervals of figures."""

    def __post_init__(self) -> None:
        StackConfig.__post_init__(self)  # super() without arguments does not know a class with slots
        if self.outer_folds < 2:
            raise ValueError(f"outer_folds is {self.outer_folds}, expected 2 or more.")


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries whose performance is known: N of each field."""

    vectors: Numbers
    """(N, D) profiles."""
    perturbation: list[str]
    """What a query should find again."""
    family: list[str]
    """Compound or gene: held out as a whole."""
    description: list[str]
    """What the plate map says, in words; empty where it says nothing."""
    numbers: Numbers
    """(N, M) what the plate map says in numbers, such as the dose; NaN where nothing."""
    performance: Numbers
    """(N,) what each query reaches, by `measure`."""
    controls: Numbers
    """(controls, D) profiles of the negative controls."""
    measure: Measure = "average_precision"
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.perturbation)

    def rows(self, index: Codes) -> Queries:
        """Some of the queries; the controls stay."""
        return replace(
            self,
            vectors=self.vectors[index],
            perturbation=[self.perturbation[i] for i in index],
            family=[self.family[i] for i in index],
            description=[self.description[i] for i in index],
            numbers=self.numbers[index],
            performance=self.performance[index],
        )


@dataclass(frozen=True, slots=True)
class QueryReport:
    """How well performance was predicted for perturbations that were held out."""

    before: Before
    scores: dict[str, dict[str, Estimate]]
    """Metric by metric of the predictor, the best baseline and each baseline, over queries: correlations within folds,
    intervals resample compounds or genes."""
    of_perturbations: dict[str, dict[str, Estimate]]
    """The same of means over each perturbation's queries."""
    verdict: Verdict
    """What is registered, and by how much the predictor's error is less than that of the best baseline."""
    coverage: float
    """Share of held-out queries inside the interval of what is registered."""
    width: float
    """Mean width of these intervals."""
    predicted: Predicted
    """(N,) of each query by what is registered, fitted without its compound or gene."""
    notes: tuple[str, ...] = field(default=())


@dataclass(slots=True)
class QueryPredictor:
    """A fitted predictor; make one with `fit_query_predictor` or `load_query_predictor`."""

    before: Before
    stack: Stack
    map: Map
    representation_id: str = ""
    """Whose vectors it was fitted on; it says nothing of others."""
    measure: Measure = "average_precision"

    def predict(
        self,
        vectors: Numbers | None = None,
        description: Sequence[str] | None = None,
        numbers: Numbers | None = None,
        family: Sequence[str] | None = None,
    ) -> Predicted:
        """What queries will reach by `measure`, with calibrated intervals.

        Args:
            vectors: (N, D), for a predictor of `before="search"`.
            family: (N,) compound or gene of each vector, where that is known: else the map's own vectors of it make the
                place look crowded, and the prediction reads low.
            description: (N,) texts, for one of `before="screen"`.
            numbers: (N, M), for one of `before="screen"`.

        Raises:
            ValueError: What this predictor reads is not given, or has another width.
        """
        if self.before == "search":
            if vectors is None or vectors.ndim != 2 or vectors.shape[1] != len(self.map.mean):
                shape = None if vectors is None else vectors.shape
                raise ValueError(
                    f"vectors of shape {shape}: this predictor was fitted on (queries, {len(self.map.mean)})."
                )
            views = _vector_views(self.map, np.asarray(vectors, dtype=float), family)
        else:
            if description is None or numbers is None or len(numbers) != len(description):
                raise ValueError("this predictor reads descriptions and numbers: expected as many of both.")
            views = _planned_views(list(description), np.asarray(numbers, dtype=float))
        found = self.stack.predict(views)
        lowest = LOWEST[self.measure]
        return Predicted(*(np.clip(each, lowest, 1.0) for each in (found.score, found.low, found.high)))

    def save(self, folder: Path) -> None:
        """Write the predictor into a folder, without pickle."""
        self.stack.save(folder)
        arrays = {name: getattr(self.map, name) for name in ("mean", "sd", "axes", "landmarks")}
        np.savez(folder / MAP_FILE, **arrays)
        card = {
            "before": self.before,
            "representation_id": self.representation_id,
            "measure": self.measure,
            "by_direction": self.map.by_direction,
            "landmark_family": self.map.landmark_family,
        }
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_query_predictor(folder: str | Path) -> QueryPredictor:
    """Read a stored predictor.

    Raises:
        ValueError: Files are missing or damaged.
    """
    folder = Path(folder)
    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        with np.load(folder / MAP_FILE, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in ("mean", "sd", "axes", "landmarks")}
        place = Map(**arrays, landmark_family=card["landmark_family"], by_direction=card["by_direction"])
        return QueryPredictor(card["before"], load_stack(folder), place, card["representation_id"], card["measure"])
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: no readable predictor of queries ({error}). Fit it again.") from error


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
    """Every treated profile as a query, with the performance it has.

    Args:
        vectors: (N, D) profiles, aligned as they are searched.
        perturbation: (N,) what was done; rows of an empty name are left out.
        family: (N,) compound or gene, held out as a whole.
        description: (N,) texts for a predictor from the plan.
        numbers: (N, M) numbers for it.
        plate: (N,) plate of each.
        is_control: (N,) negative controls.
        most: At most this many queries, drawn; 0 takes all.
        seed: Of the draw.
        measure: Of performance.

    Raises:
        ValueError: Fewer than 4 controls, 30 queries or 10 families; or all queries perform alike.
    """
    if is_control.sum() < MIN_CONTROLS:
        raise ValueError(
            f"{int(is_control.sum())} negative controls among {len(is_control)} profiles, expected at least "
            f"{MIN_CONTROLS}: queries are measured against them. Mark the controls in the plate map."
        )
    named = np.array([bool(name) for name in perturbation]) | is_control
    performance = np.full(len(is_control), np.nan)
    kept = np.flatnonzero(named)
    performance[kept] = realised_performance(
        vectors[kept], _take(perturbation, kept), _take(plate, kept), is_control[kept], measure
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


def fit_query_predictor(
    queries: Queries, before: Before, config: QueryPredictorConfig | None = None, progress: Progress | None = None
) -> tuple[QueryPredictor, QueryReport]:
    """Judge the whole fit on held-out compounds or genes, then fit on all queries what is to be registered.

    Each of the outer folds is predicted by a fit that never saw it, its choice of settings and of the best baseline
    included.

    Args:
        queries: As `queries_of_profiles` gives them.
        before: `search` (from the vector) or `screen` (from the plan).
        config: Families, folds, coverage.
        progress: Called with each fit.

    Raises:
        ValueError: A plan that says nothing, for `before="screen"`; see also `fit_stack`.
    """
    config = config or QueryPredictorConfig()
    if before == "screen" and not any(queries.description) and not np.isfinite(queries.numbers).any():
        raise ValueError("no query has a description or a number: expected a compound, gene, mechanism or dose.")
    group = np.unique(np.asarray(queries.family), return_inverse=True)[1].astype(np.intp)
    fold = balanced_folds(group, config.outer_folds, config.seed + 1)
    found, n = HeldOut(len(queries)), len(queries)
    for k in range(config.outer_folds):
        if progress is not None:
            progress("fits", k, config.outer_folds + 1)
        rest, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        place, stack, baselines = _fit(queries.rows(rest), group[rest], before, config)
        part = queries.rows(held)
        stacks = {PREDICTOR: stack, **{each.name: each.stack for each in baselines}}
        predicted = {
            name: QueryPredictor(before, each, place, measure=queries.measure).predict(
                part.vectors, part.description, part.numbers, part.family
            )
            for name, each in stacks.items()
        }
        found.add(held, predicted, baselines[0].name)
    if progress is not None:
        progress("fits", config.outer_folds, config.outer_folds + 1)
    place, stack, baselines = _fit(queries, group, before, config)
    all_rows = np.arange(n)
    truth = queries.performance
    verdict = found.verdict(baselines[0].name, truth, group, all_rows, config.seed, config.bootstrap_draws)
    predictor = QueryPredictor(
        before, stack if verdict.is_beaten else baselines[0].stack, place, measure=queries.measure
    )
    predicted = {name: found.of(name) for name in found.names(all_rows)}
    registered = predicted[verdict.registered]

    def scored(means: Callable[[Numbers], Numbers], folds: Codes, of: Codes) -> dict[str, dict[str, Estimate]]:
        values = [(name, means(each.score)) for name, each in predicted.items()]
        return score_each(means(truth), values, folds.astype(str).tolist(), of, config.bootstrap_draws, config.seed)

    perturbation = np.unique(np.asarray(queries.perturbation), return_inverse=True)[1]
    report = QueryReport(
        before=before,
        scores=scored(lambda values: values, fold, group),
        of_perturbations=scored(
            lambda values: _means(values, perturbation), _first(fold, perturbation), _first(group, perturbation)
        ),
        verdict=verdict,
        coverage=float(((registered.low <= truth) & (truth <= registered.high)).mean()),
        width=float((registered.high - registered.low).mean()),
        predicted=registered,
        notes=queries.notes,
    )
    return predictor, report


def _fit(
    queries: Queries, group: Codes, before: Before, config: QueryPredictorConfig
) -> tuple[Map, Stack, list[FittedBaseline]]:
    """The map, the stack, and the baselines from the best down."""
    place = Map.fit(queries.vectors, queries.family, queries.controls, config.by_direction, config.seed)
    if before == "search":
        views = _vector_views(place, queries.vectors, queries.family)
        config = replace(config, families=tuple(each for each in config.families if each != "tfidf"))
    else:
        views = _planned_views(queries.description, queries.numbers)
    of_stack = {name: view for name, view in views.items() if name not in (DISTANCE, WORDS)}
    nothing_held = np.zeros(len(queries), dtype=bool)
    stack = fit_stack(of_stack, queries.performance[:, None], group, nothing_held, config)
    return place, stack, fit_baselines(BASELINES[before], views, queries.performance, group, config)


def _vector_views(place: Map, vectors: Numbers, family: Sequence[str] | None) -> dict[str, View]:
    features = place.features(vectors, family)
    return {"vector": features, DISTANCE: features[:, :1]}


def _planned_views(description: list[str], numbers: Numbers) -> dict[str, View]:
    known = np.isfinite(numbers)
    counts = surface(description)
    logs = np.where(known, np.sign(numbers) * np.log1p(np.abs(np.where(known, numbers, 0.0))), 0.0)
    return {
        "text": [text or "unknown" for text in description],
        "plan": np.column_stack([logs, known, counts]),
        WORDS: counts[:, :1],
    }


def _take(values: Sequence[str], rows: Codes) -> list[str]:
    return [values[i] for i in rows.tolist()]


def _means(values: Numbers, codes: Codes) -> Numbers:
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))


def _first(values: Codes, codes: Codes) -> Codes:
    _, first = np.unique(codes, return_index=True)
    return np.asarray(values[first])
