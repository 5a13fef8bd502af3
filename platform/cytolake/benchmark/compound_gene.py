"""Compound-gene activity: ranks of a compound's known targets by similarity to the knock-outs of genes.

For each compound the absolute cosine to every gene ranks its known targets against random genes of the truth. Nothing
is fitted. The protocol is the compound-gene benchmark of RxRx3-core.

Source: Kraus et al. 2025, arXiv 2503.20158 (RxRx3-core); z as in Kraus et al. 2024, arXiv 2411.02572.

Shapes: N compound rows, M gene rows, D features, C concentrations, G genes, S seeds, A active genes, T = A plus
sampled negatives, K compounds, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.catalog.ids import content_id
from cytolake.statistics.intervals import Interval, few_groups_interval
from cytolake.statistics.unit_vectors import unit_vectors

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

TRUTH_COLUMNS = ("compound", "gene", "activity_um")
MAX = "max"
"""Name of the score that takes each pair's greatest cosine over the compound's concentrations."""

COMPOUNDS_SCHEMA = pa.schema(
    [
        pa.field("compound", pa.string(), nullable=False),
        pa.field("concentration", pa.string(), nullable=False),
        pa.field("average_precision", pa.float64()),
        pa.field("auroc", pa.float64()),
        pa.field("baseline_average_precision", pa.float64()),
        pa.field("baseline_auroc", pa.float64()),
        pa.field("n_active", pa.int64(), nullable=False),
        pa.field("n_negative", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("concentration", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("average", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("baseline", pa.float64(), nullable=False),
        pa.field("baseline_sd", pa.float64(), nullable=False),
        pa.field("z_score", pa.float64()),
        pa.field("n_compounds", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompoundGeneConfig:
    """Definition of a target, and draws of negatives. The defaults are those of RxRx3-core."""

    active_up_to_um: float = 1.0
    """A gene with an activity up to this is a target of the compound."""
    inactive_above_um: float = 10.0
    """A gene above this is no target; one between the two is left out, unless another entry marks it as a target."""
    negatives_per_active: int = 2
    min_negatives: int = 20
    """Fewest negatives of a compound of A targets; the number is the greater of this and `negatives_per_active` A."""
    n_seeds: int = 100
    """Draws of the negatives, and of the random baseline."""
    bootstrap_draws: int = 1000
    """Resamples of compounds behind the 95 % intervals."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.active_up_to_um <= self.inactive_above_um < math.inf:
            raise ValueError(
                f"compound_gene.active_up_to_um is {self.active_up_to_um} and inactive_above_um is "
                f"{self.inactive_above_um}, expected 0 < active_up_to_um <= inactive_above_um, in uM."
            )
        for name, least in (
            ("negatives_per_active", 1),
            ("min_negatives", 1),
            ("n_seeds", 2),
            ("bootstrap_draws", 1),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"compound_gene.{name} is {getattr(self, name)}, expected {least} or more.")


@dataclass(frozen=True, slots=True)
class CompoundGeneResult:
    """Scores of one representation."""

    average_precision: Interval
    """Mean over compounds and seeds of the `max` score; the interval is over compounds."""
    auroc: Interval
    """The same of the area under the receiver operating characteristic."""
    z_score: float
    """(average precision - mean of the random baseline) / its standard deviation over seeds."""
    summary: pa.Table
    """`SUMMARY_SCHEMA`: for `max` and each concentration, mean and median over compounds, then mean over seeds."""
    compounds: pa.Table
    """`COMPOUNDS_SCHEMA`: for each compound of the truth at `max`, and at each of its concentrations, the mean over
    seeds; empty where undefined, and `reason` then says why."""
    n_not_in_map: dict[str, int]
    """Numbers of compounds and genes of the truth that are not in the map."""


