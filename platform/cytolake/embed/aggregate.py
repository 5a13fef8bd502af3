"""From crops to wells, guides and perturbations: means of embeddings, by distributed sums.

Parts of a representation's Parquet row groups are summed by Ray tasks (or here, to the same result), each a batch of
rows at a time; only float64 sums and counts of wells are put together. So memory follows the number of wells and the
size of a batch, not the number of crops.

Shapes: N crops of a batch, W wells, G groups of wells, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.labelled_units import UNIT, labelled_units
from cytolake.catalog.ray_tasks import run_tasks
from cytolake.embed.alignment.kept import ALIGNED

Progress = Callable[[str, int, int], None]
Level = Literal["well", "guide", "perturbation"]
MeanOf = Literal["crops", "wells", "guides"]

COLUMNS: dict[Level, tuple[str, ...]] = {
    "well": ("screen", "batch", "plate", "well", "guide", "perturbation", "is_negative_control", "well_id"),
    "guide": ("screen", "perturbation", "guide"),
    "perturbation": ("screen", "perturbation"),
}
"""Columns of `wells` that tell the rows of a level apart. Screens are never averaged together."""

ROWS_AT_ONCE = 4096  # a row group of the catalog's tables
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


def aggregate(
    catalog: Catalog,
    representation_id: str,
    level: Level,
    *,
    mean_of: MeanOf = "wells",
    within: Sequence[str] = (),
    curation_id: str = "",
    progress: Progress | None = None,
) -> pa.Table:
    """Mean vectors of wells, guides or perturbations.

    Args:
        catalog: Where the rows are.
        representation_id: Whose vectors; its crops are those that the pack's curation kept. Of one that was aligned at
            the level of wells, the vectors of wells are taken as they are.
        level: One row for each of these. A well whose column of this name is empty belongs to none. In a well with
            labelled objects the crops of each label stand for a well: see `cytolake.catalog.labelled_units`.
        mean_of: What counts once: each crop, each well (the mean of well means), or each guide (the mean of guide
            means, each the mean of well means). A well's own vector is always the mean of its crops.
        within: More columns of `wells` to keep apart, such as `("batch",)`.
        curation_id: Only crops that this curation kept too, such as one with newer QC.
        progress: Told the parts summed and to sum.

    Returns:
        The level's columns and those of `within`, `n_crops`, `n_wells` and `vector` (D float32), in the order of the
        columns.

    Raises:
        ValueError: A level, mean or column of another name; a representation without rows, vectors that are not of its
            width or not finite, a well that is not in `wells`, a curation that is not there or kept none of the crops.
    """
    if level not in COLUMNS or mean_of not in get_args(MeanOf):
        raise ValueError(
            f"level {level!r} and mean_of {mean_of!r}: expected a level of {', '.join(COLUMNS)}, and a mean of "
            f"{', '.join(get_args(MeanOf))}."
        )
    if mean_of == "guides" and level != "perturbation":
        raise ValueError(f"mean_of 'guides' for level {level!r}: only a perturbation has several guides. Take wells.")
    columns = list(dict.fromkeys([*COLUMNS[level], *within]))
    catalog = pinned(catalog)
    representation = known_representation(catalog, representation_id)
    if curation_id and not catalog.table("curation_runs", where=f"curation_id = '{checked_id(curation_id)}'").num_rows:
        raise ValueError(f"curation {curation_id}: not in the table curation_runs. Run jobs/curate.py first.")
    if _has_wells_alone(catalog, representation):
        if curation_id:
            raise without_rows(representation, "embeddings")
        summed = _sums_of_profiles(catalog, representation_id)
    else:
        summed = well_sums(catalog, [representation_id], curation_id=curation_id, by_label=True, progress=progress)[0]
    if summed.sums.shape[1] != representation["dim"]:
        raise _wrong_dim(representation_id, summed.sums.shape[1], representation["dim"])
    wells = _wells(catalog, summed.wells, [*columns, "guide"])
    means, of_level = summed.means, np.ones(len(summed.wells), dtype=bool)
    if level != "well":
        of_level = np.asarray([bool(name) for name in wells[level]])
    rows = np.flatnonzero(of_level)
    keys, group = _groups([wells[name] for name in columns], rows)
    n_groups = len(keys)
    n_crops = np.bincount(group, weights=summed.counts[rows], minlength=n_groups).astype(np.int64)
    if mean_of == "crops":
        vectors_GD = _sum_by(group, summed.sums[rows], n_groups) / n_crops[:, None]
    elif mean_of == "wells":
        vectors_GD = _mean_by(group, means[rows], n_groups)
    else:
        guides, of_guide = _groups([wells[name] for name in dict.fromkeys([*columns, "guide"])], rows)
        first = np.unique(of_guide, return_index=True)[1]
        vectors_GD = _mean_by(group[first], _mean_by(of_guide, means[rows], len(guides)), n_groups)
    fields = {name: pa.array([key[i] for key in keys]) for i, name in enumerate(columns)}
    return pa.table(
        {
            **fields,
            "n_crops": n_crops,
            "n_wells": np.bincount(group, minlength=n_groups).astype(np.int32),
            "vector": vectors_column(vectors_GD.astype(np.float32)),
        }
    )


def append_profiles(catalog: Catalog, representation_ids: Sequence[str]) -> bool:
    """Write the means of wells, and of groups of labelled objects, of representations whose embeddings are whole.

    One commit for as many representations as fit into `SUMS_BYTES`, usually all. What is there is not read again.

    Returns:
        False where all had been written before.

    Raises:
        ValueError: A representation without embeddings, or with vectors that differ in length or are not finite.
    """
    there = catalog.table("profiles", columns=["representation_id"], where=_among(representation_ids))
    done = set(pc.unique(there["representation_id"]).to_pylist())
    ids = list(dict.fromkeys(representation_ids))
    is_new = False
    source = pinned(catalog)
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
    source = pinned(catalog)
    groups = pc.unique(labelled_units(source, ()).group_of_crop[UNIT]).to_pylist()
    if not groups or catalog.pinned is not None:
        return False
    digest = content_id(*sorted(groups))
    transactions = {each: f"profiles/groups/{each}/{digest}" for each in dict.fromkeys(representation_ids)}
    done = catalog.committed("profiles", transactions.values())
    embeddings = source.dataset("embeddings")
    todo = [each for each, name in transactions.items() if name not in done]
    is_new = False
    for some in _that_fit(source, [each for each in todo if next(stored_rows(embeddings, each), None) is not None]):
        for each, sums in zip(some, well_sums(source, some, by_label=True), strict=True):
            there = catalog.table("profiles", columns=["well_id"], where=_among([each]))["well_id"]
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
    curation_id: str = "",
    by_label: bool = False,
    progress: Progress | None = None,
) -> list[WellSums]:
    """Sums of the crops of each well, for each representation.

    Args:
        catalog: Pinned, so that all tasks read the same rows.
        representation_ids: Whose embeddings.
        curation_id: Only crops that it kept; empty means all.
        by_label: In wells with labelled objects apart for each group, and for the crops that are of none.
        progress: Told the parts summed and to sum.

    Raises:
        ValueError: A representation without (such) rows, or vectors that differ in length or are not finite.
    """
    embeddings = catalog.dataset("embeddings")
    tasks, n_parts_of = [], []
    n_bytes = 0
    for size in _sizes(catalog, embeddings, representation_ids):
        n_bytes += size.vectors_bytes
        n_parts = min(MOST_PARTS, size.vectors_bytes // BYTES_FOR_TASKS, SUMS_BYTES // max(1, size.sums_bytes))
        n_parts_of.append(max(1, n_parts))
        tasks += [
            (catalog, size.representation_id, part, n_parts_of[-1], curation_id, by_label)
            for part in range(max(1, n_parts))
        ]
    if n_bytes < BYTES_FOR_TASKS:
        parts = [sum_part(*task, embeddings) for task in tasks]
    else:
        parts = run_tasks(sum_part, tasks, len(tasks), "parts summed", progress)
    results = []
    for representation_id, n_parts in zip(representation_ids, n_parts_of, strict=True):
        summed = _merged(representation_id, parts[:n_parts])
        del parts[:n_parts]
        if not summed.wells:
            raise ValueError(
                f"representation {representation_id}: curation {curation_id} kept none of its crops. Name a curation "
                "of the same plates."
            )
        results.append(summed)
    return results


def sum_part(
    catalog: Catalog,
    representation_id: str,
    part: int,
    n_parts: int,
    curation_id: str,
    by_label: bool = False,
    embeddings: ds.Dataset | None = None,
) -> WellSums:
    """Sums over every `n_parts`-th row group of a representation, from the row group `part`; one task."""
    kept = None
    if curation_id:
        where = f"curation_id = '{checked_id(curation_id)}' AND is_kept"
        ids = catalog.table("curations", columns=["crop_id"], where=where)["crop_id"]
        kept = frozenset(ids.to_pylist())  # Arrow would build its own set again for each batch
    units = labelled_units(catalog, ()) if by_label else None
    place: dict[str, int] = {}
    plates: list[str] = []
    sums = np.zeros((0, 0))
    counts = np.zeros(0, dtype=np.int64)
    dataset = embeddings if embeddings is not None else catalog.dataset("embeddings")
    for rows in stored_rows(dataset, representation_id, part, n_parts):
        if kept is not None:
            rows = rows.filter(pa.array([crop_id in kept for crop_id in rows["crop_id"].to_pylist()]))
            if rows.num_rows == 0:
                continue
        vectors_ND = vectors_of(rows, representation_id)
        if place and vectors_ND.shape[1] != sums.shape[1]:
            raise _wrong_width(representation_id, {vectors_ND.shape[1], sums.shape[1]})
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
        sums[where_to] += _sum_by(of_crop, vectors_ND, len(names))
        counts[where_to] += np.bincount(of_crop, minlength=len(names))
    order = sorted(place, key=place.__getitem__)
    return _sorted(order, plates, sums[: len(order)], counts[: len(order)])


def well_means(vectors: NDArray[np.float32], wells: Sequence[str]) -> tuple[list[str], NDArray[np.float32], list[int]]:
    """Mean vector of each well.

    Args:
        vectors: (N, D), one for each crop.
        wells: (N,) well of each crop.

    Returns:
        Wells sorted by name, their (W, D) means, and how many crops each has.
    """
    names, of_crop, counts = np.unique(np.asarray(wells), return_inverse=True, return_counts=True)
    return names.tolist(), _mean_by(of_crop, vectors, len(names)).astype(np.float32), counts.tolist()


def stored_rows(
    dataset: ds.Dataset,
    representation_id: str,
    part: int = 0,
    n_parts: int = 1,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Rows of one representation as they are stored, at most `ROWS_AT_ONCE` at a time.

    Args:
        dataset: The table `embeddings` or `profiles`, of a pinned catalog where several reads must fit together.
        representation_id: Whose.
        part: Of the row groups 0, 1, 2, ... the numbers part, part + n_parts, part + 2 n_parts, ...
        n_parts: 1 gives all.
        columns: All by default.
    """
    groups = [group for file in stored_files(dataset, representation_id) for group in file.split_by_row_group()]
    yield from rows_of_groups(dataset, representation_id, groups[part::n_parts], columns)


