"""Studies of augmentations with no effect, and with planted ones: trends of classes, the gap, and the best strength.

Five strengths, three training seeds, 14 classes. Recall is .4 with noise of sd .02 in each training; a seed shifts each
class by sd .06 at all its strengths, as seeds of real trainings do.
"""

from __future__ import annotations

import numpy as np
from inputs.null_checks import NullCheck, share_below_level
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
    n_classes_tested, n_studies = 400 * N_CLASSES, 2500
    trend_power, page_power = _trend_powers(n=60)
    gap_power, plain_power = _gap_powers(effect=0.03, n=200)
    return [
        NullCheck(
            name="trend of a class over strengths, seeds alike",
            share_below_05=_share_of_trends(0.0, n=400),
            n_simulations=n_classes_tested,
        ),
        NullCheck(
            name="trend of a class over strengths, seeds differ",
            share_below_05=_share_of_trends(SEED_SD, n=400),
            n_simulations=n_classes_tested,
            power=trend_power,
            reference_power=page_power,
            reference="scipy.stats.page_trend_test within seeds, two-sided; a slope of .06 with a seed sd of .06",
        ),
        NullCheck(
            name="no-free-lunch gap, no response",
            share_below_05=_share_of_gaps(0.0, n_studies),
            n_simulations=n_studies,
            power=gap_power,
            reference_power=plain_power,
            reference="the plain gap, exchanged alike; half of the classes gain .03, half lose it",
        ),
        NullCheck(
            name="no-free-lunch gap, one common response",
            share_below_05=_share_of_gaps(0.03, n_studies),
            n_simulations=n_studies,
        ),
        NullCheck(
            name="best strength against the lowest",
            share_below_05=_share_of_best_values(n_studies),
            n_simulations=n_studies,
        ),
    ]


def recalls(random: np.random.Generator, response: Numbers | float, seed_sd: float = SEED_SD) -> Numbers:
    """(S, R, K) of one study."""
    shift = seed_sd * random.normal(size=(1, N_SEEDS, N_CLASSES))
    return 0.4 + response + shift + NOISE_SD * random.normal(size=(len(STRENGTHS), N_SEEDS, N_CLASSES))


def _share_of_trends(seed_sd: float, n: int) -> float:
    random = np.random.default_rng([0, round(100 * seed_sd)])
    return share_below_level(np.concatenate([_p_values(recalls(random, 0.0, seed_sd)) for _ in range(n)]).tolist())


def _trend_powers(n: int, slope: float = 0.06) -> tuple[float, float]:
    """Ours and SciPy's on the same studies."""
    random = np.random.default_rng(1)
    ours, theirs = [], []
    for _ in range(n):
        recall = recalls(random, slope * X)
        ours.append(_p_values(recall))
        theirs.append([_page(recall[..., k]) for k in range(N_CLASSES)])
    return share_below_level(np.ravel(ours).tolist()), share_below_level(np.ravel(theirs).tolist())


def _p_values(recall: Numbers) -> Numbers:
    return np.array([each.p_value for each in trade_offs(STRENGTHS, recall, CLASSES, n_permutations=9).classes])


def _page(recall_SR: Numbers) -> float:
    rising, falling = (stats.page_trend_test(sign * recall_SR.T, method="exact").pvalue for sign in (1, -1))
    return float(min(1.0, 2 * min(rising, falling)))


def _share_of_gaps(slope: float, n: int) -> float:
    random = np.random.default_rng(2)
    return share_below_level([gap_against_chance(recalls(random, slope * X), 299, seed=i).p_value for i in range(n)])


def _gap_powers(effect: float, n: int) -> tuple[float, float]:
    random = np.random.default_rng(3)
    studies = [recalls(random, effect * OPPOSITE) for _ in range(n)]
    ours = [gap_against_chance(recall, 299, seed=i).p_value for i, recall in enumerate(studies)]
    theirs = [_plain_p_value(recall, random, 299) for recall in studies]
    return share_below_level(ours), share_below_level(theirs)


def _plain_p_value(recall: Numbers, random: np.random.Generator, n: int) -> float:
    """Deviations of the classes from their common response exchanged over the strengths of each seed, one-sided."""
    training = recall.mean(axis=2, keepdims=True)
    deviation = recall - training
    common = training.mean(axis=(1, 2))[:, None]
    deviation = deviation - deviation.mean(axis=0)
    found = no_free_lunch_gap(common + deviation.mean(axis=1))
    gaps = []
    for _ in range(n):
        placed = np.stack([random.permutation(deviation[:, r]) for r in range(N_SEEDS)], axis=1)
        gaps.append(no_free_lunch_gap(common + placed.mean(axis=1)))
    return float((1 + np.sum(np.array(gaps) >= found)) / (n + 1))


def _share_of_best_values(n: int) -> float:
    random = np.random.default_rng(4)
    shape = (len(STRENGTHS), N_SEEDS)
    found = []
    for i in range(n):
        recall = SEED_SD * random.normal(size=(1, N_SEEDS)) + NOISE_SD * random.normal(size=shape)
        found.append(best_value(recall, 299, seed=i).p_value)
    return share_below_level(found)
