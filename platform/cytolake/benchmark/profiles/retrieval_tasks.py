"""Profile benchmarks of retrieval: replicates among controls, mechanisms, and reagents of one target.

Shapes: W wells, D features, T treatments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cytolake.benchmark.compound_gene import CompoundGeneConfig
from cytolake.benchmark.profiles.aggregation import aggregated
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.profile_input import BenchmarkInput, Floats, ScoreRow, by_class, score_row
from cytolake.benchmark.relations.relation_files import rename
from cytolake.benchmark.retrieval.mechanism_of_action import nearest_mechanism
from cytolake.benchmark.retrieval.phenotypic import (
    NullConfig,
    Retrieval,
    phenotypic_activity,
    phenotypic_consistency,
    phenotypic_match,
    with_permuted_activity,
    with_permuted_labels,
)

COMPOUND, GENE = "compound", "gene"
"""Kind of a treatment: a compound, or a gene that was knocked out, knocked down or overexpressed."""


def activity(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Mean average precision of the replicates of each perturbation among negative controls."""
    wells, compared = data.wells, data.compared.checked()
    table = wells.table()
    is_named = np.asarray([bool(name) for name in wells.perturbation])
    rows = compared.is_control | (is_named & ~wells.is_control)
    plates: dict[str, set[str]] = {}
    for i in wells.treated:
        if wells.perturbation[i]:
            plates.setdefault(wells.perturbation[i], set()).add(wells.plate[i])
    # Replicates of one plate share more than the perturbation, so they do not count where there are others.
    across = ("plate",) if plates and all(len(of) > 1 for of in plates.values()) else ()
    found = phenotypic_activity(
        table.filter(pa.array(rows)),
        compared.vectors[rows],
        compared.is_control[rows],
        positives_differ=across,
        null=_null(data.config),
    )
    named = [(wells.perturbation[i], wells.plate[i]) for i in np.flatnonzero(rows)]
    found = with_permuted_activity(
        found, compared.vectors[rows], [name for name, _ in named], [plate for _, plate in named],
        compared.is_control[rows], data.config.draws - 1, data.config.seed,
    )  # fmt: skip
    yield from _retrieval_scores("activity_map", "perturbation", found, across)


