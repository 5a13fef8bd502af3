"""Do the wells of a condition look alike? A permutation test of the cosine between their profiles.

The wells of a condition in one experiment are compared with as many wells drawn from the same experiment whatever was
done to them; what several experiments say of a condition is combined. A condition that passes has an effect that its
replicates share. After Celik et al. 2024, doi:10.1371/journal.pcbi.1012463, and Liu and Xie 2020 (Cauchy combination).

Shapes: N wells of one experiment, D features, B draws, n wells of a condition.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.ids import content_id

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

DRAWS_AT_ONCE = 1024
COSINES_UP_TO = (
    4096  # wells whose cosines are all computed first, 134 MB: a draw then adds n (n - 1) / 2 numbers, not n D
)
SPHERING_SHRINKAGE = 0.5  # of the mean variance, added to each: dividing by next to nothing would raise noise
TIE = 1e-9  # a draw of the condition's own wells sums them in another order


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Wells that are tested against each other. A task of its own: it holds all that the test needs."""

    name: str
    """With `seed` it fixes the draws."""
    profiles: Floats
    """(N, D) profiles; only their directions count."""
    conditions: Codes
    """(N,) number of each well's condition."""
    strata: Codes
    """(N,) number of each well's stratum: draws hold as many wells of each as the condition does."""
    n_draws: int
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionTest:
    """What one experiment says of one condition."""

    condition: int
    n_wells: int
    cosine: float
    """Mean over all pairs of the condition's wells."""
    p_value: float


def condition_tests(experiment: Experiment) -> list[ConditionTest]:
    """Test every condition that has at least two wells; p = (1 + draws as alike as its wells or more) / (1 + draws).

    All wells of the experiment can be drawn, the condition's own too: then p is exact, and at most uniform under the
    null hypothesis. A null distribution is drawn once for each number of wells (in each stratum) and used for all
    conditions of that number.
    """
    norms = np.linalg.norm(experiment.profiles, axis=1, keepdims=True)
    unit_ND = experiment.profiles / np.where(norms > 0, norms, 1.0)
    n_strata = int(experiment.strata.max()) + 1 if len(experiment.strata) else 0
    members = [np.flatnonzero(experiment.strata == stratum) for stratum in range(n_strata)]
    cosines_NN = unit_ND @ unit_ND.T if len(unit_ND) <= COSINES_UP_TO else None
    nulls: dict[tuple[int, ...], Floats] = {}
    tests = []
    order = np.argsort(experiment.conditions, kind="stable")
    numbers, starts = np.unique(experiment.conditions[order], return_index=True)
    for number, wells in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
        if len(wells) < 2:
            continue
        counts = tuple(np.bincount(experiment.strata[wells], minlength=n_strata).tolist())
        if counts not in nulls:
            rng = seeded_generator(experiment.seed, "null", experiment.name, *counts)
            nulls[counts] = _null(unit_ND, cosines_NN, members, counts, experiment.n_draws, rng)
        cosine = mean_pairwise_cosine(unit_ND[wells])
        n_above = experiment.n_draws - int(np.searchsorted(nulls[counts], cosine - TIE))
        p_value = (1 + n_above) / (1 + experiment.n_draws)
        tests.append(ConditionTest(condition=number, n_wells=len(wells), cosine=cosine, p_value=p_value))
    return tests


def mean_pairwise_cosine(unit_ND: Floats) -> float:
    """Mean cosine of all pairs of rows, which have length 1 (or 0: such a row is alike to none)."""
    total = unit_ND.sum(axis=0)
    n = len(unit_ND)
    return float((total @ total - np.square(unit_ND).sum()) / (n * (n - 1)))


def cauchy_combination(p_values: Floats | Sequence[float], weights: Floats | None = None) -> float:
    """One p-value of several, which may depend on each other: T = sum w tan((0.5 - p) pi), p = 0.5 - atan(T) / pi.

    Args:
        p_values: (E,), 0..1.
        weights: (E,), summing to 1; equal where None.

    Source: Liu and Xie 2020, doi:10.1080/01621459.2018.1554485.
    """
    p = np.clip(np.asarray(p_values, np.float64), 1e-15, 1 - 1e-15)
    w = np.full(len(p), 1 / len(p)) if weights is None else weights
    return float(0.5 - np.arctan(w @ np.tan((0.5 - p) * np.pi)) / np.pi)