def compound_gene_activity(
    compound_vectors: NDArray[np.generic],
    compounds: Sequence[str],
    concentrations: Sequence[float],
    gene_vectors: NDArray[np.generic],
    genes: Sequence[str],
    truth: pa.Table,
    config: CompoundGeneConfig,
) -> CompoundGeneResult:
    """Score the ranks of each compound's known targets among genes by absolute cosine.

    Rows of one compound at one concentration are averaged, and so are rows of one gene. Negatives are drawn among the
    genes of the truth that are in the map. A compound has the same negatives at every concentration, and they do not
    depend on the other compounds.

    Args:
        compound_vectors: (N, D) of any numeric type, aligned.
        compounds: (N,)
        concentrations: (N,) in uM.
        gene_vectors: (M, D) knock-outs, aligned in the same way.
        genes: (M,)
        truth: `compound`, `gene`, and `activity_um`, the concentration in uM at which the compound acts on the gene.
            One pair may have several rows.
        config: Definition of a target and draws of negatives.

    Raises:
        ValueError: Arguments of different lengths, vectors that are not finite, a truth without its columns or with an
            activity that is not above 0, or no compound that can be scored.
    """
    pairs = check_truth(truth)
    if not len(compounds) == len(concentrations):
        raise ValueError(
            f"{len(compounds)} compounds and {len(concentrations)} concentrations, expected as many. Take both from "
            "the same rows."
        )
    for compound, concentration in zip(compounds, concentrations, strict=True):
        if not 0 < concentration < math.inf:
            raise ValueError(
                f"compound {compound}: concentration {concentration} uM, expected a finite number above 0. Leave out "
                "the rows without one."
            )
    treatments = [(str(c), float(at)) for c, at in zip(compounds, concentrations, strict=True)]
    row_names = sorted(set(treatments))
    number = {name: i for i, name in enumerate(row_names)}
    unit_CD = _directions(compound_vectors, np.asarray([number[name] for name in treatments], np.int64), "compound")
    gene_names = sorted({str(gene) for gene in genes})
    place = {gene: i for i, gene in enumerate(gene_names)}
    unit_GD = _directions(gene_vectors, np.asarray([place[str(gene)] for gene in genes], np.int64), "gene")
    if unit_CD.shape[1] != unit_GD.shape[1]:
        raise ValueError(
            f"compound vectors of {unit_CD.shape[1]} features and gene vectors of {unit_GD.shape[1]}, expected as "
            "many. Take both from one representation."
        )
    rows_of_compound: dict[str, dict[float, int]] = {}
    for row, (compound, concentration) in enumerate(row_names):
        rows_of_compound.setdefault(compound, {})[concentration] = row
    all_genes = sorted({gene for activities in pairs.values() for gene in activities})
    pool = [gene for gene in all_genes if gene in place]
    scores = _Scores(config)
    for compound in sorted(pairs):
        if compound in rows_of_compound:
            cosines = {at: np.abs(unit_GD @ unit_CD[row]) for at, row in sorted(rows_of_compound[compound].items())}
            scores.add(compound, pairs[compound], pool, place, cosines)
    missing = {
        "compounds": sum(compound not in rows_of_compound for compound in pairs),
        "genes": len(all_genes) - len(pool),
    }
    if not scores.of_max:
        raise ValueError(
            f"no compound of {len(pairs)} in the truth can be scored: {missing['compounds']} are not in the map, and "
            f"{missing['genes']} of {len(all_genes)} genes are not. Expected a compound with a target up to "
            f"{config.active_up_to_um:g} uM and {config.min_negatives} genes that are none. Use the names of the map."
        )
    return scores.result(missing)


def average_precision(scores: Floats, is_active: NDArray[np.bool_]) -> Floats:
    """(S,) average precision of rows of scores; tied scores share one threshold.

    Args:
        scores: (S, T), higher is more likely active.
        is_active: (T,), at least one.
    """
    active_SA = scores[:, is_active]
    at_least_SAT = scores[:, None, :] >= active_SA[:, :, None]
    precision_SA = at_least_SAT[:, :, is_active].sum(axis=2) / at_least_SAT.sum(axis=2)
    return np.asarray(precision_SA.mean(axis=1))


