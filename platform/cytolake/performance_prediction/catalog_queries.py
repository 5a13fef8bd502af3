"""Queries from the catalog: the wells or crops of a representation, with their performance.

A search service receives crops, so its predictor is fitted on crops; a screen is planned in wells.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cytolake.benchmark.profiles.wells import Wells, read_profiles, read_wells
from cytolake.catalog import Catalog
from cytolake.catalog.representations import VectorReader, read_vectors
from cytolake.performance_prediction.queries import Measure, Queries, queries_of_profiles
from cytolake.performance_prediction.query_predictor import Before, QueryPredictorConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class QueriesConfig:
    """Queries that a predictor is fitted on."""

    representation_id: str = ""
    """Representation of the vectors; empty means the promoted one."""
    before: tuple[Before, ...] = ("search", "screen")
    """Time of the prediction: for crops before a search, for wells before a screen."""
    measures: tuple[Measure, ...] = ("average_precision", "replicate_consistency")
    """Predicted measures: ranks of replicates, or their similarity."""
    crops: int = 6000
    """Most crops that are compared with each other, sampled evenly from wells; the time grows with the square."""
    queries: int = 1000
    """Most queries to fit on, a random sample of more."""
    predictor: QueryPredictorConfig = field(default_factory=QueryPredictorConfig)

    def __post_init__(self) -> None:
        if not self.before:
            raise ValueError("queries.before is empty, expected search, screen or both.")
        if not self.measures:
            raise ValueError("queries.measures is empty, expected average_precision, replicate_consistency or both.")
        if self.crops < 1 or self.queries < 1:
            raise ValueError(f"queries.crops is {self.crops} and queries.queries {self.queries}, expected 1 or more.")


def well_queries(
    catalog: Catalog, representation_id: str, config: QueriesConfig, measure: Measure = "average_precision"
) -> Queries:
    """Every treated well's profile as a query.

    Raises:
        ValueError: No profiles, too few controls or replicates.
    """
    wells = read_wells(catalog, representation_id)
    vectors = read_profiles(catalog, representation_id, wells.well_id)
    return queries_of_profiles(
        vectors,
        wells.perturbation,
        families(wells),
        descriptions(wells),
        wells.dose[:, None],
        wells.plate,
        wells.is_control,
        config.queries,
        config.predictor.seed,
        measure,
    )


def crop_queries(
    catalog: Catalog, representation_id: str, config: QueriesConfig, measure: Measure = "average_precision"
) -> Queries:
    """Crops as queries among crops, sampled evenly from wells.

    Raises:
        ValueError: No embeddings, too few controls or replicates.
    """
    wells = read_wells(catalog, representation_id)
    table = VectorReader(catalog).columns(representation_id, ["crop_id", "well_id"]).sort_by("crop_id")
    if not table.num_rows:
        raise ValueError(f"representation {representation_id} has no embeddings of crops. Run `cytolake embed` first.")
    place = pc.index_in(table["well_id"].combine_chunks(), value_set=pa.array(wells.well_id, pa.string()))
    well = place.fill_null(-1).to_numpy()
    rows = _evenly(well, config.crops, config.predictor.seed)
    well = well[rows]
    vectors = read_vectors(catalog, representation_id, table["crop_id"].take(pa.array(rows))).astype(np.float64)
    family, description = families(wells), descriptions(wells)
    found = queries_of_profiles(
        vectors,
        [wells.perturbation[i] for i in well],
        [family[i] for i in well],
        [description[i] for i in well],
        wells.dose[well][:, None],
        # Crops of one well are similar because of the well: with a single plate, they must not count as replicates.
        [wells.plate[i] if len(set(wells.plate)) > 1 else wells.well_id[i] for i in well],
        wells.is_control[well],
        config.queries,
        config.predictor.seed,
        measure,
    )
    if len(rows) < table.num_rows:
        note = f"{len(rows):,} of {table.num_rows:,} crops search each other"
        found = replace(found, notes=(note, *found.notes))
    return found


def families(wells: Wells) -> list[str]:
    """(W,) group of each well that is held out whole: the compound, else the gene, else the perturbation."""
    named = zip(wells.compound, wells.gene, wells.perturbation, strict=True)
    return [compound or gene or perturbation for compound, gene, perturbation in named]


def family_of(crops: pa.Table, row: int) -> str:
    """The same for one crop, from a table with the columns of its well."""
    names = (crops[name][row].as_py() for name in ("compound", "gene", "perturbation"))
    return next((name for name in names if name), "")


def descriptions(wells: Wells) -> list[str]:
    """(W,) labels of each well in the plate map, as a text."""
    named = zip(wells.compound, wells.gene, wells.pathway, strict=True)
    texts = []
    for compound, gene, pathway in named:
        parts = (("compound", compound), ("gene", gene), ("pathway", pathway))
        texts.append(" ".join(f"{kind} {value}" for kind, value in parts if value))
    return texts


def _evenly(well: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of crops in known wells: all, or a random sample of one crop of each well, then a second, and so on."""
    known = np.flatnonzero(well >= 0)
    if len(known) <= most:
        return known
    shuffled = np.random.default_rng(seed).permutation(known)
    order = np.argsort(well[shuffled], kind="stable")
    of_well = well[shuffled][order]
    starts = np.flatnonzero(np.r_[True, of_well[1:] != of_well[:-1]])
    turn = np.arange(len(of_well)) - np.repeat(starts, np.diff(np.r_[starts, len(of_well)]))
    taken = np.argsort(turn, kind="stable")[:most]
    return np.sort(shuffled[order[taken]])