def mechanism(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Mean average precision of the treatments of each pathway among those of others."""
    treatments = _treatments(data)
    found = phenotypic_consistency(
        pa.table({"perturbation": treatments.names, "moa": treatments.pathways}),
        treatments.profiles,
        null=_null(data.config),
    )
    found = with_permuted_labels(
        found, treatments.profiles, treatments.pathways, treatments.names, data.config.draws - 1, data.config.seed
    )
    yield from _retrieval_scores("mechanism_map", "pathway", found, (), data.config.treatment_aggregation)


def nearest(protocol: str) -> Callable[[BenchmarkInput], Iterator[ScoreRow]]:
    """The benchmark that predicts each treatment's pathway from its nearest neighbour, under `nsc` or `nscb`."""

    def measure(data: BenchmarkInput) -> Iterator[ScoreRow]:
        treatments = _treatments(data)
        found = nearest_mechanism(
            treatments.profiles, treatments.names, treatments.pathways, normalisation=data.alignment,
            batches=treatments.batches if protocol == "nscb" else None, n_draws=data.config.draws,
            seed=data.config.seed,
        )  # fmt: skip
        yield score_row(
            "mechanism_nearest", "pathway", protocol, found.accuracy.value, found.accuracy, n_test=found.n_scored,
            n_classes=len(found.mechanisms), recall=by_class(found.recall),
            aggregation=data.config.treatment_aggregation,
        )  # fmt: skip

    return measure


def sibling_retrieval(data: BenchmarkInput) -> Iterator[ScoreRow]:
    """Mean average precision of reagents of one target gene: its guides, its compounds, and compounds with guides.

    Siblings are different reagents of one target. The target of a compound is the gene of its wells, else the gene with
    the lowest activity concentration in `config.compound_gene_truth`, where that counts as active.

    Source: the matching tasks of CPJUMP1 (Chandrasekaran et al. 2024, doi:10.1038/s41592-024-02241-6); sibling
    retrieval of Kraus et al. 2024, arXiv 2404.10242.
    """
    wells, how = data.wells, data.config.treatment_aggregation
    targets = _targets(data)
    keys: list[tuple[str, str, str, float] | None] = [None] * len(wells.well_id)
    for i in wells.treated:
        is_compound = bool(wells.compound[i])
        reagent = wells.compound[i] or wells.guide[i] or wells.perturbation[i] or targets[i]
        if targets[i]:
            dose = float(wells.dose[i]) if is_compound and math.isfinite(wells.dose[i]) else 0.0
            keys[i] = (COMPOUND if is_compound else GENE, reagent, targets[i], dose)
    named, profiles_TD = aggregated(data.vectors, keys, how)
    kinds = [kind for kind, *_ in named]
    columns = {"kind": kinds, "reagent": [key[1] for key in named], "gene": [key[2] for key in named]}
    table = pa.table(columns) if named else None
    null = _null(data.config)
    reasons = []
    for label, kind in (("guides", GENE), ("compounds", COMPOUND), ("compounds_and_genes", None)):
        rows = np.asarray([kind in (None, each) for each in kinds], bool)
        try:
            if table is None or not rows.any():
                raise ValueError("no treated well has a target gene")
            of_kind, profiles = table.filter(pa.array(rows)), profiles_TD[rows]
            if kind:
                found = phenotypic_consistency(of_kind, profiles, label="gene", perturbation="reagent", null=null)
                labels, units = (of_kind[name].to_pylist() for name in ("gene", "reagent"))
                found = with_permuted_labels(found, profiles, labels, units, data.config.draws - 1, data.config.seed)
            else:
                found = phenotypic_match(of_kind, profiles, label="gene", kind="kind", null=null)
        except ValueError as error:
            reasons.append(f"{label}: {error}")
            continue
        yield from _retrieval_scores("sibling_retrieval", label, found, (), how)
    if len(reasons) == 3:
        raise ValueError(
            f"no target gene has two reagents ({'; '.join(reasons)}). Fill in the columns gene and guide, or gene and "
            "compound, of the plate map."
        )


@dataclass(frozen=True, slots=True)
class _Treatments:
    """Treatments of wells; each dose is a treatment."""

    names: list[str]
    pathways: list[str]
    profiles: Floats
    """(T, D)"""
    batches: list[set[str]]
    """Batches of each treatment's wells."""


def _treatments(data: BenchmarkInput) -> _Treatments:
    """Treatments with a known pathway, by `config.treatment_aggregation`.

    A well of a compound may have the compound's target as its gene; its treatment is the compound.
    """
    wells = data.wells
    keys: list[tuple[str, str, float] | None] = [None] * len(wells.well_id)
    batches: dict[tuple[str, str, float], set[str]] = {}
    for i in wells.treated:
        name = wells.compound[i] or wells.gene[i] or wells.perturbation[i]
        if name and wells.pathway[i]:
            key = (name, wells.pathway[i], float(wells.dose[i]) if math.isfinite(wells.dose[i]) else 0.0)
            keys[i] = key
            batches.setdefault(key, set()).add(wells.batch[i])
    named, profiles_TD = aggregated(data.vectors, keys, data.config.treatment_aggregation)
    if not named:
        raise ValueError("no treated well has a pathway; fill the column pathway of the plate map.")
    return _Treatments(
        [name for name, _, _ in named],
        [pathway for _, pathway, _ in named],
        profiles_TD,
        [batches[key] for key in named],
    )


def _targets(data: BenchmarkInput) -> list[str]:
    """(W,) target gene of each well, empty where unknown."""
    wells, truth = data.wells, data.gene_sets.truth
    best: dict[str, tuple[float, str]] = {}
    if truth is not None:
        active_um = CompoundGeneConfig().active_up_to_um
        for row in truth.to_pylist():
            if row["activity_um"] <= active_um:
                found = (row["activity_um"], row["gene"])
                best[row["compound"]] = min(found, best.get(row["compound"], found))
    genes = rename(wells.gene, data.aliases)
    return [
        gene or (best[compound][1] if compound in best else "")
        for gene, compound in zip(genes, wells.compound, strict=True)
    ]


def _retrieval_scores(
    benchmark: str, label: str, found: Retrieval, across: Sequence[str], aggregation: str = ""
) -> Iterator[ScoreRow]:
    """Mean average precision, the same normalised for chance, and the share of groups with q below 0.05."""
    key = found.groups.column_names[0]
    scored = [row for row in found.groups.to_pylist() if row["mean_average_precision"] is not None]
    of_group = {str(row[key]): row for row in scored}
    details: dict[str, Any] = {"aggregation": aggregation} if aggregation else {}
    normalised = {name: row["mean_normalised_average_precision"] for name, row in of_group.items()}
    tested = {name: row for name, row in of_group.items() if row["p_value"] is not None}
    share = found.share_significant()
    for metric, interval in (
        ("mean_average_precision", found.mean),
        ("mean_normalised_average_precision", found.normalised),
    ):
        yield score_row(
            benchmark, label, metric, interval.value, interval, split=" ".join(across), n_test=len(scored),
            normalised=by_class(normalised), **details,
        )  # fmt: skip
    yield score_row(
        benchmark, label, "share_significant", share.value, share, split=" ".join(across), n_test=share.total,
        p_values=by_class({name: row["p_value"] for name, row in tested.items()}),
        q_values=by_class({name: row["adjusted_p_value"] for name, row in tested.items()}), **details,
    )  # fmt: skip


def _null(config: ProfileBenchmarkConfig) -> NullConfig:
    return NullConfig(
        null_size=10 * config.draws,
        match_draws=max(19, config.draws - 1),
        seed=config.seed,
        bootstrap_draws=config.draws,
    )
