"""How well will this query find its own? Told before the search runs, or before the screen does.

A query is one profile (a well's, or a crop's). Its performance is one of two measures: the average precision with which
cosine similarity ranks the other profiles of its perturbation above those of all others, or its replicate consistency,
the mean cosine with those other profiles. What tells it beforehand:

- `vector`, before the search: how far the query's vector lies from the negative controls, in how many features, in
  which direction, and how crowded it is there with other compounds and genes. It needs the vector alone, so a search
  service can ask it of any query.
- `planned`, before the screen: what is in the plate map, as numbers (dose) and as text (compound, gene, mechanism).

Perturbations of one group (all doses of a compound, all guides of a gene) are never on both sides: a figure is of
compounds and genes that the predictor has not seen.

N queries, D features of a vector, K axes, M numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.average_precision import average_precision
from cytolake.benchmark.retrieval.pairs import PairRules
from cytolake.performance_prediction.correlations import Estimate, score_predictions
from cytolake.performance_prediction.regressors import Family, View
from cytolake.performance_prediction.stacked import Predicted, Stack, StackConfig, fit_stack, load_stack
from cytolake.performance_prediction.text_features import surface

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]
Progress = Callable[[str, int, int], None]
Before = Literal["search", "screen"]
Measure = Literal["average_precision", "replicate_consistency"]
LOWEST: Mapping[Measure, float] = {"average_precision": 0.0, "replicate_consistency": -1.0}
"""The least that each can be; both are at most 1."""

CARD_FILE, MAP_FILE = "queries.json", "map.npz"
FAMILIES: tuple[Family, ...] = ("tfidf", "ridge", "kernel_ridge", "boosting", "knn")
PREDICTOR, MEAN, STRENGTH, LENGTH = "predictor", "mean", "distance from controls", "text length"
MIN_QUERIES, MIN_GROUPS, MIN_CONTROLS = 30, 10, 4
STRONG = 3.0
"""A feature this many control sds away counts as changed."""
N_AXES, N_LANDMARKS = 16, 512
NEAREST = (1, 10, 30)


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
class Map:
    """What a query's vector is measured against: where the negative controls lie, and what else is crowded there."""

    mean: Numbers
    """(D,) of the controls."""
    sd: Numbers
    """(D,) of the controls, 1 where they do not vary."""
    axes: Numbers
    """(K, D) main directions of the queries fitted on, in control sds."""
    landmarks: Numbers
    """(L, D) unit vectors of some of the queries fitted on."""
    landmark_family: list[str]
    """(L,) compound or gene of each."""
    by_direction: bool
    """Whether vectors are brought to unit length first."""

    @classmethod
    def fit(cls, queries: Queries, by_direction: bool = False, seed: int = 0) -> Map:
        """From the queries and controls that a predictor is fitted on."""
        controls, vectors = queries.controls, queries.vectors
        if by_direction:
            controls, vectors = _unit(controls), _unit(vectors)
        mean, sd = controls.mean(axis=0), controls.std(axis=0)
        sd = np.where(sd > 1e-9 * max(float(np.abs(mean).max()), 1e-12), sd, 1.0)
        z = _squashed((vectors - mean) / sd)
        _, _, axes = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
        n = min(N_LANDMARKS, len(queries))
        drawn = np.sort(np.random.default_rng(seed).choice(len(queries), n, replace=False)).astype(np.intp)
        return cls(mean, sd, axes[:N_AXES], _unit(vectors[drawn]), _take(queries.family, drawn), by_direction)

    def features(self, vectors: Numbers, family: Sequence[str] | None = None) -> Numbers:
        """(N, 8 + K): log of the distance in control sds, share of changed features, largest change, cosine with the
        mean of the controls, log of the length; mean cosine with the 1, 10 and 30 nearest landmarks of other compounds
        and genes; then coordinates on the axes.

        Args:
            vectors: (N, D).
            family: (N,) compound or gene of each: its own landmarks do not count. None: not known.
        """
        if self.by_direction:
            vectors = _unit(vectors)
        z = _squashed((vectors - self.mean) / self.sd)
        length = np.linalg.norm(vectors, axis=1)
        cosine = vectors @ self.mean / np.maximum(length * np.linalg.norm(self.mean), 1e-12)
        near = _unit(vectors) @ self.landmarks.T
        if family is not None:
            near[np.asarray(family)[:, None] == np.asarray(self.landmark_family)[None, :]] = -1.0
        near = -np.sort(-near, axis=1)
        return np.column_stack(
            [
                np.log1p(np.sqrt((z**2).mean(axis=1))),
                (np.abs(z) > STRONG).mean(axis=1),
                np.log1p(np.abs(z).max(axis=1)),
                cosine,
                np.log1p(length),
                *(near[:, :n].mean(axis=1) for n in NEAREST),
                z @ self.axes.T,
            ]
        )


