"""Random exchange of the labels of a group's rows and of control rows within strata: the null of permutation tests.

Under the null hypothesis, that a row of the group could as well be a control of its stratum (plate or batch), the true
labels are one of the equally likely ones, so any statistic of labels and vectors has an exact p-value.

The hypothesis includes how the vectors were made. An alignment that was fitted on controls standardises these controls
exactly and all other wells only approximately, so wells without any effect differ from them. After `pca_cs`, 7 to 100 %
of such wells have p up to 0.05 (magnitude, 10 to 64 features, 8 or 24 controls a plate). Give vectors whose alignment
was fitted on other controls: `embed.alignment.held_out_controls`.

Shapes: N rows, B draws, n rows of a group, m control rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.random_subsets import (
    at_most,
    can_reach_significance,
    random_subsets,
    rows_of_groups,
    seeded_generator,
)

Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """The rows behind the test of one group, its true labels and the random ones."""

    group: int
    own: Codes
    """(n,) rows of the group."""
    controls: Codes
    """(m,) control rows of the same strata. Consecutive groups of the same strata share one array."""
    labelled: Codes
    """(1 + B, n) positions of the group's label among its rows and the controls, 0 .. n + m - 1; the first row holds
    the true ones."""


def exchanges(
    groups: Codes,
    is_control: NDArray[np.bool_],
    strata: Codes,
    n_draws: int,
    seed: int,
    *,
    min_rows: int,
    max_rows: int,
    max_controls: int,
) -> Iterator[Exchange]:
    """Exchanges of every group with enough rows in strata that hold controls.

    Rows and controls of strata without the other kind are left out. So is a group whose labels have too few possible
    positions for a p-value of 0.05.

    Args:
        groups: (N,) number of each row's group from 0 up, below 0 where it has none; not read for control rows.
        is_control: (N,)
        strata: (N,) number of each row's stratum.
        n_draws: B; 0 gives the true labels alone.
        seed: Seed of draws and samples.
        min_rows: Fewest rows of a group that is tested.
        max_rows: Most rows of a group; a seeded sample of more.
        max_controls: Most controls of its strata; a seeded sample of more.
    """
    all_controls = np.flatnonzero(is_control)
    alike: dict[tuple[int, ...], list[tuple[int, Codes]]] = {}
    for group, rows in rows_of_groups(np.where(is_control, -1, groups)):
        own = rows[np.isin(strata[rows], strata[all_controls])]
        own = at_most(seeded_generator(seed, "rows", group), own, max_rows)
        if len(own) >= min_rows:
            alike.setdefault(tuple(np.unique(strata[own]).tolist()), []).append((group, own))
    for shared, members in alike.items():
        of_shared = all_controls[np.isin(strata[all_controls], shared)]
        controls = at_most(seeded_generator(seed, "controls", *shared), of_shared, max_controls)
        for group, own in members:
            of_row = strata[np.concatenate([own, controls])]
            places = [np.flatnonzero(of_row == stratum) for stratum in shared]
            counts = [int((place < len(own)).sum()) for place in places]
            if n_draws and not can_reach_significance([len(place) for place in places], counts):
                continue
            rng = seeded_generator(seed, "labels", group)
            drawn = [
                place[random_subsets(rng, len(place), count, n_draws)]
                for place, count in zip(places, counts, strict=True)
            ]
            labelled = np.concatenate([np.arange(len(own))[None, :], np.concatenate(drawn, axis=1)])
            yield Exchange(group, own, controls, labelled)
