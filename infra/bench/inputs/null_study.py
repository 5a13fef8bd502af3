"""Studies of augmentations with no effect, and with planted ones: trends of classes, the gap, and the best strength.

Five strengths, three training seeds, 14 classes. Recall is .4 with noise of sd .02 in each training; a seed shifts each
class by sd .06 at all its strengths, as seeds of real trainings do.
"""

from __future__ import annotations

import numpy as np
from inputs.null_checks import NullCheck
from numpy.typing import NDArray
from scipy import stats

from cytolake.tune.no_free_lunch import best_value, gap_against_chance, no_free_lunch_gap
from cytolake.tune.trade_offs import trade_offs

Numbers = NDArray[np.float64]

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
N_SEEDS, N_CLASSES = 3, 14
NOISE_SD, SEED_SD = 0.02, 0.06
CLASSES = [f"class {k}" for k in range(N_CLASSES)]
X = np.array(STRENGTHS)[:, None, None]
OPPOSITE = np.where(np.arange(N_CLASSES) % 2, 1.0, -1.0) * (X - 0.5)
"""(S, 1, K): half of the classes gain as the strength grows, half lose."""


def checks() -> list[NullCheck]:
    """About 15 s on one core. Ranks of five strengths in three seeds have p-values of .0396 and .0543, none between."""
    trend_power, page_power = _trend_powers(n=60)
    gap_power, plain_power = _gap_powers(effect=0.03, n=200)
    page = "scipy.stats.page_trend_test, two-sided, seeds as its blocks"
    return [
        _trend_check("trend of a class over strengths, seeds alike", 0.0, None, None, ""),
        _trend_check("trend of a class over strengths, seeds differ", SEED_SD, trend_power, page_power, page),
        _gap_check("no-free-lunch gap, no response", 0.0, gap_power, plain_power, "permutation of the gap as it is"),
        _gap_check("no-free-lunch gap, one common response", 0.03, None, None, ""),
        _best_check(),
    ]


def recalls(random: np.random.Generator, response: Numbers | float, seed_sd: float = SEED_SD) -> Numbers:
    """(S, R, K) of one study."""
    shift = seed_sd * random.normal(size=(1, N_SEEDS, N_CLASSES))
    return 0.4 + response + shift + NOISE_SD * random.normal(size=(len(STRENGTHS), N_SEEDS, N_CLASSES))


def _trend_check(
    name: str, seed_sd: float, power: float | None, reference_power: float | None, reference: str, n: int = 400
) -> NullCheck:
    random = np.random.default_rng([0, round(100 * seed_sd)])
    share = np.mean([_p_values(recalls(random, 0.0, seed_sd)) < 0.05 for _ in range(n)])
    return NullCheck(name, float(share), n * N_CLASSES, power, reference_power, reference)


def _trend_powers(n: int, slope: float = 0.06) -> tuple[float, float]:
    """Ours and SciPy's on the same studies."""
    random = np.random.default_rng(1)
    ours, theirs = [], []
    for _ in range(n):
        recall = recalls(random, slope * X)
        ours.append(_p_values(recall))
        theirs.append([_page(recall[..., k]) for k in range(N_CLASSES)])
    return float(np.mean(np.array(ours) < 0.05)), float(np.mean(np.array(theirs) < 0.05))


def _p_values(recall: Numbers) -> Numbers:
    return np.array([each.p_value for each in trade_offs(STRENGTHS, recall, CLASSES, n_permutations=9).classes])


def _page(recall_SR: Numbers) -> float:
    rising, falling = (stats.page_trend_test(sign * recall_SR.T, method="exact").pvalue for sign in (1, -1))
    return float(min(1.0, 2 * min(rising, falling)))


def _gap_check(
    name: str, slope: float, power: float | None, reference_power: float | None, reference: str, n: int = 4000
) -> NullCheck:
    random = np.random.default_rng(2)
    found = [gap_against_chance(recalls(random, slope * X), 299, seed=i).p_value for i in range(n)]
    return NullCheck(name, float(np.mean(np.array(found) < 0.05)), n, power, reference_power, reference)


def _gap_powers(effect: float, n: int) -> tuple[float, float]:
    random = np.random.default_rng(3)
    studies = [recalls(random, effect * OPPOSITE) for _ in range(n)]
    ours = [gap_against_chance(recall, 299, seed=i).p_value for i, recall in enumerate(studies)]
    theirs = [_plain_p_value(recall, random, 299) for recall in studies]
    return float(np.mean(np.array(ours) < 0.05)), float(np.mean(np.array(theirs) < 0.05))


def _plain_p_value(recall: Numbers, random: np.random.Generator, n: int) -> float:
    """Deviations of the classes from their common response exchanged over the strengths of each seed, two-sided."""
    training = recall.mean(axis=2, keepdims=True)
    deviation = recall - training
    common = training.mean(axis=(1, 2))[:, None]
    deviation = deviation - deviation.mean(axis=0)
    found = no_free_lunch_gap(common + deviation.mean(axis=1))
    gaps = []
    for _ in range(n):
        placed = np.stack([random.permutation(deviation[:, r]) for r in range(N_SEEDS)], axis=1)
        gaps.append(no_free_lunch_gap(common + placed.mean(axis=1)))
    above, below = np.sum(np.array(gaps) >= found), np.sum(np.array(gaps) <= found)
    return float(min(1.0, 2 * (1 + min(above, below)) / (n + 1)))


def _best_check(n: int = 2500) -> NullCheck:
    random = np.random.default_rng(4)
    shape = (len(STRENGTHS), N_SEEDS)
    found = [
        best_value(SEED_SD * random.normal(size=(1, N_SEEDS)) + NOISE_SD * random.normal(size=shape), 299, i).p_value
        for i in range(n)
    ]
    return NullCheck("best strength against the lowest", float(np.mean(np.array(found) < 0.05)), n, None, None, "")
