"""Prediction of a query's performance, before the search or before the screen: fit, judgement, files.

The performance of `queries` is predicted from

- the `vector`, before the search: distance from the negative controls, number of changed features, direction, and
  similarity to other compounds and genes. It needs the vector alone, so a search service can predict it for any query.
- the `plan`, before the screen: numbers (dose) and text (compound, gene, mechanism) of the plate map.

Perturbations of one group (all doses of a compound, all guides of a gene) are never on both sides of a fold, so scores
are for compounds and genes that the predictor was not fitted on. The predictor is registered where it beats the best
baseline on them, and else that baseline.

Shapes: N queries, D features of a vector, M numbers.
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
    PREDICTOR,
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
from cytolake.performance_prediction.queries import LOWEST, Measure, Queries
from cytolake.performance_prediction.query_map import Map
from cytolake.performance_prediction.regressors import Family, View
from cytolake.performance_prediction.stack import Predicted, Stack, load_stack
from cytolake.performance_prediction.stack_fitting import StackConfig, balanced_folds, fit_stack
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


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryPredictorConfig(StackConfig):
    """Fit and judgement of a predictor of queries: a stack, in which only `tfidf` reads descriptions."""

    families: tuple[Family, ...] = FAMILIES
    heteroscedastic: bool = False
    """Whether the width of an interval depends on the query; useful with thousands of queries."""
    outer_folds: int = 4
    """Folds that are held out in turn to judge the whole fit."""
    by_direction: bool = False
    """Whether only the direction of vectors is used, as for a service that stores unit vectors. For vectors centred on
    their controls, the length is the most informative feature."""
    bootstrap_draws: int = 1000
    """Resamples behind the intervals of metrics."""

    def __post_init__(self) -> None:
        StackConfig.__post_init__(self)  # super() without arguments does not know a class with slots
        if self.outer_folds < 2:
            raise ValueError(f"outer_folds is {self.outer_folds}, expected 2 or more.")


@dataclass(frozen=True, slots=True)
class QueryReport:
    """Scores of a predictor on held-out perturbations."""

    before: Before
    scores: dict[str, dict[str, Estimate]]
    """Metrics of the predictor, the best baseline and each baseline, over queries: correlations within folds, intervals
    over compounds or genes."""
    of_perturbations: dict[str, dict[str, Estimate]]
    """The same for means over each perturbation's queries."""
    verdict: Verdict
    """What is registered, and the gain of the predictor in error over the baseline that it gains least over."""
    coverage: float
    """Share of held-out queries inside the interval of the registered predictor."""
    width: float
    """Mean width of these intervals."""
    predicted: Predicted
    """(N,) predictions of the registered predictor, each fitted without the query's compound or gene."""
    notes: tuple[str, ...] = field(default=())


@dataclass(slots=True)
class QueryPredictor:
    """A fitted predictor; make one with `fit_query_predictor` or `load_query_predictor`."""

    before: Before
    stack: Stack
    map: Map
    representation_id: str = ""
    """Representation of the training vectors; predictions are valid for it only."""
    measure: Measure = "average_precision"

    def predict(
        self,
        vectors: Numbers | None = None,
        description: Sequence[str] | None = None,
        numbers: Numbers | None = None,
        family: Sequence[str] | None = None,
    ) -> Predicted:
        """Predicted value of `measure` of queries, with calibrated intervals.

        Args:
            vectors: (N, D), for a predictor with `before="search"`.
            family: (N,) compound or gene of each vector, where known. Without it, similarity to the map's own vectors
                of the compound or gene lowers the prediction.
            description: (N,) texts, for a predictor with `before="screen"`.
            numbers: (N, M), for a predictor with `before="screen"`.

        Raises:
            ValueError: An input of this predictor is missing, or has another width.
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


def fit_query_predictor(
    queries: Queries, before: Before, config: QueryPredictorConfig | None = None, progress: Progress | None = None
) -> tuple[QueryPredictor, QueryReport]:
    """Judge the whole fit on held-out compounds or genes, then fit the registered predictor on all queries.

    Each outer fold is predicted by a fit without it, including the choice of settings and of the best baseline.

    Args:
        queries: From `queries_of_profiles`.
        before: `search` (from the vector) or `screen` (from the plan).
        progress: Called for each fit.

    Raises:
        ValueError: An empty plan, for `before="screen"`; see also `fit_stack`.
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
    """The map, the stack, and the baselines, the best first."""
    place = Map.fit(queries.vectors, queries.family, queries.controls, config.by_direction, config.seed)
    if before == "search":
        views = _vector_views(place, queries.vectors, queries.family)
        config = replace(config, families=tuple(each for each in config.families if each != "tfidf"))
    else:
        views = _planned_views(queries.description, queries.numbers)
    of_stack = {name: view for name, view in views.items() if name not in (DISTANCE, WORDS)}
    no_validation = np.zeros(len(queries), dtype=bool)
    stack = fit_stack(of_stack, queries.performance[:, None], group, no_validation, config)
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


def _means(values: Numbers, codes: Codes) -> Numbers:
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))


def _first(values: Codes, codes: Codes) -> Codes:
    _, first = np.unique(codes, return_index=True)
    return np.asarray(values[first])
