"""Phenotypic activity, consistency and match by mean average precision, with p-values of permuted labels.

- Activity: replicates of a perturbation against negative controls.
- Consistency: perturbations of one target or mechanism against those of others.
- Match: perturbations of one target but two kinds, such as a compound and a knock-out, against those of other targets.

Names and rules are those of Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2. `with_permuted_activity` and
`with_permuted_labels` replace its p-values, of positives at random ranks, by exact ones (see
`statistics.retrieval_tests`).

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.retrieval.average_precision import average_precision
from cytolake.benchmark.retrieval.mean_average_precision import bootstrap_over_groups, mean_average_precision
from cytolake.benchmark.retrieval.null_distribution import EXACT_UP_TO
from cytolake.benchmark.retrieval.pairs import Metadata, PairRules, as_table, column_codes
from cytolake.statistics.false_discovery import benjamini_hochberg
from cytolake.statistics.intervals import Interval, Share, share_of
from cytolake.statistics.match_tests import match_tests
from cytolake.statistics.retrieval_tests import activity_tests, label_tests

Floats = NDArray[np.float64]
CONTROL_OF_ITS_OWN = "_control_row"


@dataclass(frozen=True, kw_only=True, slots=True)
class NullConfig:
    """Null distributions and resamples."""

    null_size: int = 10_000
    """Draws of a sampled null distribution; no p-value is below 1 / (1 + draws)."""
    exact_up_to: int = EXACT_UP_TO
    """Placements of positives that are listed rather than sampled."""
    match_draws: int = 999
    """Permutations of targets in `phenotypic_match`."""
    seed: int = 0
    """Seed of the draws and of the bootstrap."""
    bootstrap_draws: int = 1000
    """Resamples behind the interval of the mean over groups."""

    def __post_init__(self) -> None:
        for name, least in (
            ("null_size", 1),
            ("exact_up_to", 0),
            ("match_draws", 19),
            ("seed", 0),
            ("bootstrap_draws", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"null.{name} is {getattr(self, name)}, expected {least} or more.")


@dataclass(frozen=True, slots=True)
class Retrieval:
    """Average precision of rows, of groups, and of all groups together."""

    rules: PairRules
    rows: pa.Table
    """One row for each of the metadata; see `average_precision`."""
    groups: pa.Table
    """One row for each perturbation or label; see `mean_average_precision`."""
    mean: Interval
    """Mean over the groups of their mean average precision, groups (or clusters of them) resampled."""
    normalised: Interval
    """The same of the normalised average precision, where 0 is chance for any number of positives."""

    def share_significant(self, level: float = 0.05) -> Share:
        """Share of the groups with a p-value whose adjusted p-value is below the level."""
        adjusted = np.asarray(self.groups["adjusted_p_value"].drop_null(), np.float64)
        return share_of(int(np.sum(adjusted < level)), len(adjusted))


def phenotypic_activity(
    metadata: Metadata,
    vectors: NDArray[np.floating],
    is_control: NDArray[np.bool_],
    *,
    perturbation: str = "perturbation",
    positives_differ: Sequence[str] = (),
    negatives_share: Sequence[str] = (),
    cluster: str | None = None,
    null: NullConfig | None = None,
    block_mb: int = 128,
) -> Retrieval:
    """Mean average precision of the replicates of each perturbation among negative controls.

    Args:
        metadata: N wells.
        vectors: (N, D) profiles.
        is_control: (N,) negative controls: they are always negatives and have no average precision of their own.
        perturbation: Column in which replicates agree (compound and dose, or gene and reagent).
        positives_differ: Columns in which replicates must differ to count, such as `plate`.
        negatives_share: Columns in which a control must agree with the well, such as `plate`; any control where empty.
        cluster: Column resampled whole in the interval of the mean, such as the compound of several doses.
        block_mb: Megabytes of similarities at once.

    Raises:
        ValueError: No well is a control or all are, or no perturbation has replicates and controls; see also
            `average_precision`.
    """
    table = as_table(metadata)
    is_control = np.asarray(is_control, dtype=bool)
    if is_control.shape != (table.num_rows,):
        raise ValueError(f"{is_control.size} marks of controls for {table.num_rows} wells, expected one for each.")
    if is_control.all() or not is_control.any():
        raise ValueError(
            f"{is_control.sum()} of {table.num_rows} wells are negative controls. Activity is measured against "
            "controls: expected some, and some other wells. Mark the controls in the plate map."
        )
    # As copairs' reference index: each control is alone in its value, all other wells share one.
    own = np.where(is_control, np.arange(len(is_control)), -1)
    marked = table.append_column(CONTROL_OF_ITS_OWN, pa.array(own))
    rules = PairRules(
        pos_sameby=(perturbation, CONTROL_OF_ITS_OWN),
        pos_diffby=tuple(positives_differ),
        neg_sameby=tuple(negatives_share),
        neg_diffby=(perturbation, CONTROL_OF_ITS_OWN),
    )
    rows = average_precision(marked, vectors, rules, block_mb=block_mb).drop_columns([CONTROL_OF_ITS_OWN])
    return _retrieval(rules, rows, rows.filter(pa.array(~is_control)), (perturbation,), cluster, null or NullConfig())


def phenotypic_consistency(
    metadata: Metadata,
    vectors: NDArray[np.floating],
    *,
    label: str = "moa",
    perturbation: str = "perturbation",
    included: NDArray[np.bool_] | None = None,
    positives_differ: Sequence[str] = (),
    null: NullConfig | None = None,
    block_mb: int = 128,
) -> Retrieval:
    """Mean average precision of the perturbations of each target or mechanism among those of others.

    Args:
        metadata: N perturbations (or wells, or doses: rows of one perturbation are neither positives nor negatives).
        vectors: (N, D) profiles.
        label: Column of the target or mechanism.
        perturbation: Column of the perturbation, such as the compound at all of its doses.
        included: (N,) rows that take part, such as treated rows with a label; all where None.
        positives_differ: Further columns in which positives must differ, such as `batch`.
        block_mb: Megabytes of similarities at once.

    Raises:
        ValueError: No label has two perturbations; see also `average_precision`.
    """
    rules = PairRules(
        pos_sameby=(label,),
        pos_diffby=tuple(dict.fromkeys((perturbation, *positives_differ))),
        neg_diffby=(label, perturbation),
    )
    rows = average_precision(metadata, vectors, rules, included=included, block_mb=block_mb)
    taken = rows if included is None else rows.filter(pa.array(np.asarray(included, dtype=bool)))
    return _retrieval(rules, rows, taken, (label,), None, null or NullConfig())


def phenotypic_match(
    metadata: Metadata,
    vectors: NDArray[np.floating],
    *,
    label: str = "gene",
    kind: str = "kind",
    reagent: str = "reagent",
    null: NullConfig | None = None,
    block_mb: int = 128,
) -> Retrieval:
    """Mean average precision of each target's perturbations of one kind as queries among those of the other kind.

    p-values are from targets permuted among reagents (see `match_tests`), because doses of a compound are similar.

    Args:
        metadata: N perturbations, none of them a control.
        vectors: (N, D) profiles.
        label: Column of the target.
        kind: Column of the kind, two of them, such as compound and gene; rows of one kind are never compared.
        reagent: Column of the reagent, such as the compound or the guide, which has one target at all doses.
        block_mb: Megabytes of similarities at once.

    Raises:
        ValueError: Not two kinds, no target with perturbations of both, or a reagent of several targets; see also
            `average_precision`.

    Source: gene-compound matching of Chandrasekaran et al. 2024, doi:10.1038/s41592-024-02241-6.
    """
    null = null or NullConfig()
    table = as_table(metadata)
    kinds = np.asarray(table[kind].to_pylist(), dtype=str)
    reagents_of = {name: len(set(table.filter(pa.array(kinds == name))[reagent].to_pylist())) for name in set(kinds)}
    if len(reagents_of) != 2:
        raise ValueError(
            f"perturbations of {len(reagents_of)} kinds ({', '.join(sorted(reagents_of))}), expected 2 to match."
        )
    rules = PairRules(pos_sameby=(label,), pos_diffby=(kind,), neg_diffby=(label, kind))
    rows = average_precision(table, vectors, rules, block_mb=block_mb)
    found = _retrieval(rules, rows, rows, (label,), None, null)
    first, second = (np.flatnonzero(kinds == name) for name in sorted(reagents_of, key=lambda k: (reagents_of[k], k)))
    targets, names = (np.asarray(table[name].to_pylist(), dtype=str) for name in (label, reagent))
    tests = match_tests(
        vectors[first], targets[first].tolist(), vectors[second], targets[second].tolist(), names[second].tolist(),
        null.match_draws, null.seed,
    )  # fmt: skip
    return _with_p_values(found, {test.target: test.p_value for test in tests})


def with_permuted_activity(
    found: Retrieval,
    vectors: Floats,
    perturbations: Sequence[str],
    plates: Sequence[str],
    is_control: NDArray[np.bool_],
    n_draws: int,
    seed: int,
) -> Retrieval:
    """The result of `phenotypic_activity` with p-values of labels exchanged with controls of the same plates.

    Args:
        found: Result for the same wells; replicates of one plate are no positives where `positives_differ` has the
            plate.
        vectors: (N, D)
        perturbations: (N,)
        plates: (N,)
        is_control: (N,)
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
    return _with_p_values(found, {str(names[test.group]): test.p_value for test in tests})


