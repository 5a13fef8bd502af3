"""A stack of regressors: settings chosen by cross-validation, weights fitted out of fold, intervals calibrated.

Every family of regressors is tried with every setting on every view, in folds that keep groups whole. The best of each
family is kept; their out-of-fold predictions are weighed by a regression whose weights are not negative. Whether the
stack or one family alone is used is decided on held-out rows, never on the test part.

The interval of a prediction is conformal: residuals that the stack made out of fold, divided by how wide they are
expected to be, give the half-width that covers the wanted share of new rows of the same kind.

N rows, T targets (the score first), F families, V rows of the validation part.

Source: stacking: Breiman 1996, doi:10.1007/BF00117832; normalised conformal intervals: Lei et al. 2018,
doi:10.1080/01621459.2017.1307116.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cytolake.performance_prediction.correlations import correlation
from cytolake.performance_prediction.regressors import (
    FAMILIES,
    SCORE_ALONE,
    Candidate,
    Family,
    View,
    Views,
    build,
    candidates,
)

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]
Progress = Callable[[str, int, int], None]

STACK = "stack"
MODEL_FILE, CARD_FILE = "regressors.skops", "stack.json"
TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
)
"""Types beyond skops' own list that a stored stack may hold: parts of scikit-learn, none of which runs code on load."""
SPREAD_FLOOR = 0.25
"""A residual is never expected to be less than this share of the usual one: intervals must not collapse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StackConfig:
    """How a stack is fitted."""

    families: tuple[Family, ...] = FAMILIES
    """Regressors that take part."""
    folds: int = 5
    """Folds of the cross-validation; groups are kept whole."""
    coverage: float = 0.9
    """Share of new rows whose score the interval should cover."""
    heteroscedastic: bool = True
    """Let the width of an interval depend on the row; else one width serves all."""
    seed: int = 0
    """Of the folds and of regressors that draw."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            raise ValueError(f"families are {self.families}, expected some of {', '.join(FAMILIES)}.")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}, expected 2 or more.")
        if not 0.5 <= self.coverage < 1:
            raise ValueError(f"coverage is {self.coverage}, expected at least 0.5 and below 1.")


@dataclass(frozen=True, slots=True)
class Predicted:
    """Scores of N inputs."""

    score: Numbers
    """(N,) in the unit of the scores fitted on."""
    low: Numbers
    """(N,) lower end of the calibrated interval."""
    high: Numbers
    """(N,) upper end."""

    def rows(self, index: Codes) -> Predicted:
        """Some of the inputs."""
        return Predicted(self.score[index], self.low[index], self.high[index])


@dataclass(frozen=True, slots=True)
class Trial:
    """How one candidate did."""

    candidate: Candidate
    pearson: float
    """Of the score, out of fold on the training part."""


