"""Scores of the profile benchmarks for any representation, as rows of the `scores` table.

A benchmark that is not possible on a screen (no doses, one batch, no relation file) is left out with its reason and has
no score. Profiles are the means of a well's crops, aligned on negative controls, and scored with every alignment of the
config. Fitted alignments are stored under the root and named in the details of the scores.

Shapes: W wells, D features.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.benchmark.confounding import confounding_warnings
from cytolake.benchmark.profiles.compared_controls import compared_controls
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.feature_table import FeatureTable, read_feature_table
from cytolake.benchmark.profiles.feature_tasks import BENCHMARK as FEATURE_REGRESSION
from cytolake.benchmark.profiles.gene_sets import (
    PATHWAY_SOURCE,
    GeneSets,
    genes_of_pathways,
    knocked_out,
    read_gene_sets,
)
from cytolake.benchmark.profiles.plate_jackknife import with_plate_intervals
from cytolake.benchmark.profiles.profile_input import BenchmarkInput
from cytolake.benchmark.profiles.tasks import TASKS
from cytolake.benchmark.profiles.wells import Wells, read_profiles, read_wells
from cytolake.benchmark.relations.relation_files import Relations, read_aliases, read_relations, rename
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.representations import ALIGNED, VectorReader
from cytolake.embed.alignment.chromosome_arms import fit_chromosome_arms
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.stored import save_alignment
from cytolake.embed.alignment.variants import AlignmentConfig, Variant
from cytolake.embed.well_sums import append_group_profiles
from cytolake.statistics.threads import limited_threads

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float64]
ARMS = "chromosome_arms"
"""Suffix of the name of an alignment that also subtracts the common profile of each chromosome arm."""


@dataclass(frozen=True, slots=True)
class ProfileScores:
    """Scores, benchmarks that were not possible, and warnings."""

    rows: list[dict[str, Any]]
    """Rows of the `scores` table, including those of earlier runs with the same protocol."""
    left_out: dict[str, str]
    """Reason for each benchmark and alignment without a score."""
    warnings: tuple[str, ...]
    """Warnings about the screen: labels confounded with batches, plates without controls."""


def score_profiles(
    catalog: Catalog,
    representation_ids: Sequence[str],
    config: ProfileBenchmarkConfig,
    progress: Progress | None = None,
    *,
    of_any_pooling: bool = False,
) -> ProfileScores:
    """Score the profiles of representations, each in a Ray task where Ray runs, and write the `scores` table.

    Representations with scores of the same settings, wells and labels are not scored again. A representation that was
    stored aligned is scored without a further alignment, under the name `none`.

    Args:
        representation_ids: The wells of the first are scored; a representation that lacks some is left out with its
            reason. Those of other poolings than `config.poolings` are ignored.
        progress: Called with the numbers of finished and of all representations.
        of_any_pooling: Ignore none: a person named them.

    Raises:
        ValueError: An unknown representation, no profiles, a file of the config that cannot be read, chromosome arms
            with too few genes, or features of other wells.
    """
    found = catalog.table(
        "representations", where="representation_id in $ids", parameters={"ids": list(representation_ids)}
    ).to_pylist()
    taken = {row["representation_id"] for row in found if of_any_pooling or row["pooling"] in config.poolings}
    ids = [each for each in dict.fromkeys(representation_ids) if each in taken]
    if not ids:
        raise ValueError(
            f"none of {len(representation_ids)} representations has a pooling of {', '.join(config.poolings)}. Run "
            "`cytolake embed` first, or widen profiles.poolings."
        )
    append_group_profiles(catalog, ids)
    wells = read_wells(catalog, ids[0])
    relations, aliases = _relations(wells, config)
    gene_sets = read_gene_sets(wells, config, aliases)
    is_decoded = "reconstruction" in config.tasks
    statistics_id = _statistics_id(catalog, wells, {str(row["pack_id"]) for row in found}) if is_decoded else ""
    features = read_feature_table(catalog, Path(config.features), wells) if config.features else None
    known = (*(repr(each) for each in relations), gene_sets.identity, *([features.identity] if features else []))
    protocol = content_id(repr(asdict(config)), wells.identity, *known)
    protocols = [protocol, _decoding(protocol, statistics_id)]
    there = catalog.table("scores", where="protocol in $protocols", parameters={"protocols": protocols}).to_pylist()
    done = {row["representation_id"] for row in there}
    todo = [each for each in ids if each not in done]
    as_they_are = replace(config, alignments=("none",))
    is_aligned = {row["representation_id"] for row in found if row["kind"] == ALIGNED}
    about = (wells, relations, aliases, gene_sets, features, statistics_id)
    tasks = (
        (catalog, each, *about, as_they_are if each in is_aligned else config, protocol, each in is_aligned)
        for each in todo
    )
    if progress and todo:
        progress("representations", 0, len(todo))
    scored = run_tasks(score_representation, tasks, len(todo), "representations", progress)
    rows = [row for of_one, _ in scored for row in of_one]
    if rows:
        table = pa.Table.from_pylist(rows, schema=catalog.table("scores", where="false").schema)
        catalog.append("scores", table, transaction=f"scores/{content_id(protocol, *todo)}")
    left_out = {name: why for _, reasons in scored for name, why in reasons.items()}
    return ProfileScores([*there, *rows], left_out, tuple(_warnings(wells, config)))


def score_representation(
    catalog: Catalog,
    representation_id: str,
    wells: Wells,
    relations: Sequence[Relations],
    aliases: dict[str, str],
    gene_sets: GeneSets,
    features: FeatureTable | None,
    statistics_id: str,
    config: ProfileBenchmarkConfig,
    protocol: str,
    is_aligned: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the `scores` table of one representation, and reasons for benchmarks without any; one Ray task."""
    try:
        profiles_WD = read_profiles(catalog, representation_id, wells.well_id)
        statistics_WG = read_profiles(catalog, statistics_id, wells.well_id) if statistics_id else None
    except ValueError as error:
        return [], {f"all of {representation_id}": str(error)}
    scored_at = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with limited_threads():  # other tasks have the other CPUs
        for variant in config.alignments:
            try:
                aligned_WD, alignment_id = _aligned(catalog, profiles_WD, wells, variant, config)
                alignment: str = variant
                about: dict[str, Any] = {"alignment_id": alignment_id} if alignment_id else {}
                if gene_sets.arm_of_gene:
                    alignment = f"{variant}, {ARMS}"
                    aligned_WD, about[ARMS] = _without_arms(aligned_WD, wells, aliases, gene_sets, config)
            except ValueError as error:
                left_out[f"all, {variant}"] = str(error)
                continue
            compared = compared_controls(profiles_WD, wells, variant, config, is_aligned=is_aligned)
            if gene_sets.arm_of_gene and not compared.reason:
                compared = replace(
                    compared, vectors=_without_arms(compared.vectors, wells, aliases, gene_sets, config)[0]
                )
            data = BenchmarkInput(
                aligned_WD, wells, relations, aliases, gene_sets, config, alignment, compared, statistics_WG, features
            )
            for task in config.tasks:
                try:
                    scores = with_plate_intervals(task, TASKS[task], data)
                except ValueError as error:
                    left_out[f"{task}, {alignment}"] = str(error)
                    continue
                for score in scores:
                    details = {**score.pop("details"), "n_wells": len(wells.well_id), **about}
                    key = [score[name] for name in ("benchmark", "label", "metric")] + [alignment]
                    if score["benchmark"] == FEATURE_REGRESSION:
                        key.append(score["split"])
                    if "seed" in score:
                        key.append(score["seed"])
                    rows.append(
                        {
                            "score_id": content_id(representation_id, protocol, *key),
                            "representation_id": representation_id,
                            "seed": -1,
                            "held_out": "",
                            **score,
                            "alignment": alignment,
                            "protocol": _decoding(protocol, statistics_id) if task == "reconstruction" else protocol,
                            "details": json.dumps(details, sort_keys=True),
                            "scored_at": scored_at,
                        }
                    )
    return rows, left_out