def combined_p_value(tests: Sequence[ConditionTest], n_draws: int) -> float:
    """The p-value of one condition over its experiments.

    A test of B draws finds no p below 1 / (B + 1), so none counts as nearer to 1 than that: at exactly 1 one experiment
    would silence all others.
    """
    return cauchy_combination([min(test.p_value, n_draws / (n_draws + 1)) for test in tests])


def align_to_controls(
    profiles: Floats, plates: Codes, is_control: NDArray[np.bool_], *, sphere: bool
) -> tuple[Floats, list[int]]:
    """Centre the wells of each plate on its negative controls, scale features alike, and decorrelate them.

    A well then points where it differs from the controls; without this all cosines are near 1.

    Args:
        profiles: (N, D) of all plates.
        plates: (N,) number of each well's plate.
        is_control: (N,) the well is a negative control.
        sphere: Also divide each principal direction of the controls by their standard deviation along it, so that what
            varies between untreated wells anyway (brightness, density) counts less.

    Returns:
        (N, D), and the plates without a control: their wells are centred on the mean of all of them.
    """
    aligned = np.array(profiles, np.float64)
    without = []
    centred = is_control.copy()
    for plate in np.unique(plates).tolist():
        of_plate = plates == plate
        reference = of_plate & is_control
        if not reference.any():
            without.append(plate)
            reference = of_plate
            centred |= of_plate
        aligned[of_plate] -= aligned[reference].mean(axis=0)
    scale = aligned.std(axis=0)
    aligned /= np.where(scale > 0, scale, 1.0)
    if sphere and centred.sum() > 1:
        _, singular, directions = np.linalg.svd(aligned[centred], full_matrices=True)
        variance = np.zeros(aligned.shape[1])
        variance[: len(singular)] = singular**2 / (centred.sum() - 1)
        aligned = aligned @ directions.T / np.sqrt(variance + SPHERING_SHRINKAGE * variance.mean())
    return aligned, without


def _null(
    unit_ND: Floats,
    cosines_NN: Floats | None,
    members: Sequence[Codes],
    counts: Sequence[int],
    n_draws: int,
    rng: np.random.Generator,
) -> Floats:
    """(B,) mean pairwise cosines of random wells, `counts` of each stratum, in ascending order."""
    drawn = np.concatenate(
        [
            of_stratum[random_subsets(rng, len(of_stratum), count, n_draws)]
            for of_stratum, count in zip(members, counts, strict=True)
            if count
        ],
        axis=1,
    )
    n = drawn.shape[1]
    if cosines_NN is not None and n < 2 * unit_ND.shape[1]:
        total_B = np.zeros(n_draws)
        for i in range(n):
            for j in range(i):
                total_B += cosines_NN[drawn[:, i], drawn[:, j]]
        total_B *= 2 / (n * (n - 1))
    else:
        squares = np.square(unit_ND).sum(axis=1)
        total_B = np.empty(n_draws)
        for start in range(0, n_draws, DRAWS_AT_ONCE):
            block = drawn[start : start + DRAWS_AT_ONCE]
            sums = np.zeros((len(block), unit_ND.shape[1]))
            for position in range(n):
                sums += unit_ND[block[:, position]]
            pairs = np.einsum("bd,bd->b", sums, sums) - squares[block].sum(axis=1)
            total_B[start : start + DRAWS_AT_ONCE] = pairs / (n * (n - 1))
    total_B.sort()
    return total_B


def random_subsets(rng: np.random.Generator, n_all: int, n: int, n_draws: int) -> Codes:
    """(B, n) each row n different numbers below n_all, every subset as likely: Floyd's algorithm, all rows at once."""
    drawn = np.empty((n_draws, n), np.int64)
    for position, last in enumerate(range(n_all - n, n_all)):
        candidate = rng.integers(0, last + 1, size=n_draws)
        is_taken = (drawn[:, :position] == candidate[:, None]).any(axis=1)
        drawn[:, position] = np.where(is_taken, last, candidate)
    return drawn


def seeded_generator(seed: int, *question: str | int) -> np.random.Generator:
    """Random numbers of one question: asking others does not move them."""
    return np.random.default_rng(int(content_id(seed, *question), 16))