def with_permuted_labels(
    found: Retrieval, vectors: Floats, labels: Sequence[str], perturbations: Sequence[str], n_draws: int, seed: int
) -> Retrieval:
    """The result of `phenotypic_consistency` with p-values of labels permuted among perturbations.

    Args:
        found: Result for the same treatments.
        vectors: (N, D)
        labels: (N,) mechanism or target of each.
        perturbations: (N,) perturbation of each, which carries its label at all doses.
    """
    names, codes = np.unique(np.asarray(labels, str), return_inverse=True)
    units = np.unique(np.asarray(perturbations, str), return_inverse=True)[1]
    tests = label_tests(vectors, codes.astype(np.int64), units.astype(np.int64), n_draws, seed)
    return _with_p_values(found, {str(names[test.group]): test.p_value for test in tests})


def _with_p_values(found: Retrieval, p_of: dict[str, float]) -> Retrieval:
    """The result with p-values of a permutation test in place of those of positives at random ranks."""
    groups = found.groups
    p_values = np.asarray([p_of.get(str(name), np.nan) for name in groups[groups.column_names[0]].to_pylist()])
    columns = {
        "p_value": pa.array(p_values, mask=np.isnan(p_values)),
        "adjusted_p_value": pa.array(benjamini_hochberg(p_values), mask=np.isnan(p_values)),
        "null": pa.array([None if np.isnan(p) else "permuted" for p in p_values], pa.string()),
    }
    for name, values in columns.items():
        groups = groups.set_column(groups.column_names.index(name), name, values)
    return replace(found, groups=groups)


