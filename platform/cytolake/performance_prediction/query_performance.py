"""Performance of queries, the target of a predictor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.average_precision import average_precision
from cytolake.benchmark.retrieval.pairs import PairRules
from cytolake.performance_prediction.query_map import SHORTEST
from cytolake.statistics.unit_vectors import unit_vectors

Numbers = NDArray[np.float64]
Measure = Literal["average_precision", "replicate_consistency"]
LOWEST: Mapping[Measure, float] = {"average_precision": 0.0, "replicate_consistency": -1.0}
"""Lowest possible value of each measure; the highest is 1."""


def realised_performance(
    vectors: Numbers,
    perturbation: Sequence[str],
    plate: Sequence[str],
    is_control: NDArray[np.bool_],
    measure: Measure = "average_precision",
) -> Numbers:
    """(N,) performance of each profile as a query; NaN for controls, and for a perturbation with one profile.

    Positives are profiles of the same perturbation, on other plates where every perturbation has several plates,
    because replicates of one plate share more than the perturbation. Negatives are all others, controls included.
    """
    names = np.where(is_control, "\0control", np.asarray(perturbation, dtype=object)).astype(str)
    plates: dict[str, set[str]] = {}
    for name, on, control in zip(names.tolist(), plate, is_control.tolist(), strict=True):
        if not control:
            plates.setdefault(name, set()).add(on)
    is_across = bool(plates) and all(len(each) > 1 for each in plates.values())
    if measure == "replicate_consistency":
        values = _replicate_cosine(vectors, names, np.asarray(plate, dtype=str), is_across)
    else:
        table = pa.table({"perturbation": names.tolist(), "plate": list(plate)})
        across = ("plate",) if is_across else ()
        rules = PairRules(pos_sameby=("perturbation",), pos_diffby=across, neg_diffby=("perturbation",))
        scores = average_precision(table, vectors, rules)["average_precision"]
        values = np.array([np.nan if v is None else v for v in scores.to_pylist()], dtype=float)
    values[is_control] = np.nan
    return values


def _replicate_cosine(vectors: Numbers, names: NDArray[np.str_], plate: NDArray[np.str_], is_across: bool) -> Numbers:
    """(N,) mean cosine with the others of the same name, on other plates where `is_across`; NaN without others."""
    unit_ND = unit_vectors(np.asarray(vectors, dtype=float), least_length=SHORTEST)
    of_name = np.unique(names, return_inverse=True)[1]
    on_plate = np.unique(plate, return_inverse=True)[1]
    # The sum over all of a name, less those that do not count: the same plate, or the query itself.
    pair = of_name * (on_plate.max() + 1) + on_plate if is_across else np.arange(len(names))
    dots, counts = np.zeros(len(names)), np.zeros(len(names))
    for codes, sign in ((of_name, 1.0), (np.unique(pair, return_inverse=True)[1], -1.0)):
        sums = np.zeros((codes.max() + 1, unit_ND.shape[1]))
        np.add.at(sums, codes, unit_ND)
        dots += sign * np.einsum("nd,nd->n", sums[codes], unit_ND)
        counts += sign * np.bincount(codes)[codes]
    return np.where(counts > 0, dots / np.maximum(counts, 1), np.nan)