def stored_files(dataset: ds.Dataset, representation_id: str) -> list[ds.ParquetFileFragment]:
    """Parquet files with rows of one representation, in the order of their paths."""
    condition = pc.field("representation_id") == checked_id(representation_id)
    return sorted(dataset.get_fragments(filter=condition), key=lambda file: str(file.path))


def rows_of_groups(
    dataset: ds.Dataset,
    representation_id: str,
    groups: Iterable[ds.ParquetFileFragment],
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Rows of one representation in row groups of its files, at most `ROWS_AT_ONCE` at a time."""
    condition = pc.field("representation_id") == checked_id(representation_id)
    for group in groups:
        # No read-ahead: by default it holds 16 batches.
        for batch in group.to_batches(
            schema=dataset.schema, columns=columns, filter=condition, batch_size=ROWS_AT_ONCE, batch_readahead=0,
            fragment_readahead=0, use_threads=False,
        ):  # fmt: skip
            if batch.num_rows:
                yield pa.Table.from_batches([batch])


def vectors_of(rows: pa.Table, representation_id: str, dim: int | None = None) -> NDArray[np.float32]:
    """(N, D) vectors of rows of `embeddings` or `profiles`, which must all be of this one representation.

    Args:
        rows: As they are stored.
        representation_id: Whose.
        dim: D, where it is known.

    Raises:
        ValueError: Rows of another representation, vectors of several lengths or another than D, or values that are
            not finite.
    """
    found = pc.unique(rows["representation_id"]).to_pylist()
    if set(found) - {representation_id}:
        raise ValueError(
            f"rows of the representations {', '.join(map(str, found[:4]))} in one matrix, expected "
            f"{representation_id} alone: vectors of two models or blocks cannot be compared. Read one at a time."
        )
    name = "profile" if "profile" in rows.column_names else "embedding"
    lists = rows[name].combine_chunks()
    lengths = pc.list_value_length(lists)
    ends = pc.min_max(lengths).as_py()
    if lists.null_count or ends["min"] != ends["max"]:
        raise _wrong_width(representation_id, set(pc.unique(lengths).to_pylist()))
    values = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    matrix = values.reshape(len(lists), -1)
    if dim is not None and matrix.shape[1] != dim:
        raise _wrong_dim(representation_id, matrix.shape[1], dim)
    if not np.isfinite(values).all():
        key = "well_id" if name == "profile" else "crop_id"
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        some = ", ".join(rows[key].take(bad[:5]).to_pylist())
        raise ValueError(
            f"representation {representation_id}: vectors that are not finite, such as those of {key} {some}. Check "
            "the loss curve of the encoder's run, train again and embed again."
        )
    return matrix


def known_representation(catalog: Catalog, representation_id: str) -> dict[str, Any]:
    """Its row of `representations`.

    Raises:
        ValueError: There is none.
    """
    rows = catalog.table("representations", where=f"representation_id = '{checked_id(representation_id)}'").to_pylist()
    if not rows:
        some = catalog.table("representations", columns=["representation_id"])["representation_id"].to_pylist()
        raise ValueError(
            f"representation {representation_id}: not in the table representations, which has {len(some)}"
            f"{': ' if some else ''}{', '.join(some[:5])}. Take an id from there, or run jobs/embed.py."
        )
    return dict(rows[0])


def without_rows(representation: Mapping[str, Any], table: str) -> ValueError:
    """The error of a representation that has no rows in `embeddings` or `profiles`."""
    remedy = "Run jobs/embed.py, or import it."
    if representation["kind"] == ALIGNED and table == "embeddings":
        remedy = (
            "It was aligned at the level of wells: take those, or align representation "
            f"{representation['parent_id']} at the level of crops."
        )
    return ValueError(
        f"representation {representation['representation_id']} has no rows in the table {table}. {remedy}"
    )


def pinned(catalog: Catalog) -> Catalog:
    """The catalog at its present versions, so that everything read from it fits together."""
    return catalog.at(catalog.versions()) if catalog.pinned is None else catalog


def checked_id(identity: str) -> str:
    """The id, which may go into a query. Raises ValueError where it holds more than letters and digits."""
    if not identity.isalnum():
        raise ValueError(f"{identity!r} is no id, expected letters and digits. Take it from the catalog's tables.")
    return identity


def vectors_column(matrix: NDArray[np.float32]) -> pa.ListArray:
    """(N, D) as N lists."""
    offsets = pa.array(np.arange(len(matrix) + 1, dtype=np.int64) * matrix.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).ravel()))


@dataclass(frozen=True, slots=True)
class _Size:
    """How much there is of a representation."""

    representation_id: str
    vectors_bytes: int
    """float32, of all crops."""
    sums_bytes: int
    """float64, of as many wells as there can be."""


def _has_wells_alone(catalog: Catalog, representation: Mapping[str, Any]) -> bool:
    """It was aligned at the level of wells."""
    if representation["kind"] != ALIGNED:
        return False
    return next(stored_rows(catalog.dataset("embeddings"), representation["representation_id"]), None) is None


def _sums_of_profiles(catalog: Catalog, representation_id: str) -> WellSums:
    """What the sums over crops would be, from the means of wells; of wells with labelled objects, of their groups."""
    parts = list(stored_rows(catalog.dataset("profiles"), representation_id))
    units = labelled_units(catalog, ())
    if units.plates_with_objects:
        whole = units.whole[UNIT].combine_chunks()
        parts = [rows.filter(pc.is_in(rows["well_id"], value_set=whole)) for rows in parts]
        parts = [rows for rows in parts if rows.num_rows]
    means_WD = np.concatenate([vectors_of(rows, representation_id) for rows in parts])
    stored = pa.concat_tables(parts)
    counts = np.asarray(stored["n_crops"].to_numpy(), dtype=np.int64)
    wells, plates = stored["well_id"].to_pylist(), stored["plate_id"].to_pylist()
    return _sorted(wells, plates, means_WD.astype(np.float64) * counts[:, None], counts)


def _sizes(catalog: Catalog, embeddings: ds.Dataset, representation_ids: Sequence[str]) -> Iterator[_Size]:
    """Raises ValueError for a representation without rows."""
    n_wells = catalog.dataset("wells").count_rows()
    for each in representation_ids:
        first = next(stored_rows(embeddings, each), None)
        if first is None:
            raise ValueError(
                f"representation {each} has no rows in the table embeddings. Run jobs/embed.py, or import it."
            )
        dim = vectors_of(first.slice(0, 1), each).shape[1]
        n_rows = int(embeddings.count_rows(filter=pc.field("representation_id") == each))
        yield _Size(each, 4 * n_rows * dim, 8 * min(n_rows, n_wells or n_rows) * dim)


def _that_fit(catalog: Catalog, representation_ids: Sequence[str]) -> Iterator[list[str]]:
    """Groups of representations, in order, whose sums fit into `SUMS_BYTES`."""
    group: list[str] = []
    n_bytes = 0
    for size in _sizes(catalog, catalog.dataset("embeddings"), representation_ids):
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
        return parts[0] if parts else WellSums((), (), np.zeros((0, 0)), np.zeros(0, np.int64))
    if len({part.sums.shape[1] for part in parts}) > 1:
        raise _wrong_width(representation_id, {part.sums.shape[1] for part in parts})
    plate_of = {well: plate for part in parts for well, plate in zip(part.wells, part.plates, strict=True)}
    wells = sorted(plate_of)
    sums = np.zeros((len(wells), parts[0].sums.shape[1]))
    counts = np.zeros(len(wells), dtype=np.int64)
    for part in parts:
        place = np.searchsorted(wells, part.wells)
        sums[place] += part.sums
        counts[place] += part.counts
    return WellSums(tuple(wells), tuple(plate_of[well] for well in wells), sums, counts)


def _sorted(
    wells: Sequence[str], plates: Sequence[str], sums: NDArray[np.float64], counts: NDArray[np.int64]
) -> WellSums:
    order = sorted(range(len(wells)), key=wells.__getitem__)
    return WellSums(tuple(wells[i] for i in order), tuple(plates[i] for i in order), sums[order], counts[order])


def _wells(catalog: Catalog, well_ids: Sequence[str], columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of `wells`, in the order of the ids of wells and groups; a text that is null is empty."""
    names = list(dict.fromkeys(columns))
    there = labelled_units(catalog, names).rows
    place = pc.index_in(pa.array(well_ids, pa.string()), value_set=there[UNIT].combine_chunks())
    if place.null_count:
        some = [well for well, found in zip(well_ids, place.to_pylist(), strict=True) if found is None]
        raise ValueError(
            f"{len(some)} of {len(well_ids)} wells of the embeddings are not in the table wells, such as "
            f"{', '.join(some[:3])}. Ingest their plates again."
        )
    taken = there.take(place)
    return {
        name: [
            ("" if value is None and pa.types.is_string(taken[name].type) else value)
            for value in taken[name].to_pylist()
        ]
        for name in names
    }


def _groups(columns: Sequence[Sequence[Any]], rows: NDArray[np.intp]) -> tuple[list[tuple[Any, ...]], NDArray[np.intp]]:
    """The different rows of columns, sorted, and which of them each row is."""
    of_row = [tuple(column[row] for column in columns) for row in rows.tolist()]
    keys = sorted(set(of_row), key=lambda key: tuple((value is None, value) for value in key))
    number = {key: i for i, key in enumerate(keys)}
    return keys, np.asarray([number[key] for key in of_row], dtype=np.intp)


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.intp]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), np.asarray(encoded.indices.to_numpy(), dtype=np.intp)