def _retrieval(
    rules: PairRules, rows: pa.Table, grouped: pa.Table, sameby: tuple[str, ...], cluster: str | None, null: NullConfig
) -> Retrieval:
    if grouped["average_precision"].null_count == len(grouped):
        reasons = sorted({str(each) for each in grouped["reason"].to_pylist()})
        raise ValueError(
            f"none of {len(grouped)} rows has an average precision ({', '.join(reasons)}). Expected replicates of "
            f"{' and '.join(rules.pos_sameby[:1])} and rows of others: check the columns of the plate map."
        )
    groups = mean_average_precision(
        grouped, sameby, null_size=null.null_size, seed=null.seed, exact_up_to=null.exact_up_to
    )
    if cluster is not None and cluster not in sameby:
        groups = groups.append_column(cluster, _of_groups(grouped, sameby[0], cluster))
    mean, normalised = (
        bootstrap_over_groups(groups, value=value, cluster=cluster, n_draws=null.bootstrap_draws, seed=null.seed)
        for value in ("mean_average_precision", "mean_normalised_average_precision")
    )
    return Retrieval(rules, rows, groups, mean, normalised)


def _of_groups(rows: pa.Table, group: str, name: str) -> pa.ChunkedArray:
    """Value of a column in each group, groups in order of first appearance.

    Raises:
        ValueError: A group has several values.
    """
    of_row, values = column_codes(rows, group), column_codes(rows, name)
    _, first = np.unique(of_row, return_index=True)
    wrong = np.flatnonzero(values != values[first][of_row])
    if len(wrong):
        raise ValueError(
            f"{group} {rows[group][wrong[0]]} has several values of {name}. Expected one: clusters hold whole groups."
        )
    return rows[name].take(first)
