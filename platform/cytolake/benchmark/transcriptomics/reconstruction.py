"""T6, reconstruction: errors of features decoded from an embedding, for unseen perturbations in unseen batches.

The decoder is trained on train and judged on test2. Features are read in minibatches, and at most one minibatch is
dense at a time, except for rank correlations, which read as many features at once as `block_bytes` allows.

Shapes: N rows, G features, D dimensions, B batches, J groups (a batch's rows of one perturbation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from cytolake.benchmark.transcriptomics.decoder import DecoderConfig, Predict, minibatches
from cytolake.benchmark.transcriptomics.screen import Codes, Screen

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Errors of predictions; each metric is a ratio of sums, so that groups can be resampled."""

    first_row: Codes
    """(J,) a row of each group, for its batch and perturbation."""
    n_rows: Floats
    """(J,) number of rows of each group of one batch and one perturbation."""
    squared: Floats
    """(J,) squared errors, summed over the group's rows, mean over features."""
    absolute: Floats
    """(J,) absolute errors, aggregated in the same way."""
    spread: Floats
    """(J,) squared deviations from the grand mean of the truth, aggregated in the same way."""
    pearson: Floats
    """(G,); NaN where the truth is constant, 0 where only the prediction is."""
    spearman: Floats
    """(G,); NaN where the truth is constant, 0 where only the prediction is."""
    integrity: float
    """Structural integrity of rows."""
    profile_integrity: float
    """Structural integrity of the mean profiles of perturbations, without the noise of single rows."""

    @property
    def mse(self) -> float:
        """Mean squared error of a value."""
        return float(self.squared.sum() / self.n_rows.sum())

    @property
    def mae(self) -> float:
        """Mean absolute error of a value."""
        return float(self.absolute.sum() / self.n_rows.sum())

    @property
    def r2(self) -> float:
        """1 - squared errors / squared deviations from the mean of all values; NaN where all values are equal."""
        spread = self.spread.sum()
        return float(1 - self.squared.sum() / spread) if spread > 0 else float("nan")


def structural_integrity(
    predicted: NDArray[np.floating], truth: NDArray[np.floating], batches: Codes, is_control: NDArray[np.bool_]
) -> float:
    """Predicted share of each row's difference from its batch's controls: 1 all, 0.5 none, 0 the opposite.

    1 - D / D_max with D = mean over batches of |P' - T'| / n and D_max = 2 * mean over batches of |T'| / n. P' and T'
    are predictions and truth less the mean control of their batch, n its number of rows and |.| the Frobenius norm. In
    a batch without a control nothing is subtracted. Can be below 0; NaN where the truth has no differences.

    Args:
        predicted: (N, G)
        truth: (N, G)
        batches: (N,)
        is_control: (N,)

    Source: Bendidi et al. 2024, arXiv 2410.13956.
    """
    return _integrity_of_sums(
        [
            _CentredNorms.of(predicted[batches == batch], truth[batches == batch], is_control[batches == batch])
            for batch in np.unique(batches)
        ]
    )


