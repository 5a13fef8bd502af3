"""Aggregation of wells to treatments, guides and genes, by the mean or the median of each feature.

The aggregation is part of a benchmark's protocol: BBBC021's mechanisms are scored on medians of wells (mAP .817; on
means of the same wells .774), EFAAR's map of genes on means.

Shapes: W wells, D features, G groups.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Aggregation = Literal["mean", "median"]
Key = TypeVar("Key", bound=Hashable)


def aggregated(vectors: Floats, keys: Sequence[Key | None], aggregation: Aggregation) -> tuple[list[Key], Floats]:
    """One profile for each group of wells.

    Args:
        vectors: (W, D)
        keys: (W,) group of each well; None for a well without a group.
        aggregation: Mean or median of each feature over the wells of a group.

    Returns:
        Keys in order of first appearance, and (G, D).
    """
    rows_of: dict[Key, list[int]] = {}
    for row, key in enumerate(keys):
        if key is not None:
            rows_of.setdefault(key, []).append(row)
    if not rows_of:
        return [], np.empty((0, vectors.shape[1]))
    groups = [vectors[rows] for rows in rows_of.values()]
    if aggregation == "median":
        return list(rows_of), np.stack([np.median(each, axis=0) for each in groups])
    return list(rows_of), np.stack([each.mean(axis=0) for each in groups])