def auroc(scores: Floats, is_active: NDArray[np.bool_]) -> Floats:
    """(S,) share of correctly ordered pairs of an active and another gene; a tie counts half.

    Args:
        scores: (S, T), higher is more likely active.
        is_active: (T,), at least one.
    """
    active_SA1, other_S1T = scores[:, is_active][:, :, None], scores[:, ~is_active][:, None, :]
    return np.asarray(((active_SA1 > other_S1T) + 0.5 * (active_SA1 == other_S1T)).mean(axis=(1, 2)))


class _Scores:
    """Collects the scores of compounds."""

    def __init__(self, config: CompoundGeneConfig) -> None:
        self.config = config
        self.rows: list[dict[str, object]] = []
        self.by_concentration: dict[str, list[Floats]] = {}
        """For each concentration, (4, S) of each compound: the two metrics, and the two of the baseline."""

    @property
    def of_max(self) -> list[Floats]:
        return self.by_concentration.get(MAX, [])

    def add(
        self,
        compound: str,
        activities: dict[str, list[float]],
        pool: Sequence[str],
        place: dict[str, int],
        cosines: dict[float, Floats],
    ) -> None:
        """Score one compound of the map; `cosines` has (G,) for each of its concentrations."""
        config = self.config
        active = [g for g in pool if min(activities.get(g, [math.inf])) <= config.active_up_to_um]
        unclear = {
            g
            for g, values in activities.items()
            if any(config.active_up_to_um < value <= config.inactive_above_um for value in values)
        }
        eligible = [g for g in pool if g not in unclear and g not in set(active)]
        n_negative = max(config.negatives_per_active * len(active), config.min_negatives)
        counts = {"n_active": len(active), "n_negative": n_negative}
        reason = ""
        if not active:
            reason = f"no gene of the map with an activity up to {config.active_up_to_um:g} uM"
        elif len(eligible) < n_negative:
            reason = f"{len(eligible)} genes are no targets, expected at least {n_negative}"
        if reason:
            self.rows.append({"compound": compound, "concentration": MAX, **counts, "reason": reason})
            return
        rng = np.random.default_rng(int(content_id("compound gene", config.seed, compound), 16))
        # The positions of the smallest random numbers are a random subset.
        drawn_ST = np.argpartition(rng.random((config.n_seeds, len(eligible))), n_negative - 1, axis=1)[:, :n_negative]
        negatives = np.asarray([place[g] for g in eligible])[drawn_ST]
        positives = np.broadcast_to([place[g] for g in active], (config.n_seeds, len(active)))
        genes_ST = np.concatenate([positives, negatives], axis=1)
        is_active = np.arange(genes_ST.shape[1]) < len(active)
        random_ST = rng.random(genes_ST.shape)
        baseline = [average_precision(random_ST, is_active), auroc(random_ST, is_active)]
        named = {MAX: np.max(list(cosines.values()), axis=0)} | {f"{at:g}": c for at, c in cosines.items()}
        for name, cosine_G in named.items():
            scores_ST = cosine_G[genes_ST]
            of_seed = np.stack([average_precision(scores_ST, is_active), auroc(scores_ST, is_active), *baseline])
            self.by_concentration.setdefault(name, []).append(of_seed)
            means = dict(
                zip(
                    ("average_precision", "auroc", "baseline_average_precision", "baseline_auroc"),
                    of_seed.mean(axis=1).tolist(),
                    strict=True,
                )
            )
            self.rows.append({"compound": compound, "concentration": name, **means, **counts, "reason": ""})

    def result(self, missing: dict[str, int]) -> CompoundGeneResult:
        """Tables and intervals over all added compounds."""
        summary = [
            row
            for name in sorted(self.by_concentration, key=lambda at: -1.0 if at == MAX else float(at))
            for row in _summary(name, np.stack(self.by_concentration[name]))
        ]
        per_compound_2K = np.stack(self.of_max).mean(axis=2).T[:2]
        n = per_compound_2K.shape[1]
        rng = np.random.default_rng(int(content_id("compound gene resamples", self.config.seed), 16))
        weight_RK = rng.multinomial(n, np.full(n, 1 / n), size=self.config.bootstrap_draws) / n
        intervals = []
        for of_compound in per_compound_2K:
            value, draws = float(of_compound.mean()), weight_RK @ of_compound
            intervals.append(Interval(value, *few_groups_interval(value, draws, n), draws))
        z_score = next(row["z_score"] for row in summary if row["metric"] == "average_precision")
        return CompoundGeneResult(
            average_precision=intervals[0],
            auroc=intervals[1],
            z_score=float(z_score) if isinstance(z_score, float) else math.nan,
            summary=pa.Table.from_pylist(summary, schema=SUMMARY_SCHEMA),
            compounds=pa.Table.from_pylist(self.rows, schema=COMPOUNDS_SCHEMA),
            n_not_in_map=missing,
        )


