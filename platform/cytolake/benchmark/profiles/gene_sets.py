"""Annotations of a screen's genes: clusters, targets of compounds, and chromosome arms."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cytolake.benchmark.compound_gene import TRUTH_COLUMNS, check_truth
from cytolake.benchmark.profiles.config import ProfileBenchmarkConfig
from cytolake.benchmark.profiles.wells import Wells
from cytolake.benchmark.relations.relation_files import read_clusters, rename
from cytolake.catalog.ids import content_id
from cytolake.screens.rxrx import RXRX3_CORE_TRUTH_COLUMNS, read_rxrx3_core_truth

PATHWAY_SOURCE = "pathway"


@dataclass(frozen=True, slots=True)
class GeneSets:
    """Annotations that are read once for all representations."""

    clusters: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """For each source its clusters: name to genes, sorted."""
    truth: pa.Table | None = None
    """Known activities of compounds on genes, as input of `compound_gene_activity`; None without a file."""
    arm_of_gene: Mapping[str, str] = field(default_factory=dict)
    """Chromosome arm of each gene, such as 17p; empty without a file."""
    unexpressed: frozenset[str] | None = None
    """Genes that the cells do not express; None where the file of arms has no such column."""

    @property
    def identity(self) -> str:
        """Hash of all clusters, activities and arms."""
        rows = None if self.truth is None else self.truth.to_pydict()
        unexpressed = None if self.unexpressed is None else sorted(self.unexpressed)
        return content_id("gene sets", json.dumps([self.clusters, rows, self.arm_of_gene, unexpressed]))


def read_gene_sets(wells: Wells, config: ProfileBenchmarkConfig, aliases: Mapping[str, str]) -> GeneSets:
    """Read the files of the config and the pathways of the wells, with genes renamed by the aliases.

    Raises:
        ValueError: A file that cannot be read, two cluster files with one name, or no arm with enough genes of the
            screen.
    """
    clusters: dict[str, dict[str, tuple[str, ...]]] = {}
    for path in map(Path, config.cluster_files):
        source = path.name.split(".")[0]
        if source in clusters or (source == PATHWAY_SOURCE and config.pathway_relations):
            raise ValueError(f"{path}: clusters of the source {source} come a second time. Give the file another name.")
        clusters[source] = read_clusters(path, aliases)
    pathways = genes_of_pathways(wells, aliases) if config.pathway_relations else {}
    if pathways:
        clusters[PATHWAY_SOURCE] = {name: tuple(sorted(genes)) for name, genes in sorted(pathways.items())}
    truth = None
    if config.compound_gene_truth:
        truth = _read_truth(Path(config.compound_gene_truth), set(rename(wells.gene, aliases)), aliases)
    arms: dict[str, str] = {}
    unexpressed: frozenset[str] | None = None
    if config.chromosome_arms:
        arms, unexpressed = _read_arms(Path(config.chromosome_arms), aliases)
        _check_arms(config, arms, unexpressed, set(rename(knocked_out(wells), aliases)))
    return GeneSets(clusters, truth, arms, unexpressed)


def knocked_out(wells: Wells) -> list[str]:
    """(W,) perturbed gene of each well; empty for controls and for wells of compounds, whose gene is the compound's
    target."""
    return [
        "" if control or compound else gene
        for gene, compound, control in zip(wells.gene, wells.compound, wells.is_control.tolist(), strict=True)
    ]


def genes_of_pathways(wells: Wells, aliases: Mapping[str, str]) -> dict[str, set[str]]:
    """Genes of each `wells.pathway`, without controls."""
    genes_of: dict[str, set[str]] = {}
    for gene, pathway, control in zip(
        rename(wells.gene, aliases), wells.pathway, wells.is_control.tolist(), strict=True
    ):
        if gene and pathway and not control:
            genes_of.setdefault(pathway, set()).add(gene)
    return genes_of


def _read_truth(path: Path, genes: Collection[str], aliases: Mapping[str, str]) -> pa.Table:
    is_parquet = path.suffix == ".parquet"
    table = pq.read_table(path) if is_parquet else _read_csv(path)
    if not is_parquet and set(RXRX3_CORE_TRUTH_COLUMNS) <= set(table.column_names):
        table = read_rxrx3_core_truth(path, genes)
    try:
        check_truth(table)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    renamed = [aliases.get(gene, gene) for gene in table["gene"].to_pylist()]
    return pa.table(
        {
            "compound": table["compound"].cast(pa.string()),
            "gene": pa.array(renamed, pa.string()),
            "activity_um": table["activity_um"].cast(pa.float64()),
        }
    )


def _read_csv(path: Path) -> pa.Table:
    types = dict(zip(TRUTH_COLUMNS, (pa.string(), pa.string(), pa.float64()), strict=True))
    try:
        return pa.csv.read_csv(
            path, convert_options=pa.csv.ConvertOptions(column_types=types, strings_can_be_null=True)
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a table of {', '.join(TRUTH_COLUMNS)} ({error}). Correct the file.") from None


def _read_arms(path: Path, aliases: Mapping[str, str]) -> tuple[dict[str, str], frozenset[str] | None]:
    """Arm of each gene, and the genes that are not expressed where the table has them."""
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pa.csv.read_csv(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a table of gene and arm ({error}). Correct the file.") from None
    if not {"gene", "arm"} <= set(table.column_names):
        raise ValueError(
            f"{path}: found the columns {', '.join(table.column_names)}, expected gene, arm and, where known, "
            "unexpressed (true or false). Rename them."
        )
    arms: dict[str, str] = {}
    genes = [aliases.get(str(gene), str(gene)) for gene in table["gene"].to_pylist()]
    for row, (gene, arm) in enumerate(zip(genes, table["arm"].to_pylist(), strict=True)):
        if not gene or gene == "None" or not arm or arms.setdefault(gene, str(arm)) != str(arm):
            raise ValueError(
                f"{path}: row {row} has the gene {gene!r} and the arm {arm!r}, and before it the arm "
                f"{arms.get(gene, 'none')}. Expected two names, and one arm for each gene."
            )
    if "unexpressed" not in table.column_names:
        return arms, None
    flags = table["unexpressed"]
    if not pa.types.is_boolean(flags.type) or flags.null_count:
        raise ValueError(
            f"{path}: the column unexpressed is {flags.type} with {flags.null_count} empty values, expected true or "
            "false in every row."
        )
    return arms, frozenset(gene for gene, flag in zip(genes, flags.to_pylist(), strict=True) if flag)


def _check_arms(
    config: ProfileBenchmarkConfig, arms: Mapping[str, str], unexpressed: Collection[str] | None, genes: Collection[str]
) -> None:
    """Check before any scoring that some arm can be corrected."""
    counts = Counter(arms[g] for g in sorted(genes) if g and g in arms and (unexpressed is None or g in unexpressed))
    if not counts or max(counts.values()) < config.min_arm_genes:
        most = "none has any" if not counts else "{} has the most, {}".format(*counts.most_common(1)[0])
        raise ValueError(
            f"{config.chromosome_arms}: no chromosome arm has {config.min_arm_genes} "
            f"{'' if unexpressed is None else 'unexpressed '}genes among the {len(set(genes) - {''})} that were "
            f"perturbed ({most}). Check that gene symbols are those of the screen, or lower profiles.min_arm_genes."
        )
