"""A fitted stack of regressors: its predictions with calibrated intervals, and its files.

`stack_fitting` fits stacks.

Shapes: N rows, T targets (the score first), F families.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.performance_prediction.regressors import Candidate, Views
from cytolake.statistics.threads import limited_threads

Numbers = NDArray[np.float64]
Codes = NDArray[np.intp]

STACK = "stack"
MODEL_FILE, CARD_FILE = "regressors.skops", "stack.json"
TRUSTED = (
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
)
"""Types beyond skops' own list that a stored stack may hold: parts of scikit-learn that run no code on load."""
SPREAD_FLOOR = 0.25
"""Least expected residual as a share of the usual one, so that intervals do not collapse."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicted scores of N inputs, with intervals."""

    score: Numbers
    """(N,) in the unit of the training scores."""
    low: Numbers
    """(N,) lower end of the calibrated interval."""
    high: Numbers
    """(N,) upper end."""

    def rows(self, index: Codes) -> Predicted:
        """Some of the inputs."""
        return Predicted(self.score[index], self.low[index], self.high[index])


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """Out-of-fold score of one candidate."""

    candidate: Candidate
    pearson: float
    """Pearson correlation with the score, out of fold on the training part."""


@dataclass(slots=True)
class Stack:
    """A fitted stack; make one with `fit_stack` or `load_stack`."""

    chosen: str
    """`stack`, or the single family that is used."""
    members: list[Candidate]
    """(F,) the best of each family."""
    weights: Numbers
    """Weight of each target of each member, member by member."""
    intercept: float
    mean: Numbers
    """(T,) mean of the training targets."""
    sd: Numbers
    """(T,) sd of the training targets."""
    half_width: float
    """Half the interval in units of the expected spread."""
    coverage: float
    regressors: list[Any] = field(default_factory=list)
    """(F,) fitted."""
    spread: Any = None
    """Fitted regressor of the log of the squared residual; None where all intervals have one width."""
    trials: list[CandidateScore] = field(default_factory=list)
    """All candidates, in order."""
    validation: dict[str, float] = field(default_factory=dict)
    """Pearson on the validation part of each family and of the stack, fitted on the training part alone."""

    def predict(self, views: Views) -> Predicted:
        """Scores with intervals.

        Args:
            views: The views of the members, made in the same way as for training.
        """
        with one_openmp_thread():
            predicted = [
                np.asarray(r.predict(views[m.view])) for r, m in zip(self.regressors, self.members, strict=True)
            ]
            z = combine(predicted, self.weights, self.intercept)
            spread = self._spread(predicted, z)
        score = z * self.sd[0] + self.mean[0]
        half = self.half_width * spread * self.sd[0]
        return Predicted(score, score - half, score + half)

    def _spread(self, predicted: list[Numbers], z: Numbers) -> Numbers:
        if self.spread is None:
            return np.ones(len(z))
        expected = np.exp(0.5 * np.asarray(self.spread.predict(spread_inputs(predicted, z))))
        return np.maximum(expected, SPREAD_FLOOR)

    def save(self, folder: Path) -> None:
        """Write the stack as `regressors.skops` (fitted regressors, no pickle) and `stack.json` (everything else)."""
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


def one_openmp_thread() -> Any:
    """Context with one OpenMP thread. Boosted trees of a few thousand rows gain nothing from threads, and lose minutes
    on a busy machine: 200 rows took 75 s on two busy cores (measured 2026-11). BLAS threads do not change."""
    return limited_threads(1, of="openmp")


def combine(predicted: Sequence[Numbers], weights: Numbers, intercept: float) -> Numbers:
    return np.concatenate([each.reshape(len(each), -1) for each in predicted], axis=1) @ weights + intercept


def spread_inputs(predicted: Sequence[Numbers], combined: Numbers) -> Numbers:
    """(N, 2 or more) inputs of the spread: the prediction, the disagreement between members, and their predictions."""
    scores = np.stack([each.reshape(len(each), -1)[:, 0] for each in predicted], axis=1)
    return np.column_stack([combined, scores.std(axis=1), scores])