def _statistics_id(catalog: Catalog, wells: Wells, packs: set[str]) -> str:
    """Id of pixel statistics of all wells, preferably of one of the packs; empty where there are none."""
    there = (
        catalog.table("representations", where="kind = 'pixel_statistics' and pooling = 'all'")
        .sort_by("created_at")
        .to_pylist()
    )
    profiles = VectorReader(catalog, "well")
    for row in sorted(there, key=lambda row: row["pack_id"] not in packs):
        has = profiles.columns(row["representation_id"], ["well_id"])["well_id"].to_pylist()
        if set(wells.well_id) <= set(has):
            return str(row["representation_id"])
    return ""


def _decoding(protocol: str, statistics_id: str) -> str:
    """Protocol of scores that depend on the pixel statistics; other scores are comparable without them."""
    return content_id(protocol, statistics_id)


def _aligned(
    catalog: Catalog, profiles_WD: Floats, wells: Wells, variant: Variant, config: ProfileBenchmarkConfig
) -> tuple[Floats, str]:
    if variant == "none":
        return profiles_WD, ""
    settings = AlignmentConfig(variant=variant, missing_controls=config.missing_controls)
    groups = wells.plate if config.align_by == "plate" else wells.batch
    fitted = fit_alignment(profiles_WD, groups, wells.is_control, settings)
    return fitted.apply(profiles_WD, groups), save_alignment(catalog.root, fitted)


