"""Near-duplicate prompts: the normal form of a text, and groups of similar texts."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.intp]

_PARAMETERS = re.compile(r"\s--[a-z][\w-]*(?:[ =]+[^\s-][^\s]*)?", re.IGNORECASE)
"""Generator parameters in a prompt, such as `--ar 16:9` or `--v 5`."""


def normal_form(text: str) -> str:
    """Normal form of a prompt: lower case, no generator parameters, single spaces, no punctuation at the end.

    >>> normal_form("A  dog on a Beach. --ar 16:9")
    'a dog on a beach'
    """
    return " ".join(_PARAMETERS.sub(" ", text).lower().split()).rstrip(" .,;:!")


def near_duplicate_groups(texts: list[str], cosine: float, block_rows: int = 1024) -> Codes:
    """(N,) group of each text: texts that are connected by pairs at or above `cosine`.

    Cosines are those of the TF-IDF of character 3- to 5-grams. All pairs are compared, in blocks: 10,000 prompts take
    seconds, and the time grows with the square.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not texts:
        return np.zeros(0, dtype=np.intp)
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32).fit_transform(
        [f" {normal_form(text)} " for text in texts]
    )
    transposed = vectors.T.tocsr()
    left, right = [], []
    for start in range(0, len(texts), block_rows):
        near = (vectors[start : start + block_rows] @ transposed).tocoo()
        is_pair = (near.data >= cosine - 1e-6) & (near.row + start < near.col)
        left.append(near.row[is_pair] + start)
        right.append(near.col[is_pair])
    row, column = np.concatenate(left), np.concatenate(right)
    pairs = coo_array((np.ones(len(row)), (row, column)), shape=(len(texts), len(texts)))
    return np.asarray(connected_components(pairs, directed=False)[1], dtype=np.intp)
