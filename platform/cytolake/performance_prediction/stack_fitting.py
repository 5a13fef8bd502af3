"""Fit of a stack of regressors: settings by cross-validation, weights out of fold, calibrated intervals.

Cross-validation in folds of whole groups compares all settings of all families on all views. The best member of each
family becomes part of the stack; a regression with non-negative weights combines their out-of-fold predictions. The
validation rows decide between the stack and a single family, never the test rows.

The interval of a prediction is conformal: the out-of-fold residuals of the stack, divided by their expected size, give
the half-width that covers the required share of new rows of the same kind.

Shapes: N rows, T targets (the score first), F families, V rows of the validation part.

Source: stacking: Breiman 1996, doi:10.1007/BF00117832; normalised conformal intervals: Lei et al. 2018,
doi:10.1080/01621459.2017.1307116.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from cytolake.performance_prediction.stack import (
    SPREAD_FLOOR,
    STACK,
    CandidateScore,
    Stack,
    combine,
    one_openmp_thread,
    spread_inputs,
)

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StackConfig:
    """Settings of the fit of a stack."""

    families: tuple[Family, ...] = FAMILIES
    """Families of regressors."""
    folds: int = 5
    """Folds of the cross-validation, of whole groups."""
    coverage: float = 0.9
    """Share of new rows whose score the interval should cover."""
    heteroscedastic: bool = True
    """Whether the width of an interval depends on the row; else all have one width."""
    seed: int = 0
    """Seed of the folds and of regressors with random numbers."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.families) - set(FAMILIES))
        if unknown or not self.families:
            raise ValueError(f"families are {self.families}, expected some of {', '.join(FAMILIES)}.")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}, expected 2 or more.")
        if not 0.5 <= self.coverage < 1:
            raise ValueError(f"coverage is {self.coverage}, expected at least 0.5 and below 1.")


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
        views: Views of the N inputs; texts or (N, D) matrices.
        targets: (N, T); the first is the score that is predicted, the others are auxiliary. NaN counts as the mean.
        group: (N,) rows of one group are never on both sides of a fold.
        is_validation: (N,) rows that decide between the stack and its members; without any, the stack is used.
        progress: Called for each candidate.

    Raises:
        ValueError: No family can read any of the views, or there are fewer groups than folds.
    """
    with one_openmp_thread():
        return _fit_stack(views, targets, group, is_validation, config or StackConfig(), progress)


def fit_alone(
    candidates: Sequence[Candidate], views: Views, score: Numbers, group: Codes, config: StackConfig
) -> tuple[Stack, Numbers]:
    """A single regressor, its setting chosen by cross-validation, as a stack with one member; and its (N,) out-of-fold
    predictions.

    Args:
        candidates: The possible settings, compared by out-of-fold squared error.
        views: Views of the N inputs.
        score: (N,) targets.
        group: (N,) rows of one group are never on both sides of a fold.
        config: Folds, coverage, seed; all intervals have one width.

    Raises:
        ValueError: A regressor that cannot be fitted, such as one of words where no word is repeated.
    """
    mean, sd = float(score.mean()), float(score.std()) or 1.0
    z = ((score - mean) / sd)[:, None]
    folds = balanced_folds(group, config.folds, config.seed)
    with one_openmp_thread():
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
    trials: list[CandidateScore] = []
    best: dict[str, tuple[float, Candidate, Numbers]] = {}
    for done, candidate in enumerate(tried):
        if progress is not None:
            progress("candidates", done, len(tried))
        predicted = _out_of_fold(candidate, rows_of_view(views[candidate.view], train), z[train], folds, config.seed)
        value = correlation("pearson", z[train, 0], predicted[:, 0])
        trials.append(CandidateScore(candidate, value))
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
    combined = combine(out_of_fold, weights, intercept)
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
    """Some rows of a view."""
    return [view[i] for i in index] if isinstance(view, list) else view[index]


def balanced_folds(group: Codes, n_folds: int, seed: int) -> Codes:
    """(N,) fold of each row: groups in random order, each to the smallest fold."""
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
        # A network needs a vector for a single target.
        is_alone = candidate.family in SCORE_ALONE or (candidate.family == "mlp" and z.shape[1] == 1)
        regressor.fit(view, z[:, 0] if is_alone else z)
    return regressor


def _out_of_fold(candidate: Candidate, view: View, z: Numbers, folds: Codes, seed: int) -> Numbers:
    """(N, T) predictions of each row by a regressor fitted without its fold; (N, 1) for families of the score only."""
    predicted = np.zeros((len(z), 1 if candidate.family in SCORE_ALONE else z.shape[1]))
    for fold in range(int(folds.max()) + 1):
        rest, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        regressor = _fit(candidate, rows_of_view(view, rest), z[rest], seed)
        predicted[held] = np.asarray(regressor.predict(rows_of_view(view, held))).reshape(len(held), -1)
    return predicted


def _weigh(predicted: Sequence[Numbers], z: Numbers) -> tuple[Numbers, float]:
    """Non-negative weights of all members' predictions of all targets, and the intercept."""
    from sklearn.linear_model import Ridge

    inputs = np.concatenate(predicted, axis=1)
    fitted = Ridge(alpha=1.0, positive=True).fit(inputs, z)
    return np.asarray(fitted.coef_, dtype=float), float(fitted.intercept_)


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
    """The best of stack and families on the validation rows, and the Pearson correlation of each."""
    predicted = []
    for member in members:
        regressor = _fit(member, rows_of_view(views[member.view], train), z[train], config.seed)
        predicted.append(np.asarray(regressor.predict(rows_of_view(views[member.view], held))).reshape(len(held), -1))
    found: dict[str, float] = {STACK: correlation("pearson", z[held, 0], combine(predicted, weights, intercept))}
    for member, each in zip(members, predicted, strict=True):
        found[member.family] = correlation("pearson", z[held, 0], each[:, 0])
    finite = {name: value for name, value in found.items() if np.isfinite(value)}
    return (max(finite, key=lambda name: finite[name]) if finite else STACK), found


def _calibrate(
    residual: Numbers, predicted: Sequence[Numbers], combined: Numbers, folds: Codes, config: StackConfig
) -> tuple[Any, float]:
    """The regressor of the spread, and the half-width in units of the spread, from out-of-fold residuals."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    expected = np.ones(len(residual))
    spread = None
    if config.heteroscedastic:
        inputs = spread_inputs(predicted, combined)
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
    # The conformal quantile: one rank above the share.
    rank = min(int(np.ceil((len(ratio) + 1) * config.coverage)), len(ratio)) - 1
    return spread, float(ratio[rank])
