"""T4, known relations: are perturbations that biology relates the most alike, or the most opposite, of all pairs?

For maps of some thousand perturbations; the cosines of all pairs are held at once.

Shapes: P perturbations, D dimensions, Q related pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.relations.recall import tail_edges
from cytolake.benchmark.transcriptomics.screen import Codes

Floats = NDArray[np.float64]
LOW, HIGH = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Recall:
    """What a map says of known relations."""

    recalled: NDArray[np.bool_]
    """(Q,) for each pair."""
    pairs: Codes
    """(Q, 2) places of the perturbations."""

    @property
    def value(self) -> float:
        """Share recalled; NaN without a pair. A random map recalls 0.1."""
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
        relations: Pairs of names, in any order and also twice; those with an end that is not here are left out.
        low: A pair is recalled where its cosine is among this share of all cosines from below.
        high: Or above this share.

    Source: Celik et al. 2024, doi:10.1371/journal.pcbi.1012463.
    """
    pairs = present_pairs(perturbations, relations)
    norms = np.linalg.norm(means_PD, axis=1, keepdims=True)
    unit = means_PD / np.where(norms > 0, norms, 1.0)
    cosines = unit @ unit.T
    null = cosines[np.triu_indices(len(cosines), k=1)]
    return Recall(two_sided(null, cosines[pairs[:, 0], pairs[:, 1]], low, high), pairs)


def two_sided(null: Floats, query: Floats, low: float = LOW, high: float = HIGH) -> NDArray[np.bool_]:
    """(Q,) where the share of the null up to a value is `low` or less, or the share strictly below is `high` or more.

    Values equal to the limits do not count in their favour: where all are equal, none is recalled.
    """
    ((below, above),) = tail_edges(null, [(low, high)])
    return np.asarray((query < below) | (query > above))


def present_pairs(perturbations: Sequence[str], relations: Iterable[tuple[str, str]]) -> Codes:
    """(Q, 2) places i < j of the different pairs that have both ends among the perturbations, ascending."""
    place = {name: i for i, name in enumerate(perturbations)}
    known = {
        (min(place[a], place[b]), max(place[a], place[b])) for a, b in relations if a != b and a in place and b in place
    }
    return np.asarray(sorted(known), np.intp).reshape(-1, 2)
