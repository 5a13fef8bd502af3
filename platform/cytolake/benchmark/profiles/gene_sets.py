"""What is known of a screen's genes: clusters that belong together, and the targets of compounds."""

from __future__ import annotations

import json
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
    """Read once, and asked of every representation."""

    clusters: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """For each source its clusters: name to genes, sorted."""
    truth: pa.Table | None = None
    """Known activities of compounds on genes, as `compound_gene_activity` takes them; None where no file was given."""

    @property
    def identity(self) -> str:
        """Changes with any cluster or activity."""
        rows = None if self.truth is None else self.truth.to_pydict()
        return content_id("gene sets", json.dumps([self.clusters, rows]))


def read_gene_sets(wells: Wells, config: ProfileBenchmarkConfig, aliases: Mapping[str, str]) -> GeneSets:
    """The files of the config and the pathways of the wells, with genes spelled as the aliases have them.

    Raises:
        ValueError: A file that cannot be read, or two cluster files of one name.
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
    return GeneSets(clusters, truth)


def genes_of_pathways(wells: Wells, aliases: Mapping[str, str]) -> dict[str, set[str]]:
    """Genes of each `wells.pathway`, controls aside."""
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
