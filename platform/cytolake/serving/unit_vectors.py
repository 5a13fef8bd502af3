"""Rows of the embeddings table as vectors of length 1, which is how everything here compares them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def unit_vectors(lists: pa.Array, dim: int, representation_id: str) -> NDArray[np.float32]:
    """(N, D) of length 1; a vector of zeros, or with a value that is not finite, becomes zeros and is like no other.

    Args:
        lists: N embeddings.
        dim: D, which each must have.
        representation_id: Theirs, for errors.

    Raises:
        ValueError: An embedding of another width.
    """
    lengths = pc.list_value_length(lists).fill_null(-1)
    if not pc.all(pc.equal(lengths, dim)).as_py():
        raise ValueError(
            f"representation {representation_id}: embeddings of {pc.min(lengths)} to {pc.max(lengths)} values in the "
            f"table, the model gives {dim}. The embeddings are another model's; embed again (`cytolake embed`)."
        )
    vectors_ND: NDArray[Any] = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(lists), dim)
    length_N1 = np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))[:, None]
    is_finite = np.isfinite(length_N1)
    if not is_finite.all():
        logger.warning(
            "representation %s: %d embeddings are not finite; no search finds them",
            representation_id,
            int((~is_finite).sum()),
        )
    unit_ND = np.zeros_like(vectors_ND)
    # Rounded once, from float64, without a second array of that size: there may be millions of rows.
    np.divide(vectors_ND, length_N1, out=unit_ND, where=is_finite & (length_N1 > 0), casting="same_kind")
    return unit_ND