@dataclass(frozen=True, slots=True)
class QueryReport:
    """How well performance was predicted for perturbations that were held out."""

    before: Before
    scores: dict[str, dict[str, Estimate]]
    """Metric by metric of the predictor and each baseline, over queries; intervals resample compounds or genes."""
    of_perturbations: dict[str, dict[str, Estimate]]
    """The same of means over each perturbation's queries."""
    coverage: float
    """Share of held-out queries inside their interval."""
    width: float
    predicted: Predicted
    """(N,) of each query, fitted without its compound or gene."""
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
            ValueError: What this predictor is told from is not given, or has another width.
        """
        if self.before == "search":
            if vectors is None or vectors.ndim != 2 or vectors.shape[1] != len(self.map.mean):
                shape = None if vectors is None else vectors.shape
                raise ValueError(
                    f"vectors of shape {shape}: this predictor was fitted on (queries, {len(self.map.mean)})."
                )
            views: Mapping[str, View] = {"vector": self.map.features(np.asarray(vectors, dtype=float), family)}
        else:
            if description is None or numbers is None or len(numbers) != len(description):
                raise ValueError("this predictor is told from descriptions and numbers: expected as many of both.")
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


def realised_performance(
    vectors: Numbers,
    perturbation: Sequence[str],
    plate: Sequence[str],
    is_control: NDArray[np.bool_],
    measure: Measure = "average_precision",
) -> Numbers:
    """(N,) performance of each profile as a query; NaN for controls, and for a perturbation of one profile.

    Positives are profiles of the same perturbation, on other plates where each perturbation has some, for replicates of
    one plate share more than what was done to them; negatives are those of all others, controls included.
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
    """(N,) mean cosine with the others of the same name, on other plates where asked; NaN where there is none."""
    unit = _unit(np.asarray(vectors, dtype=float))
    of_name = np.unique(names, return_inverse=True)[1]
    on_plate = np.unique(plate, return_inverse=True)[1]
    # The sum over all of a name, less those that do not count: of the same plate, or the query alone.
    pair = of_name * (on_plate.max() + 1) + on_plate if is_across else np.arange(len(names))
    dots, counts = np.zeros(len(names)), np.zeros(len(names))
    for codes, sign in ((of_name, 1.0), (np.unique(pair, return_inverse=True)[1], -1.0)):
        sums = np.zeros((codes.max() + 1, unit.shape[1]))
        np.add.at(sums, codes, unit)
        dots += sign * np.einsum("nd,nd->n", sums[codes], unit)
        counts += sign * np.bincount(codes)[codes]
    return np.where(counts > 0, dots / np.maximum(counts, 1), np.nan)


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
            f"all {len(rows)} queries have the {measure.replace('_', ' ')} {performance[rows[0]]:g}: nothing can be "
            "told apart."
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
    """Judge the whole fit on held-out compounds or genes, then fit on all queries.

    Each of the outer folds is predicted by a fit that never saw it, its choice of settings included.

    Args:
        queries: As `queries_of_profiles` gives them.
        before: `search` (from the vector) or `screen` (from the plan).
        config: Families, folds, coverage.
        progress: Told of each fit.

    Raises:
        ValueError: A plan that says nothing, for `before="screen"`; see also `fit_stack`.
    """
    config = config or QueryPredictorConfig()
    if before == "screen" and not any(queries.description) and not np.isfinite(queries.numbers).any():
        raise ValueError("no query has a description or a number: expected a compound, gene, mechanism or dose.")
    group = np.unique(np.asarray(queries.family), return_inverse=True)[1].astype(np.intp)
    fold = _outer_folds(group, config.outer_folds, config.seed)
    n = len(queries)
    told = {name: np.zeros(n) for name in (PREDICTOR, "low", "high", STRENGTH, LENGTH)}
    # Of all queries: means of the folds' rests are highest where the held out are lowest, a correlation of its own.
    told[MEAN] = np.full(n, queries.performance.mean())
    n_fits = int(fold.max()) + 2
    for k in range(n_fits - 1):
        if progress is not None:
            progress("fits", k, n_fits)
        rest, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        fitted = _fit(queries.rows(rest), group[rest], before, config)
        part = queries.rows(held)
        found = fitted.predict(part.vectors, part.description, part.numbers, part.family)
        told[PREDICTOR][held], told["low"][held], told["high"][held] = found.score, found.low, found.high
        distance = fitted.map.features(queries.vectors)[:, 0]
        words = surface(queries.description)[:, 0]
        for name, x in ((STRENGTH, distance), (LENGTH, words)):
            told[name][held] = _line(x[rest], queries.performance[rest], x[held])
    if progress is not None:
        progress("fits", n_fits - 1, n_fits)
    predictor = _fit(queries, group, before, config)
    baselines = (MEAN, STRENGTH) if before == "search" else (MEAN, LENGTH)

    def scored(truth: Numbers, values: Numbers, of: Codes) -> dict[str, Estimate]:
        return score_predictions(truth, values, None, of, config.bootstrap_draws, config.seed)

    perturbation = np.unique(np.asarray(queries.perturbation), return_inverse=True)[1]
    truth, family = _means(queries.performance, perturbation), _first(group, perturbation)
    report = QueryReport(
        before=before,
        scores={name: scored(queries.performance, told[name], group) for name in (PREDICTOR, *baselines)},
        of_perturbations={
            name: scored(truth, _means(told[name], perturbation), family) for name in (PREDICTOR, *baselines)
        },
        coverage=float(((told["low"] <= queries.performance) & (queries.performance <= told["high"])).mean()),
        width=float((told["high"] - told["low"]).mean()),
        predicted=Predicted(told[PREDICTOR], told["low"], told["high"]),
        notes=queries.notes,
    )
    return predictor, report


