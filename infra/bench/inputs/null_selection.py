"""The best of several blocks against the best of several baselines, all equally good, and one that is better.

Eight trained candidates and one baseline see the same wells of plates that change every class a little. The test is
the interval of the gain as promotion reads it.
"""

from __future__ import annotations

import numpy as np
from inputs.null_checks import NullCheck, share_below_level
from inputs.plate_effects import candidates, plate_deviations

from cytolake.benchmark.unit_scores import gain, p_value

N_CLASSES, DIM, N_WELLS, N_CANDIDATES = 8, 20, 3, 8
SHARED = 0.7
"""Of a well's deviation, what all blocks see alike."""
SEPARATION, BETTER = 0.8, 1.25
"""Spread of the classes' means in all candidates, and its factor in a trained candidate that is better."""


def checks() -> list[NullCheck]:
    """About two minutes on one core."""
    return [_check(4, 600), _check(8, 400)]


def _check(n_plates: int, n: int) -> NullCheck:
    none = [_one(np.random.default_rng([n_plates, i]), n_plates, 1.0) for i in range(n)]
    better = [_one(np.random.default_rng([n_plates, i, 1]), n_plates, BETTER) for i in range(n // 4)]
    naive = [each[1] for each in none]
    return NullCheck(
        name=f"selection of a block, {n_plates} plates",
        share_below_05=share_below_level([each[0] for each in none]),
        n_simulations=n,
        power=share_below_level([each[0] for each in better]),
        reference=f"the best on the plates that chose it would have gained {np.mean(naive):+.3f} of nothing",
    )


def _one(random: np.random.Generator, n_plates: int, factor: float) -> tuple[float, float]:
    """p of the gain, and the gain read off the plates that chose."""
    means = SEPARATION * random.normal(size=(N_CLASSES, DIM))
    shared = plate_deviations(random, (n_plates, N_CLASSES, N_WELLS, DIM), 1.0)
    ours = candidates(random, factor * means, N_CANDIDATES, n_plates, shared=shared, shared_share=SHARED)
    theirs = candidates(random, means, 1, n_plates, shared=shared, shared_share=SHARED)
    naive = max(each.scores.value for each in ours) - theirs[0].scores.value
    return p_value(gain(ours, theirs), n_plates - 1), naive
