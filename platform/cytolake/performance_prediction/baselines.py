"""Baselines of a predictor, and the verdict on held-out rows that decides which of the two is registered.

The best baseline is chosen in the same way as the predictor's settings, by cross-validation on the rows that both are
fitted on. All then predict held-out rows. Where the interval of the difference between the errors of some baseline and
of the predictor does not lie above 0, the best baseline is registered: it is not shown to be worse, and it is simpler.

Shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.correlations import Estimate, gain_over, score_predictions
from cytolake.performance_prediction.regressors import Candidate, Views, settings_of
from cytolake.performance_prediction.stack import Predicted, Stack
from cytolake.performance_prediction.stack_fitting import StackConfig, fit_alone

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]

PREDICTOR, BEST, MEAN, TFIDF = "predictor", "best baseline", "mean score", "TF-IDF and ridge"
N_DRAWS = 400
"""Resamples behind the decision whether a baseline is better than the mean."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline and its possible settings."""

    name: str
    candidates: tuple[Candidate, ...]


def mean_score(view: str) -> Baseline:
    """The mean of the training scores, for every input."""
    return Baseline(MEAN, tuple(settings_of("mean", view)))


def line_of(name: str, view: str) -> Baseline:
    """Least squares from a view with one column."""
    return Baseline(name, tuple(settings_of("line", view)))


def ridge_of_words(view: str) -> Baseline:
    """The simplest text model: ridge regression from the TF-IDF of words and pairs of words."""
    return Baseline(TFIDF, tuple(settings_of("words", view)))


@dataclass(frozen=True, slots=True)
class FittedBaseline:
    """A fitted baseline."""

    name: str
    stack: Stack
    out_of_fold: Numbers
    """(N,) predictions of the training rows, each fitted without the row's fold."""


def fit_baselines(
    baselines: Sequence[Baseline], views: Views, score: Numbers, group: Codes, config: StackConfig
) -> list[FittedBaseline]:
    """Every baseline that can be fitted, the best first.

    The best has the lowest out-of-fold error of those that are better than the mean beyond chance (the 95 % interval
    lies above 0); it is the mean where none is.

    Args:
        baselines: Baselines, the mean first.
        views: Views of the N inputs.
        score: (N,) targets.
        group: (N,) rows of one group are never on both sides of a fold.
    """
    fitted = []
    for baseline in baselines:
        try:
            stack, out_of_fold = fit_alone(baseline.candidates, views, score, group, config)
        except ValueError as error:
            if "no terms remain" in str(error) or "empty vocabulary" in str(error):
                continue  # no word is in three texts: there are no features
            raise
        fitted.append(FittedBaseline(baseline.name, stack, out_of_fold))
    mean = fitted[0]

    def place(each: FittedBaseline) -> tuple[bool, float]:
        error = float(np.mean((score - each.out_of_fold) ** 2))
        gain = gain_over(score, each.out_of_fold, mean.out_of_fold, group, N_DRAWS, config.seed)
        return each is not mean and gain.low <= 0, error

    return sorted(fitted, key=place)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Comparison of the predictor with every baseline on held-out rows; it decides which is registered."""

    baseline: str
    """The best baseline on all training rows."""
    against: str
    """The baseline with the smallest gain of the predictor on held-out rows."""
    gain: Estimate
    """Root mean squared error of that baseline less that of the predictor; above 0 the predictor is better."""

    @property
    def is_beaten(self) -> bool:
        """Whether the predictor beats every baseline: the whole interval lies above 0."""
        return self.gain.low > 0

    @property
    def registered(self) -> str:
        """Name of the registered predictor among the scores."""
        return PREDICTOR if self.is_beaten else BEST

    @property
    def reason(self) -> str:
        """What is registered and why, in one sentence."""
        gain = f"{self.gain.value:.3g} [{self.gain.low:.3g}, {self.gain.high:.3g}]"
        against = BEST if self.against == BEST else f"baseline {self.against!r}"
        if self.is_beaten:
            return (
                f"The predictor is registered: on held-out rows its error (RMSE) is less than that of every baseline, "
                f"by {gain} or more (the {against})."
            )
        return (
            f"The baseline {self.baseline!r} is registered, not the predictor: the gain of the predictor in error "
            f"(RMSE) over the {against} on held-out rows is {gain}, and the interval does not lie above 0."
        )


class HeldOut:
    """Predictions of N held-out rows by the predictor, each baseline, and the best baseline."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._predicted: dict[str, Predicted] = {}

    def add(self, rows: Codes, predicted: Mapping[str, Predicted], best: str) -> None:
        """Add predictions of some rows.

        Args:
            rows: Row numbers.
            predicted: Predictions of the predictor and of each baseline.
            best: The best baseline on the training rows.
        """
        for name, found in {**predicted, BEST: predicted[best]}.items():
            into = self._predicted.setdefault(name, Predicted(*(np.full(self._n, np.nan) for _ in range(3))))
            for whole, part in ((into.score, found.score), (into.low, found.low), (into.high, found.high)):
                whole[rows] = part

    def of(self, name: str) -> Predicted:
        """Predictions of all rows by one of the names."""
        return self._predicted[name]

    def names(self, rows: Codes) -> list[str]:
        """The predictor, the best baseline, and each baseline with predictions of all these rows."""
        complete = [name for name, found in self._predicted.items() if np.isfinite(found.score[rows]).all()]
        return sorted(complete, key=lambda name: (PREDICTOR, BEST).index(name) if name in (PREDICTOR, BEST) else 2)

    def verdict(self, baseline: str, truth: Numbers, group: Codes, rows: Codes, seed: int, n_draws: int) -> Verdict:
        """Compare the predictor with every baseline, not only with the best one on the training rows.

        Where nothing can be predicted, the best baseline by chance on the training rows is worse than the mean on other
        rows, so a predictor as good as the mean could beat it.

        Args:
            baseline: The best baseline on all rows.
            truth: Scores of `rows`.
            group: Groups of `rows`, resampled together.
            rows: Row numbers.
        """
        predicted = self._predicted[PREDICTOR].score[rows]
        gains = {
            name: gain_over(truth, predicted, self._predicted[name].score[rows], group, n_draws, seed)
            for name in self.names(rows)
            if name != PREDICTOR
        }
        against = min(gains, key=lambda name: (gains[name].low, name == BEST))
        return Verdict(baseline, against, gains[against])


def score_each(
    truth: Numbers,
    predictions: Iterable[tuple[str, Numbers]],
    strata: Sequence[str] | None,
    group: Codes,
    n_draws: int,
    seed: int,
) -> dict[str, dict[str, Estimate]]:
    """Metrics of the predictions under each name, with paired intervals; correlations within strata.

    Args:
        truth: (N,) scores.
        predictions: Names, and (N,) predictions of each.
        strata: (N,) folds and generators; differences between the means of folds do not count as skill.
        group: (N,) rows resampled together.
    """
    found: dict[str, dict[str, Estimate]] = {}
    known: dict[bytes, dict[str, Estimate]] = {}
    for name, values in predictions:
        same = values.tobytes()  # the best baseline usually equals one of the others
        if same not in known:
            known[same] = score_predictions(truth, values, strata, group, n_draws, seed)
        found[name] = known[same]
    return found
