"""Every benchmark of well profiles in one go, for any representation: rows of the `scores` table.

A benchmark that a screen does not allow (no doses, one batch, no relation file) is left out with its reason; it never
stands as a score. Profiles are the means of a well's crops, aligned on negative controls first, and every alignment
asked for is scored beside the others. What is fitted is kept under the root and named in the scores' details.

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
from threadpoolctl import threadpool_limits

from cytolake.benchmark.confounding import confounding_warnings
from cytolake.benchmark.profiles.asked import Asked
from cytolake.benchmark.profiles.compared_controls import compared_controls
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.gene_sets import PATHWAY_SOURCE, GeneSets, genes_of_pathways, read_gene_sets
from cytolake.benchmark.profiles.plate_jackknife import with_plate_intervals
from cytolake.benchmark.profiles.tasks import TASKS
from cytolake.benchmark.profiles.wells import Wells, read_profiles, read_wells
from cytolake.benchmark.relations.relation_files import Relations, read_aliases, read_relations
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.embed.alignment.fit import fit_alignment
from cytolake.embed.alignment.kept import ALIGNED, keep_alignment
from cytolake.embed.alignment.variants import AlignmentConfig, Variant

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ProfileScores:
    """What was measured, what could not be, and what to beware of."""

    rows: list[dict[str, Any]]
    """Rows of the `scores` table, of earlier runs with the same protocol too."""
    left_out: dict[str, str]
    """Benchmark and alignment that a representation has no score of: why."""
    warnings: tuple[str, ...]
    """Of the screen, whatever the representation: labels tied to batches, plates without controls."""


def score_profiles(
    catalog: Catalog,
    representation_ids: Sequence[str],
    config: ProfileBenchmarkConfig,
    progress: Progress | None = None,
) -> ProfileScores:
    """Score the profiles of representations, each in a Ray task where Ray runs, and write the `scores` table.

    What has scores of the same settings, wells and labels is not scored again. What was aligned when it was written is
    scored as it is, under the alignment `none`.

    Args:
        catalog: The tables.
        representation_ids: The wells of the first are scored; one that lacks some is left out with its reason. Those of
            other poolings than `config.poolings` are passed over.
        config: What to measure.
        progress: Told the representations done and to do.

    Raises:
        ValueError: No such representation or no profiles, or a relation file that cannot be read.
    """
    listed = ", ".join(f"'{each}'" for each in representation_ids) or "''"
    found = catalog.table("representations", where=f"representation_id in ({listed})").to_pylist()
    taken = {row["representation_id"] for row in found if row["pooling"] in config.poolings}
    ids = [each for each in dict.fromkeys(representation_ids) if each in taken]
    if not ids:
        raise ValueError(
            f"none of {len(representation_ids)} representations has a pooling of {', '.join(config.poolings)}. Run "
            "jobs/embed.py first, or widen profiles.poolings."
        )
    wells = read_wells(catalog, ids[0])
    relations, aliases = _relations(wells, config)
    gene_sets = read_gene_sets(wells, config, aliases)
    is_decoded = "reconstruction" in config.tasks
    statistics_id = _statistics_id(catalog, wells, {str(row["pack_id"]) for row in found}) if is_decoded else ""
    known = (*(repr(each) for each in relations), gene_sets.identity)
    protocol = content_id(repr(asdict(config)), wells.identity, *known)
    protocols = ", ".join(f"'{each}'" for each in (protocol, _decoding(protocol, statistics_id)))
    there = catalog.table("scores", where=f"protocol in ({protocols})").to_pylist()
    done = {row["representation_id"] for row in there}
    todo = [each for each in ids if each not in done]
    as_they_are = replace(config, alignments=("none",))
    is_aligned = {row["representation_id"] for row in found if row["kind"] == ALIGNED}
    about = (wells, relations, aliases, gene_sets, statistics_id)
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
    statistics_id: str,
    config: ProfileBenchmarkConfig,
    protocol: str,
    is_aligned: bool = False,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of the `scores` table of one representation, and why benchmarks have none; one task."""
    try:
        profiles_WD = read_profiles(catalog, representation_id, wells.well_id)
        statistics_WG = read_profiles(catalog, statistics_id, wells.well_id) if statistics_id else None
    except ValueError as error:
        return [], {f"all of {representation_id}": str(error)}
    scored_at = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with threadpool_limits(limits=1):  # other tasks have the other CPUs
        for variant in config.alignments:
            try:
                aligned_WD, alignment_id = _aligned(catalog, profiles_WD, wells, variant, config)
            except ValueError as error:
                left_out[f"all, {variant}"] = str(error)
                continue
            compared = compared_controls(profiles_WD, wells, variant, config, is_aligned=is_aligned)
            asked = Asked(aligned_WD, wells, relations, aliases, gene_sets, config, variant, compared, statistics_WG)
            for task in config.tasks:
                try:
                    scores = with_plate_intervals(task, TASKS[task], asked)
                except ValueError as error:
                    left_out[f"{task}, {variant}"] = str(error)
                    continue
                for score in scores:
                    details = {**score.pop("details"), "n_wells": len(wells.well_id)}
                    if alignment_id:
                        details["alignment_id"] = alignment_id
                    key = [score[name] for name in ("benchmark", "label", "metric")] + [variant]
                    if "seed" in score:
                        key.append(score["seed"])
                    rows.append(
                        {
                            "score_id": content_id(representation_id, protocol, *key),
                            "representation_id": representation_id,
                            "seed": -1,
                            "held_out": "",
                            **score,
                            "alignment": variant,
                            "protocol": _decoding(protocol, statistics_id) if task == "reconstruction" else protocol,
                            "details": json.dumps(details, sort_keys=True),
                            "scored_at": scored_at,
                        }
                    )
    return rows, left_out


def _statistics_id(catalog: Catalog, wells: Wells, packs: set[str]) -> str:
    """Pixel statistics of all the wells, of one of the packs where there are any; empty where there are none."""
    there = (
        catalog.table("representations", where="kind = 'pixel_statistics' and pooling = 'all'")
        .sort_by("created_at")
        .to_pylist()
    )
    for row in sorted(there, key=lambda row: row["pack_id"] not in packs):
        where = f"representation_id = '{row['representation_id']}'"
        has = catalog.table("profiles", columns=["well_id"], where=where)["well_id"].to_pylist()
        if set(wells.well_id) <= set(has):
            return str(row["representation_id"])
    return ""


def _decoding(protocol: str, statistics_id: str) -> str:
    """Protocol of scores that depend on what was decoded; all others compare whatever pixel statistics there are."""
    return content_id(protocol, statistics_id)


def _aligned(
    catalog: Catalog, profiles_WD: Floats, wells: Wells, variant: Variant, config: ProfileBenchmarkConfig
) -> tuple[Floats, str]:
    if variant == "none":
        return profiles_WD, ""
    settings = AlignmentConfig(variant=variant, missing_controls=config.missing_controls)
    groups = wells.plate if config.align_by == "plate" else wells.batch
    fitted = fit_alignment(profiles_WD, groups, wells.is_control, settings)
    return fitted.apply(profiles_WD, groups), keep_alignment(catalog.root, fitted)


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
                "they are aligned on all of their wells, which takes a common effect for nothing."
                if config.missing_controls == "all_wells"
                else "no alignment can be fitted."
            )
        )