def _fit(queries: Queries, group: Codes, before: Before, config: QueryPredictorConfig) -> QueryPredictor:
    place = Map.fit(queries, config.by_direction, config.seed)
    views: Mapping[str, View] = (
        {"vector": place.features(queries.vectors, queries.family)}
        if before == "search"
        else _planned_views(queries.description, queries.numbers)
    )
    if before == "search":
        families = tuple(each for each in config.families if each != "tfidf")
        config = replace(config, families=families)
    nothing_held = np.zeros(len(queries), dtype=bool)
    stack = fit_stack(views, queries.performance[:, None], group, nothing_held, config)
    return QueryPredictor(before, stack, place, measure=queries.measure)


def _planned_views(description: list[str], numbers: Numbers) -> dict[str, View]:
    known = np.isfinite(numbers)
    logs = np.where(known, np.sign(numbers) * np.log1p(np.abs(np.where(known, numbers, 0.0))), 0.0)
    return {
        "text": [text or "unknown" for text in description],
        "plan": np.column_stack([logs, known, surface(description)]),
    }


def _unit(vectors: Numbers) -> Numbers:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _take(values: Sequence[str], rows: Codes) -> list[str]:
    return [values[i] for i in rows.tolist()]


def _squashed(z: Numbers) -> Numbers:
    """Signed log beyond one sd: a control that hardly varies must not drown all other features."""
    return np.asarray(np.where(np.abs(z) > 1, np.sign(z) * (1 + np.log(np.maximum(np.abs(z), 1))), z))


def _line(x: Numbers, y: Numbers, at: Numbers) -> Numbers:
    if np.ptp(x) == 0:
        return np.full(len(at), y.mean())
    slope, intercept = np.polyfit(x, y, 1)
    return np.asarray(at * slope + intercept)


def _means(values: Numbers, codes: Codes) -> Numbers:
    return np.asarray(np.bincount(codes, values) / np.bincount(codes))


def _first(values: Codes, codes: Codes) -> Codes:
    _, first = np.unique(codes, return_index=True)
    return np.asarray(values[first])


def _outer_folds(group: Codes, n_folds: int, seed: int) -> Codes:
    order = np.random.default_rng(seed + 1).permutation(int(group.max()) + 1)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return np.asarray(place[group] % n_folds)
