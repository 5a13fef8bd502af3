"""p-values of a retrieval from permuted labels, in place of those from ranks placed at random.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.phenotypic import Retrieval
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.retrieval_tests import RetrievalTest, activity_tests, label_tests

Floats = NDArray[np.float64]


def with_permuted_activity(
    found: Retrieval,
    vectors: Floats,
    perturbations: Sequence[str],
    plates: Sequence[str],
    is_control: NDArray[np.bool_],
    n_draws: int,
    seed: int,
) -> Retrieval:
    """The p-values of `phenotypic_activity` from labels exchanged with the controls of the same plates.

    Args:
        found: Of the same wells; replicates of one plate are no positives where `positives_differ` names the plate.
        vectors: (N, D)
        perturbations: (N,)
        plates: (N,)
        is_control: (N,)
        n_draws: Exchanges.
        seed: Of the exchanges.
    """
    names, groups = np.unique(np.asarray(perturbations, str), return_inverse=True)
    tests = activity_tests(
        vectors,
        np.where(is_control, -1, groups).astype(np.int64),
        is_control,
        np.unique(np.asarray(plates, str), return_inverse=True)[1].astype(np.int64),
        n_draws,
        seed,
        across_strata="plate" in found.rules.pos_diffby,
    )
    return _with_p_values(found, names.tolist(), tests)


def with_permuted_labels(
    found: Retrieval, vectors: Floats, labels: Sequence[str], perturbations: Sequence[str], n_draws: int, seed: int
) -> Retrieval:
    """The p-values of `phenotypic_consistency` from labels permuted among perturbations.

    Args:
        found: Of the same treatments.
        vectors: (N, D)
        labels: (N,) mechanism or target of each.
        perturbations: (N,) what carries one label as a whole, whatever its dose.
        n_draws: Permutations.
        seed: Of the permutations.
    """
    names, codes = np.unique(np.asarray(labels, str), return_inverse=True)
    units = np.unique(np.asarray(perturbations, str), return_inverse=True)[1]
    tests = label_tests(vectors, codes.astype(np.int64), units.astype(np.int64), n_draws, seed)
    return _with_p_values(found, names.tolist(), tests)


def _with_p_values(found: Retrieval, names: Sequence[str], tests: Sequence[RetrievalTest]) -> Retrieval:
    p_of = {names[test.group]: test.p_value for test in tests}
    groups = found.groups
    p_values = np.asarray([p_of.get(str(name), np.nan) for name in groups[groups.column_names[0]].to_pylist()])
    for column, values in (("p_value", p_values), ("adjusted_p_value", benjamini_hochberg(p_values))):
        position = groups.column_names.index(column)
        groups = groups.set_column(position, column, pa.array(values, mask=np.isnan(values)))
    null = pa.array([None if np.isnan(p) else "permuted" for p in p_values], pa.string())
    return replace(found, groups=groups.set_column(groups.column_names.index("null"), "null", null))