def judge(screen: Screen, predict: Predict, rows: Codes, config: DecoderConfig) -> Reconstruction:
    """Compare predictions with the features of some rows, over all rows and features.

    Args:
        screen: Screen with the true features.
        predict: From `train_decoder`, or any function of rows and features.
        rows: (N,) row numbers, including the controls of their batches.
        config: Size of a minibatch and of a block of features.
    """
    n_features = len(screen.feature_names)
    order = rows[np.lexsort((screen.perturbation_of_row[rows], screen.batch_of_row[rows]))]
    groups = _runs(screen, order)
    # Sums of squares of values far from 0 lose digits: moments are taken about the mean of each feature.
    centre_G = np.asarray(screen.features[order].mean(axis=0), np.float64).ravel()
    grand_mean = float(centre_G.mean())
    moments = _Moments.empty(n_features)
    errors: list[list[float]] = []
    norms: dict[int, _CentredNorms] = {}
    profiles: dict[int, list[tuple[Floats, Floats, bool]]] = {}
    for group in groups:
        batch, is_control = int(screen.batch_of_row[group[0]]), bool(screen.is_control[group[0]])
        sums = np.zeros(3)
        own = _CentredNorms.empty(n_features)
        for minibatch in minibatches(group, config.minibatch_size):
            truth = screen.dense_rows(minibatch).astype(np.float64)
            predicted = predict(minibatch, slice(0, n_features)).astype(np.float64)
            error = predicted - truth
            sums += np.square(error).sum(), np.abs(error).sum(), np.square(truth - grand_mean).sum()
            moments.add(predicted - centre_G, truth - centre_G)
            own.add(predicted, truth, np.full(len(minibatch), is_control))
        errors.append((sums / n_features).tolist())
        profiles.setdefault(batch, []).append(
            (own.truth_sum / own.n, (own.truth_sum + own.error_sum) / own.n, is_control)
        )
        norms[batch] = norms[batch].merged(own) if batch in norms else own
    squared, absolute, spread = np.asarray(errors).T
    return Reconstruction(
        first_row=np.asarray([group[0] for group in groups]),
        n_rows=np.asarray([len(group) for group in groups], np.float64),
        squared=squared,
        absolute=absolute,
        spread=spread,
        pearson=moments.correlations(),
        spearman=_spearman(screen, predict, order, config),
        integrity=_integrity_of_sums(list(norms.values())),
        profile_integrity=_integrity_of_sums(
            [
                _CentredNorms.of(
                    np.stack([each[1] for each in of_batch]),
                    np.stack([each[0] for each in of_batch]),
                    np.asarray([each[2] for each in of_batch]),
                )
                for of_batch in profiles.values()
            ]
        ),
    )


@dataclass(frozen=True, slots=True)
class NoSkill:
    """Errors of predicting each feature's mean over the training rows for every row."""

    mse: float
    mae: float
    r2: float
    """Relative to the mean of all values, as `Reconstruction.r2`; high where features differ in their means."""


def no_skill(screen: Screen, train: Codes, rows: Codes, config: DecoderConfig) -> NoSkill:
    """Errors of a decoder of an embedding without information.

    Args:
        screen: Screen with the true features.
        train: Rows whose mean is predicted.
        rows: Rows on which errors are computed.
    """
    mean_G = np.asarray(screen.features[train].mean(axis=0), np.float64).ravel()
    grand_mean = float(np.asarray(screen.features[rows].mean(axis=0), np.float64).mean())
    sums = np.zeros(3)
    for minibatch in minibatches(rows, config.minibatch_size):
        truth = screen.dense_rows(minibatch).astype(np.float64)
        error = mean_G - truth
        sums += np.square(error).sum(), np.abs(error).sum(), np.square(truth - grand_mean).sum()
    squared, absolute, spread = sums / (len(rows) * len(mean_G))
    return NoSkill(float(squared), float(absolute), float(1 - squared / spread) if spread > 0 else float("nan"))


@dataclass(slots=True)
class _CentredNorms:
    """Sums over rows of one batch that determine |P' - T'| and |T'|, without storing the rows."""

    n: int
    error_sum: Floats
    truth_sum: Floats
    error_squares: float
    truth_squares: float
    n_controls: int
    control_error_sum: Floats
    control_truth_sum: Floats

    @classmethod
    def empty(cls, n_features: int) -> _CentredNorms:
        zeros = [np.zeros(n_features) for _ in range(4)]
        return cls(0, zeros[0], zeros[1], 0.0, 0.0, 0, zeros[2], zeros[3])

    @classmethod
    def of(cls, predicted: Any, truth: Any, is_control: NDArray[np.bool_]) -> _CentredNorms:
        sums = cls.empty(truth.shape[1])
        sums.add(np.asarray(predicted, np.float64), np.asarray(truth, np.float64), is_control)
        return sums

    def add(self, predicted: Floats, truth: Floats, is_control: NDArray[np.bool_]) -> None:
        error = predicted - truth
        self.n += len(truth)
        self.error_sum += error.sum(axis=0)
        self.truth_sum += truth.sum(axis=0)
        self.error_squares += float(np.square(error).sum())
        self.truth_squares += float(np.square(truth).sum())
        self.n_controls += int(is_control.sum())
        self.control_error_sum += error[is_control].sum(axis=0)
        self.control_truth_sum += truth[is_control].sum(axis=0)

    def merged(self, other: _CentredNorms) -> _CentredNorms:
        return _CentredNorms(
            self.n + other.n,
            self.error_sum + other.error_sum,
            self.truth_sum + other.truth_sum,
            self.error_squares + other.error_squares,
            self.truth_squares + other.truth_squares,
            self.n_controls + other.n_controls,
            self.control_error_sum + other.control_error_sum,
            self.control_truth_sum + other.control_truth_sum,
        )

    def norms(self) -> tuple[float, float]:
        """|P' - T'| and |T'|: sum |x - c|^2 = sum |x|^2 - 2 c sum x + n |c|^2, c the mean control."""
        n_controls = max(1, self.n_controls)  # without controls the sums are 0, and so is c
        found = []
        for squares, total, control in (
            (self.error_squares, self.error_sum, self.control_error_sum / n_controls),
            (self.truth_squares, self.truth_sum, self.control_truth_sum / n_controls),
        ):
            found.append(math.sqrt(max(0.0, squares - 2 * float(control @ total) + self.n * float(control @ control))))
        return found[0], found[1]


