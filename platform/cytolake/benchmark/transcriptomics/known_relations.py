"""T4, known relations: share of related perturbations among the most similar or most opposite pairs.

The recall is that of `relations.recall`, for maps of some thousand perturbations: the cosines of all pairs are in
memory.

Shapes: P perturbations, D dimensions, Q related pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.relations.recall import in_tails
from cytolake.benchmark.transcriptomics.screen import Codes
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
LOW, HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Recall:
    """Recall of known relations on one map."""

    recalled: NDArray[np.bool_]
    """(Q,) whether each pair is recalled."""
    pairs: Codes
    """(Q, 2) indices of the perturbations."""

    @property
    def value(self) -> float:
        """Share of recalled pairs; NaN without a pair. A random map has 0.1."""
        return float(self.recalled.mean()) if len(self.recalled) else float("nan")


def known_relation_recall(
    means_PD: Floats,
    perturbations: Sequence[str],
    relations: Iterable[tuple[str, str]],
    low: float = LOW,
    high: float = HIGH,
) -> Recall:
    """Recall of the relations among the mean embeddings of perturbations.

    Args:
        means_PD: (P, D) without the controls.
        perturbations: (P,) different names.
        relations: Pairs of names, in any order, duplicates allowed; pairs with an unknown name are left out.
        low: A pair is recalled where its cosine is in the lowest cosines, this share of all.
        high: A pair is also recalled where its cosine is above this share of all cosines.

    Source: Celik et al. 2024, doi:10.1371/journal.pcbi.1012463.
    """
    pairs = present_pairs(perturbations, relations)
    unit_PD = unit_vectors(means_PD)
    cosines = unit_PD @ unit_PD.T
    null = cosines[np.triu_indices(len(cosines), k=1)]
    return Recall(in_tails(null, cosines[pairs[:, 0], pairs[:, 1]], (low, high)), pairs)


def present_pairs(perturbations: Sequence[str], relations: Iterable[tuple[str, str]]) -> Codes:
    """(Q, 2) ascending indices i < j of the different pairs with both names among the perturbations."""
    place = {name: i for i, name in enumerate(perturbations)}
    known = {
        (min(place[a], place[b]), max(place[a], place[b])) for a, b in relations if a != b and a in place and b in place
    }
    return np.asarray(sorted(known), np.intp).reshape(-1, 2)