def _sum_by(group_N: NDArray[np.intp], values_ND: NDArray[Any], n_groups: int) -> NDArray[np.float64]:
    """(G, D) float64 sums of rows by group."""
    sums = np.zeros((n_groups, values_ND.shape[1]))
    if len(group_N) == 0:
        return sums
    order = np.argsort(group_N, kind="stable")
    present, starts = np.unique(group_N[order], return_index=True)
    sums[present] = np.add.reduceat(values_ND[order].astype(np.float64), starts, axis=0)
    return sums


def _mean_by(group_N: NDArray[np.intp], values_ND: NDArray[Any], n_groups: int) -> NDArray[np.float64]:
    return _sum_by(group_N, values_ND, n_groups) / np.bincount(group_N, minlength=n_groups)[:, None]


def _wrong_width(representation_id: str, widths: set[Any]) -> ValueError:
    found = ", ".join("null" if width is None else str(width) for width in sorted(widths, key=str))
    return ValueError(
        f"representation {representation_id}: vectors of {found} values, expected one length. The rows were not "
        "written by one embedding job: embed the pack again under a new model."
    )


def _wrong_dim(representation_id: str, found: int, wanted: int) -> ValueError:
    return ValueError(
        f"representation {representation_id}: vectors of {found} values, expected {wanted} as in the table "
        "representations. The rows are another model's: embed the pack again under a new model."
    )


def _among(representation_ids: Sequence[str]) -> str:
    return " or ".join(f"representation_id = '{checked_id(each)}'" for each in representation_ids) or "false"
