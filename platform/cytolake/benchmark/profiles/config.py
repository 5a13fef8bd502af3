"""Configuration of the profile benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cytolake.benchmark.profiles.aggregation import Aggregation
from cytolake.embed.alignment.chromosome_arms import MIN_GENES
from cytolake.embed.alignment.variants import MissingControls, Variant

Task = Literal[
    "relations", "consistency", "magnitude", "replicates", "percent_replicating", "grit", "activity", "mechanism",
    "nsc", "nscb", "sibling_retrieval", "leakage", "false_positives", "dose", "clusters", "compound_gene",
    "feature_regression", "batch_mixing", "linear_separability", "nearest_neighbours", "reconstruction",
]  # fmt: skip


def names_in(path: Path) -> list[str]:
    """Names in a text file, one on each line; empty lines do not count.

    Raises:
        ValueError: No such file, or no name in it.
    """
    names = (
        list(dict.fromkeys(filter(None, map(str.strip, path.read_text("utf-8").splitlines()))))
        if path.is_file()
        else []
    )
    if not names:
        raise ValueError(f"{path}: found no names, expected a text file with one on each line.")
    return names


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileBenchmarkConfig:
    """Benchmarks of each representation and their settings."""

    tasks: tuple[Task, ...] = get_args(Task)
    """Benchmarks; one that is not possible on the screen is reported and left out."""
    alignments: tuple[Variant, ...] = ("none", "pca_cs")
    """Alignments that are scored; see `embed/alignment`. Signal, replicates and doses need one, because they compare
    with controls."""
    align_by: Literal["plate", "batch"] = "plate"
    """Unit whose controls align a well."""
    missing_controls: MissingControls = "all_wells"
    """Alignment of a plate or batch with fewer than two controls; `all_wells` gives a warning."""
    null_perturbations: tuple[str, ...] = ()
    """Perturbations without an effect, such as knock-outs of genes that the cells do not express, by name or gene.
    Where given, `consistency` and `magnitude` compare with their values, as EFAAR_benchmarking does, instead of random
    wells and controls. A p-value of 0.05 needs 19 or more."""
    treatment_aggregation: Aggregation = "median"
    """Wells to treatments in `mechanism`, `nsc`, `nscb` and `sibling_retrieval`. BBBC021's protocol (Ljosa et al. 2013,
    doi:10.1177/1087057113503553) and the consensus profiles of JUMP take medians."""
    gene_aggregation: Aggregation = "mean"
    """Wells to guides and guides to genes in `relations` and `clusters`, wells to doses and genes in `compound_gene`,
    wells of one plate or batch in `replicates`. EFAAR's maps take means."""
    chromosome_arms: str = ""
    """CSV or Parquet with the columns gene and arm, and `unexpressed` (true or false). Where given, the common profile
    of an arm's unexpressed genes is subtracted from the aligned profiles of all knock-outs on the arm."""
    min_arm_genes: int = MIN_GENES
    """Fewest (unexpressed) genes of an arm in the screen; an arm with fewer is not corrected."""
    features: str = ""
    """Parquet table with Metadata_Plate, Metadata_Well (Metadata_Screen where plates of several screens share a name)
    and feature columns named as by CellProfiler, one row for each well; `feature_regression` predicts them."""
    relation_files: tuple[str, ...] = ()
    """Tables with the columns entity1 and entity2: hu.MAP, Reactome, StringDB, or your copy of CORUM or SIGNOR."""
    gene_aliases: str = ""
    """Table with the columns alias and symbol, to rename genes of the screen and of the files."""
    pathway_relations: bool = True
    """Whether genes of one `wells.pathway` are also relations and a cluster, under the source `pathway`."""
    min_genes: int = 12
    """Fewest genes for recall: fewer have too few pairs for tails of 5 %."""
    cluster_files: tuple[str, ...] = ()
    """Files with clusters of genes, such as complexes: each line has a name, a tab and its genes."""
    min_cluster_genes: int = 10
    """Fewest genes with profiles of a cluster that is tested."""
    compound_gene_truth: str = ""
    """Known targets of compounds: CSV or Parquet with the columns compound, gene and activity_um, or the file of
    RxRx3-core. The unit of doses in `wells` is uM."""
    poolings: tuple[str, ...] = ("mean", "all", "log", "intensity", "texture")
    """Poolings of an encoder that are scored; external tables and cell counts have `all`, and pixel statistics four
    forms, so that the baseline is chosen among several too."""
    draws: int = 1000
    """Resamples behind intervals, and random sets behind p-values."""
    seed: int = 0
    """Seed of every draw."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the splits that hold out batches and perturbations; scores are means over them."""

    def __post_init__(self) -> None:
        for name, kind in (("tasks", Task), ("alignments", Variant)):
            wrong = sorted(set(getattr(self, name)) - set(get_args(kind)))
            if wrong or not getattr(self, name):
                raise ValueError(
                    f"profiles.{name} is {getattr(self, name)}: expected one or more of {', '.join(get_args(kind))}."
                )
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"profiles.seeds is {self.seeds}, expected different numbers from 0 up, such as (0, 1, 2)."
            )
        if self.align_by not in ("plate", "batch"):
            raise ValueError(f"profiles.align_by is {self.align_by!r}, expected plate or batch.")
        for name in ("treatment_aggregation", "gene_aggregation"):
            if getattr(self, name) not in get_args(Aggregation):
                raise ValueError(
                    f"profiles.{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(Aggregation))}."
                )
        least_of = {"draws": 19, "min_genes": 3, "min_cluster_genes": 2, "min_arm_genes": 1, "seed": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"profiles.{name} is {getattr(self, name)}, expected {least} or more.")