def _summary(name: str, scores_K4S: Floats) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for average, reduce in (("mean", np.mean), ("median", np.median)):
        of_seed_4S = np.asarray(reduce(scores_K4S, axis=0))
        for i, metric in enumerate(("average_precision", "auroc")):
            value, baseline = float(of_seed_4S[i].mean()), float(of_seed_4S[i + 2].mean())
            sd = float(of_seed_4S[i + 2].std(ddof=1))
            rows.append(
                {
                    "concentration": name,
                    "metric": metric,
                    "average": average,
                    "value": value,
                    "baseline": baseline,
                    "baseline_sd": sd,
                    "z_score": (value - baseline) / sd if sd > 0 else None,
                    "n_compounds": len(scores_K4S),
                }
            )
    return rows


def check_truth(truth: pa.Table) -> dict[str, dict[str, list[float]]]:
    """Activities in uM of each gene, for each compound.

    Raises:
        ValueError: A column is missing, or a row lacks a name or has an activity that is not above 0.
    """
    missing = [name for name in TRUTH_COLUMNS if name not in truth.column_names]
    if missing:
        raise ValueError(
            f"the truth has columns {', '.join(truth.column_names) or 'none'}, expected {', '.join(TRUTH_COLUMNS)}. "
            "Rename them; activities are in uM."
        )
    pairs: dict[str, dict[str, list[float]]] = {}
    columns = [truth[name].to_pylist() for name in TRUTH_COLUMNS]
    for row, (compound, gene, activity) in enumerate(zip(*columns, strict=True)):
        if not compound or not gene or activity is None or not 0 < activity < math.inf:
            raise ValueError(
                f"row {row} of the truth: compound {compound!r}, gene {gene!r}, activity {activity} uM, expected two "
                "names and a finite number above 0. Correct the row or leave it out."
            )
        pairs.setdefault(str(compound), {}).setdefault(str(gene), []).append(float(activity))
    return pairs


def _directions(vectors: NDArray[np.generic], group_N: Codes, what: str) -> Floats:
    """(number of groups, D) unit vector of the mean of each group's rows; a mean of 0 has cosine 0 with all."""
    matrix = np.asarray(vectors)
    if matrix.ndim != 2 or len(matrix) != len(group_N) or not len(matrix):
        raise ValueError(
            f"{what} vectors of shape {matrix.shape} for {len(group_N)} names, expected (N, D) for N names, N of 1 or "
            "more. Take both from the same rows."
        )
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        row = int(np.argwhere(~np.isfinite(matrix))[0, 0])
        raise ValueError(
            f"{what} vector {row} of {len(matrix)} is not finite. Leave out the wells that failed, or embed them again."
        )
    order = np.argsort(group_N, kind="stable")
    _, starts, counts = np.unique(group_N[order], return_index=True, return_counts=True)
    means = np.add.reduceat(matrix[order], starts, axis=0) / counts[:, None]
    return unit_vectors(means)