@dataclass(slots=True)
class Stack:
    """A fitted stack; make one with `fit_stack` or `load_stack`."""

    chosen: str
    """`stack`, or the family that is used alone."""
    members: list[Candidate]
    """(F,) the best of each family."""
    weights: Numbers
    """One for each target that each member predicts, member by member."""
    intercept: float
    mean: Numbers
    """(T,) of the targets fitted on."""
    sd: Numbers
    """(T,)"""
    half_width: float
    """Half the interval in units of the expected spread."""
    coverage: float
    regressors: list[Any] = field(default_factory=list)
    """(F,) fitted."""
    spread: Any = None
    """Fitted regressor of the log of the squared residual, or None where one width serves all."""
    trials: list[Trial] = field(default_factory=list)
    """What was tried, in order."""
    validation: dict[str, float] = field(default_factory=dict)
    """Pearson on the validation part of each family and of the stack, fitted on the training part alone."""

    def predict(self, views: Views) -> Predicted:
        """Scores with intervals.

        Args:
            views: The views that the members read, made as those fitted on.
        """
        with _one_openmp_thread():
            predicted = [
                np.asarray(r.predict(views[m.view])) for r, m in zip(self.regressors, self.members, strict=True)
            ]
            z = _combine(predicted, self.weights, self.intercept)
            spread = self._spread(predicted, z)
        score = z * self.sd[0] + self.mean[0]
        half = self.half_width * spread * self.sd[0]
        return Predicted(score, score - half, score + half)

    def _spread(self, predicted: list[Numbers], z: Numbers) -> Numbers:
        if self.spread is None:
            return np.ones(len(z))
        expected = np.exp(0.5 * np.asarray(self.spread.predict(_spread_inputs(predicted, z))))
        return np.maximum(expected, SPREAD_FLOOR)

    def save(self, folder: Path) -> None:
        """Write the stack as `regressors.skops` (fitted regressors, no pickle) and `stack.json` (all else)."""
        import skops.io

        folder.mkdir(parents=True, exist_ok=True)
        skops.io.dump({"regressors": self.regressors, "spread": self.spread}, folder / MODEL_FILE)
        card = {
            "chosen": self.chosen,
            "members": [[m.family, m.view, [list(pair) for pair in m.settings]] for m in self.members],
            "weights": self.weights.tolist(),
            "intercept": self.intercept,
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
            "half_width": self.half_width,
            "coverage": self.coverage,
            "validation": self.validation,
        }
        (folder / CARD_FILE).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_stack(folder: Path) -> Stack:
    """Read a stored stack.

    Raises:
        ValueError: A file is missing or damaged, or the stored regressors hold a type that is not known to be safe.
    """
    import skops.io

    try:
        card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
        unknown = sorted(set(skops.io.get_untrusted_types(file=folder / MODEL_FILE)) - set(TRUSTED))
        if unknown:
            raise ValueError(
                f"{folder / MODEL_FILE} holds {', '.join(unknown)}, which could run code. It was not written by this "
                "version of cytolake: fit the predictor again."
            )
        stored = skops.io.load(folder / MODEL_FILE, trusted=list(TRUSTED))
        return Stack(
            chosen=card["chosen"],
            members=[Candidate(f, view, tuple((k, v) for k, v in pairs)) for f, view, pairs in card["members"]],
            weights=np.array(card["weights"]),
            intercept=card["intercept"],
            mean=np.array(card["mean"]),
            sd=np.array(card["sd"]),
            half_width=card["half_width"],
            coverage=card["coverage"],
            regressors=stored["regressors"],
            spread=stored["spread"],
            validation=card["validation"],
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: no readable predictor ({error}). Fit it again.") from error


def fit_stack(
    views: Views,
    targets: Numbers,
    group: Codes,
    is_validation: NDArray[np.bool_],
    config: StackConfig | None = None,
    progress: Progress | None = None,
) -> Stack:
    """Choose settings on the training rows, stack or family on the validation rows, then fit on all of them.

    Args:
        views: Ways to look at the N inputs; texts or (N, D) matrices.
        targets: (N, T); the first is the score that is predicted, the others are learnt beside it. NaN counts as mean.
        group: (N,) rows of one group are never on both sides of a fold.
        is_validation: (N,) rows that decide between the stack and its members; none: the stack is taken.
        config: Families, folds, coverage.
        progress: Told of each candidate.

    Raises:
        ValueError: No family reads any of the views, or there are fewer groups than folds.
    """
    with _one_openmp_thread():
        return _fit_stack(views, targets, group, is_validation, config or StackConfig(), progress)


def fit_alone(
    candidates: Sequence[Candidate], views: Views, score: Numbers, group: Codes, config: StackConfig
) -> tuple[Stack, Numbers]:
    """One regressor as it is, its setting chosen by cross-validation, as a stack of one; and its (N,) predictions out
    of fold.

    Args:
        candidates: The settings to choose from, by squared error out of fold.
        views: Ways to look at the N inputs.
        score: (N,) what is predicted.
        group: (N,) rows of one group are never on both sides of a fold.
        config: Folds, coverage, seed; one width of interval serves all rows.

    Raises:
        ValueError: A regressor that cannot be fitted, such as one of words where no word is repeated.
    """
    mean, sd = float(score.mean()), float(score.std()) or 1.0
    z = ((score - mean) / sd)[:, None]
    folds = balanced_folds(group, config.folds, config.seed)
    with _one_openmp_thread():
        tried = [_out_of_fold(each, views[each.view], z, folds, config.seed)[:, 0] for each in candidates]
        best = int(np.argmin([np.mean((z[:, 0] - each) ** 2) for each in tried]))
        member = candidates[best]
        fitted = _fit(member, views[member.view], z, config.seed)
    residual = z[:, 0] - tried[best]
    _, half_width = _calibrate(residual, [], tried[best], folds, replace(config, heteroscedastic=False))
    stack = Stack(
        chosen=member.family,
        members=[member],
        weights=np.ones(1),
        intercept=0.0,
        mean=np.array([mean]),
        sd=np.array([sd]),
        half_width=half_width,
        coverage=config.coverage,
        regressors=[fitted],
    )
    return stack, tried[best] * sd + mean


def _one_openmp_thread() -> Any:
    """Boosted trees of a few thousand rows gain nothing by threads, and beside other work on the machine lose minutes:
    200 rows took 75 s on two busy cores (measured 2026-11). BLAS keeps its threads."""
    return threadpool_limits(limits=1, user_api="openmp")


def _fit_stack(
    views: Views,
    targets: Numbers,
    group: Codes,
    is_validation: NDArray[np.bool_],
    config: StackConfig,
    progress: Progress | None,
) -> Stack:
    train = np.flatnonzero(~is_validation)
    n_groups = len(np.unique(group[train]))
    if n_groups < config.folds:
        raise ValueError(f"{n_groups} groups to fit on, expected at least the {config.folds} folds.")
    mean = np.nanmean(targets[train], axis=0)
    sd = np.nanstd(targets[train], axis=0)
    sd[sd == 0] = 1.0
    z = np.nan_to_num((targets - mean) / sd)
    folds = balanced_folds(group[train], config.folds, config.seed)
    tried = [each for family in config.families for each in candidates(family, views)]
    if not tried:
        raise ValueError(f"no regressor of {', '.join(config.families)} reads any of the views {', '.join(views)}.")
    trials: list[Trial] = []
    best: dict[str, tuple[float, Candidate, Numbers]] = {}
    for done, candidate in enumerate(tried):
        if progress is not None:
            progress("candidates", done, len(tried))
        predicted = _out_of_fold(candidate, rows_of_view(views[candidate.view], train), z[train], folds, config.seed)
        value = correlation("pearson", z[train, 0], predicted[:, 0])
        trials.append(Trial(candidate, value))
        if np.isfinite(value) and (candidate.family not in best or value > best[candidate.family][0]):
            best[candidate.family] = (value, candidate, predicted)
    if progress is not None:
        progress("candidates", len(tried), len(tried))
    if not best:
        raise ValueError("no regressor finds a difference between rows: every prediction was the same. Give more rows.")
    members = [candidate for _, candidate, _ in best.values()]
    out_of_fold = [predicted for _, _, predicted in best.values()]
    weights, intercept = _weigh(out_of_fold, z[train, 0])
    chosen = STACK
    validation: dict[str, float] = {}
    if is_validation.any():
        chosen, validation = _judge(members, views, z, train, np.flatnonzero(is_validation), weights, intercept, config)
    if chosen != STACK:
        keep = [k for k, member in enumerate(members) if member.family == chosen]
        members, out_of_fold = [members[k] for k in keep], [out_of_fold[k] for k in keep]
        weights, intercept = _weigh(out_of_fold, z[train, 0])
    combined = _combine(out_of_fold, weights, intercept)
    residual = z[train, 0] - combined
    spread, half_width = _calibrate(residual, out_of_fold, combined, folds, config)
    regressors = [_fit(member, views[member.view], z, config.seed) for member in members]
    return Stack(
        chosen,
        members,
        weights,
        intercept,
        mean,
        sd,
        half_width,
        config.coverage,
        regressors,
        spread,
        trials,
        validation,
    )


def rows_of_view(view: View, index: Codes) -> View:
    """Some of the inputs, as a view looks at them."""
    return [view[i] for i in index] if isinstance(view, list) else view[index]


def balanced_folds(group: Codes, n_folds: int, seed: int) -> Codes:
    """(N,) fold of each row: groups in a drawn order, each to the fold that holds fewest rows."""
    codes = np.unique(group, return_inverse=True)[1]
    size = np.bincount(codes)
    fold_of = np.empty(len(size), dtype=np.intp)
    filled = np.zeros(n_folds, dtype=int)
    for code in np.random.default_rng(seed).permutation(len(size)):
        fold_of[code] = np.argmin(filled)
        filled[fold_of[code]] += size[code]
    return np.asarray(fold_of[codes])


def _fit(candidate: Candidate, view: View, z: Numbers, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    regressor = build(candidate, view, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of passes is the regularisation
        # A network asks for a vector where there is one target.
        is_alone = candidate.family in SCORE_ALONE or (candidate.family == "mlp" and z.shape[1] == 1)
        regressor.fit(view, z[:, 0] if is_alone else z)
    return regressor


def _out_of_fold(candidate: Candidate, view: View, z: Numbers, folds: Codes, seed: int) -> Numbers:
    """(N, T) predictions of each row by a regressor that was fitted without its fold; (N, 1) of the score alone."""
    predicted = np.zeros((len(z), 1 if candidate.family in SCORE_ALONE else z.shape[1]))
    for fold in range(int(folds.max()) + 1):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        regressor = _fit(candidate, rows_of_view(view, rest), z[rest], seed)
        predicted[held] = np.asarray(regressor.predict(rows_of_view(view, held))).reshape(len(held), -1)
    return predicted


def _weigh(predicted: Sequence[Numbers], z: Numbers) -> tuple[Numbers, float]:
    """Weights, none below zero, of all members' predictions of all targets."""
    from sklearn.linear_model import Ridge

    inputs = np.concatenate(predicted, axis=1)
    fitted = Ridge(alpha=1.0, positive=True).fit(inputs, z)
    return np.asarray(fitted.coef_, dtype=float), float(fitted.intercept_)


def _combine(predicted: Sequence[Numbers], weights: Numbers, intercept: float) -> Numbers:
    return np.concatenate([each.reshape(len(each), -1) for each in predicted], axis=1) @ weights + intercept


def _judge(
    members: list[Candidate],
    views: Views,
    z: Numbers,
    train: Codes,
    held: Codes,
    weights: Numbers,
    intercept: float,
    config: StackConfig,
) -> tuple[str, dict[str, float]]:
    """The best on the validation rows, and everyone's Pearson there."""
    predicted = []
    for member in members:
        regressor = _fit(member, rows_of_view(views[member.view], train), z[train], config.seed)
        predicted.append(np.asarray(regressor.predict(rows_of_view(views[member.view], held))).reshape(len(held), -1))
    found: dict[str, float] = {STACK: correlation("pearson", z[held, 0], _combine(predicted, weights, intercept))}
    for member, each in zip(members, predicted, strict=True):
        found[member.family] = correlation("pearson", z[held, 0], each[:, 0])
    finite = {name: value for name, value in found.items() if np.isfinite(value)}
    return (max(finite, key=lambda name: finite[name]) if finite else STACK), found


def _spread_inputs(predicted: Sequence[Numbers], combined: Numbers) -> Numbers:
    """(N, 2 or more) what the spread is predicted from: the prediction, and how far members disagree about it."""
    scores = np.stack([each.reshape(len(each), -1)[:, 0] for each in predicted], axis=1)
    return np.column_stack([combined, scores.std(axis=1), scores])


def _calibrate(
    residual: Numbers, predicted: Sequence[Numbers], combined: Numbers, folds: Codes, config: StackConfig
) -> tuple[Any, float]:
    """The regressor of the spread, and the half-width in its units; both from out-of-fold residuals."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    expected = np.ones(len(residual))
    spread = None
    if config.heteroscedastic:
        inputs = _spread_inputs(predicted, combined)
        log_square = np.log(residual**2 + 1e-3)

        def fitted(rows: Codes) -> Any:
            regressor = HistGradientBoostingRegressor(
                max_iter=60, learning_rate=0.05, max_leaf_nodes=6, min_samples_leaf=20, early_stopping=False,
                random_state=config.seed,
            )  # fmt: skip
            return regressor.fit(inputs[rows], log_square[rows])

        for fold in range(int(folds.max()) + 1):
            held = folds == fold
            expected[held] = np.exp(0.5 * fitted(np.flatnonzero(~held)).predict(inputs[held]))
        expected = np.maximum(expected, SPREAD_FLOOR)
        spread = fitted(np.arange(len(residual)))
    ratio = np.sort(np.abs(residual) / expected)
    # The conformal quantile: one rank more than the share itself.
    rank = min(int(np.ceil((len(ratio) + 1) * config.coverage)), len(ratio)) - 1
    return spread, float(ratio[rank])
