"""T6, reconstruction: can the features be decoded from an embedding, for unseen perturbations in unseen batches?

A small network is trained on train and judged on test2. Features are read in minibatches; nothing here holds more than
a minibatch of them dense, but for rank correlations, which take as many features at once as `block_bytes` allows.

Shapes: N rows, G features, D dimensions, B batches, J groups (a batch's rows of one perturbation).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from cytolake.benchmark.transcriptomics.screen import Codes, Screen

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Predict = Callable[[Codes, slice], Vectors]
"""Rows and a slice of the features -> (n, g) predictions."""
START_FACTOR = 0.03  # warm-up starts at this share of the learning rate


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The decoder and how it is trained; the published setting unless said otherwise."""

    epochs: int = 30
    minibatch_size: int = 512
    learning_rate: float = 1e-4
    """Of AdamW; a linear warm-up, then a cosine to 0, step by step."""
    weight_decay: float = 1e-6
    warm_up_epochs: int = 10
    standardise: bool = True
    """Dimensions by mean and standard deviation of the training rows, for an embedding's scale is no merit. Not
    published."""
    device: str = "cpu"
    """Of torch."""
    block_bytes: int = 256 * 2**20
    """Most memory of truth and predictions of some features for all test rows, for rank correlations."""

    def __post_init__(self) -> None:
        for name in ("epochs", "minibatch_size", "learning_rate", "block_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"decoder.{name} is {getattr(self, name)}, expected above 0.")
        if not 0 <= self.warm_up_epochs < self.epochs:
            raise ValueError(f"decoder.warm_up_epochs is {self.warm_up_epochs}, expected 0 to {self.epochs - 1}.")


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Errors of predictions; each figure is a ratio of sums, so that groups can be resampled."""

    first_row: Codes
    """(J,) a row of each group, which says its batch and perturbation."""
    n_rows: Floats
    """(J,) rows of each group of one batch and one perturbation."""
    squared: Floats
    """(J,) squared errors, summed over the group's rows, mean over features."""
    absolute: Floats
    """(J,) absolute errors likewise."""
    spread: Floats
    """(J,) squared deviations from the grand mean of the truth likewise."""
    pearson: Floats
    """(G,) NaN where the truth is constant, 0 where only the prediction is."""
    spearman: Floats
    """(G,) likewise."""
    integrity: float
    """Structural integrity of rows."""
    profile_integrity: float
    """The same of the mean profiles of perturbations, where noise of single rows is averaged away."""

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
    """How much of each row's difference from its batch's controls is predicted: 1 all, 0.5 none, 0 the opposite.

    1 - D / D_max with D = mean over batches of |P' - T'| / n and D_max = 2 * mean over batches of |T'| / n, where P'
    and T' are less the mean control of their batch, n its rows and |.| the Frobenius norm. A batch without a control
    stays as it is. Can be below 0; NaN where the truth has no differences.

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


def train_decoder(screen: Screen, vectors: Vectors, rows: Codes, config: DecoderConfig, seed: int) -> Predict:
    """Fit the decoder on some rows. Every row is read in each epoch, the last minibatch may be smaller.

    Three hidden layers with widths on the line from D to G. The output's bias starts at the mean of the training rows,
    which an embedding without information then predicts from the first step.

    Returns:
        A function that predicts features of any rows.
    """
    with torch.random.fork_rng(devices=[]):  # the caller's random state is its own
        torch.manual_seed(seed)
        n_features = len(screen.feature_names)
        decoder = make_decoder(vectors.shape[1], n_features)
    last = decoder[-1]
    assert isinstance(last, nn.Linear)
    mean_G = np.asarray(screen.features[rows].mean(axis=0), np.float32).ravel()
    with torch.no_grad():
        last.bias.copy_(torch.from_numpy(mean_G))
    decoder.to(config.device).train()
    mean_D, scale_D = np.zeros(vectors.shape[1], np.float32), np.ones(vectors.shape[1], np.float32)
    if config.standardise:
        mean_D, sd_D = vectors[rows].mean(axis=0, dtype=np.float64), vectors[rows].std(axis=0, dtype=np.float64)
        scale_D = np.where(sd_D > 1e-6 * np.abs(mean_D) + 1e-30, sd_D, np.inf)
    inputs = torch.from_numpy(((vectors - mean_D) / scale_D).astype(np.float32))
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps_each = math.ceil(len(rows) / config.minibatch_size)
    warm_up, steps = config.warm_up_epochs * steps_each, config.epochs * steps_each
    rng = np.random.default_rng((seed, 5))
    step = 0
    for _ in range(config.epochs):
        for minibatch in _minibatches(rng.permutation(rows), config.minibatch_size):
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, warm_up, steps)
            truth = torch.from_numpy(screen.dense_rows(minibatch)).to(config.device)
            loss = nn.functional.mse_loss(decoder(inputs[minibatch].to(config.device)), truth)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
    decoder.eval()

    def predict(some: Codes, features: slice) -> Vectors:
        with torch.no_grad():
            hidden = decoder[:-1](inputs[some].to(config.device))
            out: Tensor = nn.functional.linear(hidden, last.weight[features], last.bias[features])
        return out.cpu().numpy()

    return predict


def make_decoder(n_dimensions: int, n_features: int) -> nn.Sequential:
    """D -> G through three hidden layers of D + (G - D) i / 4, ReLU between them."""
    widths = [round(n_dimensions + (n_features - n_dimensions) * i / 4) for i in range(5)]
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def learning_rate_factor(step: int, warm_up: int, steps: int) -> float:
    """Linear from 0.03 to 1 over the warm-up, then half a cosine that would reach 0 at `steps`."""
    if step < warm_up:
        return START_FACTOR + (1 - START_FACTOR) * step / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))


def judge(screen: Screen, predict: Predict, rows: Codes, config: DecoderConfig) -> Reconstruction:
    """Compare predictions with the features of some rows: all rows and, in each, all features.

    Args:
        screen: Truth.
        predict: From `train_decoder`, or any function of rows and features.
        rows: (N,) with the controls of their batches.
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
        for minibatch in _minibatches(group, config.minibatch_size):
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
    """Errors of predicting each feature's mean over the training rows, whatever the row."""

    mse: float
    mae: float
    r2: float
    """About the mean of all values, as `Reconstruction.r2`: high where features differ in their means."""


def no_skill(screen: Screen, train: Codes, rows: Codes, config: DecoderConfig) -> NoSkill:
    """What a decoder of an embedding that knows nothing can reach on some rows.

    Args:
        screen: Truth.
        train: Rows whose mean is predicted.
        rows: Rows it is judged on.
        config: Size of a minibatch.
    """
    mean_G = np.asarray(screen.features[train].mean(axis=0), np.float64).ravel()
    grand_mean = float(np.asarray(screen.features[rows].mean(axis=0), np.float64).mean())
    sums = np.zeros(3)
    for minibatch in _minibatches(rows, config.minibatch_size):
        truth = screen.dense_rows(minibatch).astype(np.float64)
        error = mean_G - truth
        sums += np.square(error).sum(), np.abs(error).sum(), np.square(truth - grand_mean).sum()
    squared, absolute, spread = sums / (len(rows) * len(mean_G))
    return NoSkill(float(squared), float(absolute), float(1 - squared / spread) if spread > 0 else float("nan"))


@dataclass(slots=True)
class _CentredNorms:
    """Sums over rows of one batch from which |P' - T'| and |T'| follow, without holding the rows."""

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
    """(G,) rank correlations, some features for all rows at a time."""
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
        predicted = np.concatenate([predict(some, block) for some in _minibatches(rows, config.minibatch_size)])
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
    """Rows of each batch and perturbation, of rows that are sorted by them."""
    keys = np.stack([screen.batch_of_row[order], screen.perturbation_of_row[order]])
    return np.split(order, np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1)


def _minibatches(rows: Codes, size: int) -> Iterator[Codes]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
