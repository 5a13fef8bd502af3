"""Features of a query's vector: its distance from the controls and its similarity to other perturbations.

Shapes: N queries, D features of a vector, K axes, L landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.statistics.unit_vectors import unit_vectors

Numbers = NDArray[np.float64]

STRONG = 3.0
"""Control sds from which a feature counts as changed."""
N_AXES, N_LANDMARKS = 16, 512
NEAREST = (1, 10, 30)
SHORTEST = 1e-12  # length below which a vector has no direction


@dataclass(frozen=True, slots=True)
class Map:
    """Reference of query features: mean and sd of the negative controls, and vectors of other perturbations."""

    mean: Numbers
    """(D,) of the controls."""
    sd: Numbers
    """(D,) of the controls, 1 where they do not vary."""
    axes: Numbers
    """(K, D) principal directions of the training queries, in control sds."""
    landmarks: Numbers
    """(L, D) unit vectors of some training queries."""
    landmark_family: list[str]
    """(L,) compound or gene of each landmark."""
    by_direction: bool
    """Whether vectors are scaled to unit length first."""

    @classmethod
    def fit(
        cls, vectors: Numbers, family: Sequence[str], controls: Numbers, by_direction: bool = False, seed: int = 0
    ) -> Map:
        """The map of a predictor's training queries and controls.

        Args:
            vectors: (N, D) of the queries.
            family: (N,) compound or gene of each.
            controls: (controls, D) negative controls.
            by_direction: Whether vectors are scaled to unit length first.
        """
        if by_direction:
            controls, vectors = (unit_vectors(each, least_length=SHORTEST) for each in (controls, vectors))
        mean, sd = controls.mean(axis=0), controls.std(axis=0)
        sd = np.where(sd > 1e-9 * max(float(np.abs(mean).max()), 1e-12), sd, 1.0)
        z = _squashed((vectors - mean) / sd)
        _, _, axes = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
        n = min(N_LANDMARKS, len(vectors))
        drawn = np.sort(np.random.default_rng(seed).choice(len(vectors), n, replace=False)).astype(np.intp)
        landmarks = unit_vectors(vectors[drawn], least_length=SHORTEST)
        return cls(mean, sd, axes[:N_AXES], landmarks, [family[i] for i in drawn.tolist()], by_direction)

    def features(self, vectors: Numbers, family: Sequence[str] | None = None) -> Numbers:
        """(N, 8 + K): log of the distance in control sds, share of changed features, largest change, cosine with the
        mean of the controls, log of the length; mean cosine with the 1, 10 and 30 nearest landmarks of other compounds
        and genes; then coordinates on the axes.

        Args:
            vectors: (N, D).
            family: (N,) compound or gene of each, whose own landmarks do not count; None where not known.
        """
        if self.by_direction:
            vectors = unit_vectors(vectors, least_length=SHORTEST)
        z = _squashed((vectors - self.mean) / self.sd)
        length = np.linalg.norm(vectors, axis=1)
        cosine = vectors @ self.mean / np.maximum(length * np.linalg.norm(self.mean), SHORTEST)
        near = unit_vectors(vectors, least_length=SHORTEST) @ self.landmarks.T
        if family is not None:
            near[np.asarray(family)[:, None] == np.asarray(self.landmark_family)[None, :]] = -1.0
        near = -np.sort(-near, axis=1)
        return np.column_stack(
            [
                np.log1p(np.sqrt((z**2).mean(axis=1))),
                (np.abs(z) > STRONG).mean(axis=1),
                np.log1p(np.abs(z).max(axis=1)),
                cosine,
                np.log1p(length),
                *(near[:, :n].mean(axis=1) for n in NEAREST),
                z @ self.axes.T,
            ]
        )


def _squashed(z: Numbers) -> Numbers:
    """Signed log beyond one sd, so that a feature with nearly constant controls does not dominate all others."""
    return np.asarray(np.where(np.abs(z) > 1, np.sign(z) * (1 + np.log(np.maximum(np.abs(z), 1))), z))
