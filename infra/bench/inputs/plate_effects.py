"""Wells of simulated plates for benches of intervals and choices: classes, and plates that change every class a little.

P plates, K classes, R wells of each class on a plate, D features, C candidates.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.unit_scores import Candidate, UnitScores

Numbers = NDArray[np.float64]
RIDGE = 5.0


def plate_deviations(
    random: np.random.Generator, shape: tuple[int, int, int, int], plate_by_class_sd: float
) -> Numbers:
    """(P, K, R, D) what plates, plates and classes together, and single wells add to the class."""
    n_plates, n_classes, _, dim = shape
    plate = 0.3 * random.normal(size=(n_plates, 1, 1, dim))
    plate_by_class = plate_by_class_sd * random.normal(size=(n_plates, n_classes, 1, dim))
    return plate + plate_by_class + random.normal(size=shape)


def candidate(wells_PKRD: Numbers) -> Candidate:
    """Scores of one representation: a least-squares probe, held out by plate, with the inner fits of the real probe.

    Least squares because it needs one small solve a fit, so that thousands of simulations take minutes.
    """
    n_plates, n_classes, n_wells, dim = wells_PKRD.shape
    features = np.concatenate([wells_PKRD.reshape(n_plates, -1, dim), np.ones((n_plates, n_classes * n_wells, 1))], 2)
    answer = np.repeat(np.eye(n_classes), n_wells, axis=0)
    label = answer.argmax(axis=1)
    grams, products = features.swapaxes(1, 2) @ features, features.swapaxes(1, 2) @ answer
    gram, product = grams.sum(axis=0) + RIDGE * np.eye(dim + 1), products.sum(axis=0)

    def score(plate: int, away: tuple[int, ...]) -> float:
        weights = np.linalg.solve(gram - grams[list(away)].sum(axis=0), product - products[list(away)].sum(axis=0))
        return float(((features[plate] @ weights).argmax(axis=1) == label).mean())

    scores = np.array([score(plate, (plate,)) for plate in range(n_plates)])
    inner = np.full((n_plates, n_plates), np.nan)
    for p, q in itertools.permutations(range(n_plates), 2):
        inner[p, q] = score(q, (p, q))
    names = tuple(f"P{plate}" for plate in range(n_plates))
    return Candidate(UnitScores("plate", names, scores, n_plates - 1.0, n_plates * n_classes * n_wells), inner)


def candidates(
    random: np.random.Generator,
    means_KD: Numbers,
    n_candidates: int,
    n_plates: int,
    *,
    shared: Numbers,
    shared_share: float,
    plate_by_class_sd: float = 1.0,
) -> list[Candidate]:
    """Equally good candidates that look at the same wells: a share of every well's deviation is the same for all."""
    found = []
    for _ in range(n_candidates):
        own = plate_deviations(random, shared.shape, plate_by_class_sd)
        mixed = np.sqrt(shared_share) * shared + np.sqrt(1 - shared_share) * own
        found.append(candidate(means_KD[None, :, None, :] + mixed))
    return found
