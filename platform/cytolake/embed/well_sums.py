"""Sums embeddings of crops by well, and writes the means as `profiles`.

Parts of a representation's Parquet row groups are summed by Ray tasks (or here, to the same result), each a batch of
rows at a time; only float64 sums and counts of wells are put together. So memory follows the number of wells and the
size of a batch, not the number of crops.

Shapes: N crops of a batch, W wells, G groups of rows, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.labelled_units import UNIT, labelled_units
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.catalog.representations import VectorReader, no_vectors, vectors_column, vectors_of, wrong_width

MOST_PARTS = 16
SUMS_BYTES = 512_000_000
"""Float64 sums held at once, of all parts together."""
BYTES_FOR_TASKS = 256_000_000
"""Fewer bytes of vectors than this are summed here: a task takes a second to start, and reads 500 MB in it."""


@dataclass(frozen=True, slots=True)
class WellSums:
    """Sums over crops, by well."""

    wells: tuple[str, ...]
    """(W,) ids, sorted."""
    plates: tuple[str, ...]
    """(W,) plate id of each."""
    sums: NDArray[np.float64]
    """(W, D)"""
    counts: NDArray[np.int64]
    """(W,) crops summed."""

    @property
    def means(self) -> NDArray[np.float64]:
        """(W, D)"""
        return self.sums / self.counts[:, None]


def append_profiles(catalog: Catalog, representation_ids: Sequence[str]) -> bool:
    """Write the means of wells, and of groups of labelled objects, of representations whose embeddings are whole.

    One commit for as many representations as fit into `SUMS_BYTES`, usually all. What is there is not read again.

    Returns:
        False where all had been written before.

    Raises:
        ValueError: A representation without embeddings, or with vectors that differ in length or are not finite.
    """
    profiles = VectorReader(catalog, "well")
    ids = list(dict.fromkeys(representation_ids))
    done = {each for each in ids if profiles.count(each)}
    is_new = False
    source = catalog.snapshot()
    for some in _that_fit(source, [each for each in ids if each not in done]):
        tables = [_profiles(each, sums) for each, sums in zip(some, well_sums(source, some), strict=True)]
        is_new |= catalog.append("profiles", pa.concat_tables(tables), transaction=f"profiles/{content_id(*some)}")
    return append_group_profiles(catalog, ids) or is_new


def append_group_profiles(catalog: Catalog, representation_ids: Sequence[str]) -> bool:
    """Write the means of groups of labelled objects that have none yet, of representations with embeddings.

    Objects may have got their labels after a representation was written, so this is called before profiles are read
    by their labels.

    Returns:
        False where all had been written before.

    Raises:
        ValueError: Vectors that differ in length or are not finite.
    """
    source = catalog.snapshot()
    groups = pc.unique(labelled_units(source, ()).group_of_crop[UNIT]).to_pylist()
    if not groups or catalog.pinned is not None:
        return False
    digest = content_id(*sorted(groups))
    transactions = {each: f"profiles/groups/{each}/{digest}" for each in dict.fromkeys(representation_ids)}
    done = catalog.committed("profiles", transactions.values())
    embeddings, profiles = VectorReader(source), VectorReader(source, "well")
    todo = [each for each, name in transactions.items() if name not in done]
    is_new = False
    for some in _that_fit(source, [each for each in todo if embeddings.count(each)]):
        for each, sums in zip(some, well_sums(source, some, by_label=True), strict=True):
            there = profiles.columns(each, ["well_id"])["well_id"]
            new = pa.array(sorted(set(groups).difference(there.to_pylist())), pa.string())
            table = _profiles(each, sums)
            table = table.filter(pc.is_in(table["well_id"], value_set=new))
            is_new |= catalog.append("profiles", table, transaction=transactions[each])
    return is_new


def _profiles(representation_id: str, summed: WellSums) -> pa.Table:
    columns = {
        "representation_id": pa.repeat(representation_id, len(summed.wells)),
        "well_id": pa.array(summed.wells, pa.string()),
        "plate_id": pa.array(summed.plates, pa.string()),
        "n_crops": pa.array(summed.counts, pa.int32()),
        "profile": vectors_column(summed.means.astype(np.float32)),
    }
    schema = table_contract("profiles").schema
    return pa.table(columns).select(schema.names).cast(schema)


def well_sums(
    catalog: Catalog,
    representation_ids: Sequence[str],
    *,
    by_label: bool = False,
) -> list[WellSums]:
    """Sums of the crops of each well, for each representation.

    Args:
        catalog: Pinned, so that all tasks read the same rows.
        representation_ids: Whose embeddings.
        by_label: In wells with labelled objects apart for each group, and for the crops that are of none.

    Raises:
        ValueError: A representation without rows, or vectors that differ in length or are not finite.
    """
    embeddings = VectorReader(catalog)
    tasks, n_parts_of = [], []
    n_bytes = 0
    for size in _sizes(catalog, embeddings, representation_ids):
        n_bytes += size.vectors_bytes
        n_parts = min(MOST_PARTS, size.vectors_bytes // BYTES_FOR_TASKS, SUMS_BYTES // max(1, size.sums_bytes))
        n_parts_of.append(max(1, n_parts))
        tasks += [(catalog, size.representation_id, part, n_parts_of[-1], by_label) for part in range(max(1, n_parts))]
    if n_bytes < BYTES_FOR_TASKS:
        parts = [sum_part(*task, embeddings) for task in tasks]
    else:
        parts = run_tasks(sum_part, tasks, len(tasks), "parts summed")
    results = []
    for representation_id, n_parts in zip(representation_ids, n_parts_of, strict=True):
        results.append(_merged(representation_id, parts[:n_parts]))
        del parts[:n_parts]
    return results


def sum_part(
    catalog: Catalog,
    representation_id: str,
    part: int,
    n_parts: int,
    by_label: bool = False,
    embeddings: VectorReader | None = None,
) -> WellSums:
    """Sums over every `n_parts`-th row group of a representation, from the row group `part`; one task."""
    units = labelled_units(catalog, ()) if by_label else None
    place: dict[str, int] = {}
    plates: list[str] = []
    sums = np.zeros((0, 0))
    counts = np.zeros(0, dtype=np.int64)
    reader = embeddings if embeddings is not None else VectorReader(catalog)
    for rows in reader.rows(representation_id, part, n_parts):
        vectors_ND = vectors_of(rows, representation_id)
        if place and vectors_ND.shape[1] != sums.shape[1]:
            raise wrong_width(representation_id, {vectors_ND.shape[1], sums.shape[1]})
        wells = rows["well_id"] if units is None else units.of_crops(rows["crop_id"], rows["well_id"])
        names, of_crop = _codes(wells)
        first = np.unique(of_crop, return_index=True)[1]
        for name, row in zip(names, first.tolist(), strict=True):
            if name not in place:
                place[name] = len(plates)
                plates.append(rows["plate_id"][row].as_py())
        if len(plates) > len(counts):  # grows by halves, so that wells that come late do not cost a copy each
            grown = max(len(plates), len(counts) * 3 // 2)
            counts = np.concatenate([counts, np.zeros(grown - len(counts), dtype=np.int64)])
            longer = np.zeros((grown, vectors_ND.shape[1]))
            if len(sums):
                longer[: len(sums)] = sums
            sums = longer
        where_to = np.asarray([place[name] for name in names])
        sums[where_to] += sum_by(of_crop, vectors_ND, len(names))
        counts[where_to] += np.bincount(of_crop, minlength=len(names))
    order = sorted(place, key=place.__getitem__)
    return sorted_sums(order, plates, sums[: len(order)], counts[: len(order)])


@dataclass(frozen=True, slots=True)
class _Size:
    """How much there is of a representation."""

    representation_id: str
    vectors_bytes: int
    """float32, of all crops."""
    sums_bytes: int
    """float64, of as many wells as there can be."""


def _sizes(catalog: Catalog, embeddings: VectorReader, representation_ids: Sequence[str]) -> Iterator[_Size]:
    """Raises ValueError for a representation without rows."""
    n_wells = catalog.dataset("wells").count_rows()
    for each in representation_ids:
        n_rows, dim = embeddings.count(each), embeddings.dim(each)
        if not n_rows:
            raise no_vectors({"representation_id": each, "kind": ""}, "crop")
        yield _Size(each, 4 * n_rows * dim, 8 * min(n_rows, n_wells or n_rows) * dim)


def _that_fit(catalog: Catalog, representation_ids: Sequence[str]) -> Iterator[list[str]]:
    """Groups of representations, in order, whose sums fit into `SUMS_BYTES`."""
    group: list[str] = []
    n_bytes = 0
    for size in _sizes(catalog, VectorReader(catalog), representation_ids):
        if group and n_bytes + size.sums_bytes > SUMS_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append(size.representation_id)
        n_bytes += size.sums_bytes
    if group:
        yield group


def _merged(representation_id: str, parts: Sequence[WellSums]) -> WellSums:
    parts = [part for part in parts if part.wells]
    if len(parts) < 2:
        return parts[0]
    if len({part.sums.shape[1] for part in parts}) > 1:
        raise wrong_width(representation_id, {part.sums.shape[1] for part in parts})
    plate_of = {well: plate for part in parts for well, plate in zip(part.wells, part.plates, strict=True)}
    wells = sorted(plate_of)
    sums = np.zeros((len(wells), parts[0].sums.shape[1]))
    counts = np.zeros(len(wells), dtype=np.int64)
    for part in parts:
        place = np.searchsorted(wells, part.wells)
        sums[place] += part.sums
        counts[place] += part.counts
    return WellSums(tuple(wells), tuple(plate_of[well] for well in wells), sums, counts)


def sorted_sums(
    wells: Sequence[str], plates: Sequence[str], sums: NDArray[np.float64], counts: NDArray[np.int64]
) -> WellSums:
    order = sorted(range(len(wells)), key=wells.__getitem__)
    return WellSums(tuple(wells[i] for i in order), tuple(plates[i] for i in order), sums[order], counts[order])


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.intp]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices.to_numpy(), dtype=np.intp)


def sum_by(group_N: NDArray[np.intp], values_ND: NDArray[Any], n_groups: int) -> NDArray[np.float64]:
    """(G, D) float64 sums of rows by group."""
    sums = np.zeros((n_groups, values_ND.shape[1]))
    if len(group_N) == 0:
        return sums
    order = np.argsort(group_N, kind="stable")
    present, starts = np.unique(group_N[order], return_index=True)
    sums[present] = np.add.reduceat(values_ND[order].astype(np.float64), starts, axis=0)
    return sums