@dataclass(slots=True)
class _Moments:
    """Sums for the correlation of each feature."""

    n: int
    sums: Floats
    """(5, G): p, t, p^2, t^2, p t."""

    @classmethod
    def empty(cls, n_features: int) -> _Moments:
        return cls(0, np.zeros((5, n_features)))

    def add(self, predicted: Floats, truth: Floats) -> None:
        self.n += len(truth)
        self.sums += [
            predicted.sum(axis=0),
            truth.sum(axis=0),
            np.square(predicted).sum(axis=0),
            np.square(truth).sum(axis=0),
            (predicted * truth).sum(axis=0),
        ]

    def correlations(self) -> Floats:
        p, t, pp, tt, pt = self.sums / max(1, self.n)
        return _correlations(pt - p * t, pp - p * p, tt - t * t, pp, tt)


def _correlations(covariance: Floats, variance_p: Floats, variance_t: Floats, pp: Floats, tt: Floats) -> Floats:
    is_p, is_t = variance_p > 1e-12 * pp + 1e-24, variance_t > 1e-12 * tt + 1e-24  # below it is rounding
    both = is_p & is_t
    correlation = np.zeros(len(covariance))
    correlation[both] = covariance[both] / np.sqrt(variance_p[both] * variance_t[both])
    return np.where(is_t, np.clip(correlation, -1, 1), np.nan)


def _spearman(screen: Screen, predict: Predict, rows: Codes, config: DecoderConfig) -> Floats:
    """(G,) rank correlations, over all rows for a block of features at a time."""
    n_features = len(screen.feature_names)
    # Truth and prediction in float32, their ranks in float64.
    step = max(1, config.block_bytes // (24 * max(1, len(rows))))
    found = np.empty(n_features)
    features = screen.features[rows]
    if hasattr(features, "tocsc"):
        features = features.tocsc()  # columns are cut from it
    for start in range(0, n_features, step):
        block = slice(start, min(start + step, n_features))
        part = features[:, block]
        truth = stats.rankdata(part.toarray() if hasattr(part, "toarray") else part, axis=0)
        predicted = np.concatenate([predict(some, block) for some in minibatches(rows, config.minibatch_size)])
        moments = _Moments.empty(block.stop - block.start)
        middle = (len(rows) + 1) / 2
        moments.add(stats.rankdata(predicted, axis=0) - middle, truth - middle)
        found[block] = moments.correlations()
    return found


def _integrity_of_sums(batches: list[_CentredNorms]) -> float:
    distances = [(error / sums.n, truth / sums.n) for sums in batches for error, truth in [sums.norms()]]
    error, truth = np.mean(np.asarray(distances), axis=0).tolist()
    return float(1 - error / (2 * truth)) if truth > 0 else float("nan")


def _runs(screen: Screen, order: Codes) -> list[Codes]:
    """Rows of each batch and perturbation, from rows sorted by both."""
    keys = np.stack([screen.batch_of_row[order], screen.perturbation_of_row[order]])
    return np.split(order, np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1)