def _without_arms(
    profiles_WD: Floats, wells: Wells, aliases: dict[str, str], gene_sets: GeneSets, config: ProfileBenchmarkConfig
) -> tuple[Floats, dict[str, Any]]:
    """Profiles less the common profile of the (unexpressed) genes of their gene's arm, and counts of corrections."""
    genes = rename(knocked_out(wells), aliases)
    arms = fit_chromosome_arms(
        profiles_WD, genes, gene_sets.arm_of_gene, unexpressed=gene_sets.unexpressed, min_genes=config.min_arm_genes
    )
    corrected_WD = arms.apply(profiles_WD, genes, without_arm="keep")
    return corrected_WD, {
        "arms": len(arms.arms),
        "wells": int(arms.is_corrected(genes).sum()),
        "arms_of_too_few_genes": len(arms.skipped),
        "genes_without_arm": len({gene for gene in genes if gene and gene not in gene_sets.arm_of_gene}),
        "genes_averaged": "all" if gene_sets.unexpressed is None else "unexpressed",
    }


def _relations(wells: Wells, config: ProfileBenchmarkConfig) -> tuple[list[Relations], dict[str, str]]:
    aliases = read_aliases(Path(config.gene_aliases)) if config.gene_aliases else {}
    found = [read_relations(Path(path), aliases=aliases) for path in config.relation_files]
    if config.pathway_relations:
        pairs = {
            (first, second)
            for genes in genes_of_pathways(wells, aliases).values()
            for first in genes
            for second in genes
            if first < second
        }
        if pairs:
            found.append(Relations(PATHWAY_SOURCE, tuple(sorted(pairs)), len(pairs)))
    return found, aliases


def _warnings(wells: Wells, config: ProfileBenchmarkConfig) -> Iterator[str]:
    is_control = wells.is_control.tolist()
    labels = {
        name: ["" if control else each for each, control in zip(getattr(wells, name), is_control, strict=True)]
        for name in ("perturbation", "pathway")
    }
    labels["control"] = ["negative control" if control else "treated" for control in is_control]
    held = [
        "negative control" if control else each for each, control in zip(wells.perturbation, is_control, strict=True)
    ]
    yield from confounding_warnings(wells.place, held, labels, seed=config.seed)
    names = wells.plate if config.align_by == "plate" else wells.batch
    n_controls = dict.fromkeys(names, 0)
    for name, control in zip(names, wells.is_control.tolist(), strict=True):
        n_controls[name] += control
    few = [name for name, n in n_controls.items() if n < 2]
    if few and set(config.alignments) - {"none"}:
        yield (
            f"{len(few)} of {len(n_controls)} {config.align_by} groups have fewer than 2 negative controls "
            f"({', '.join(few[:4])}): "
            + (
                "they are aligned on all of their wells, which removes an effect common to these wells."
                if config.missing_controls == "all_wells"
                else "no alignment can be fitted."
            )
        )
