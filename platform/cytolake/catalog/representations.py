"""Finds a representation by its id or name, and reads its vectors of crops and wells.

Vectors of crops are rows of the table `embeddings`, vectors of wells rows of `profiles`; both are partitioned by
representation, so reading one touches no file of another. Vectors are streamed: memory holds the result and a few
batches of rows.

Shapes: N crops or wells, D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import whole_id

if TYPE_CHECKING:
    import pyarrow.dataset as ds

    from cytolake.catalog.tables import Catalog

ALIGNED = "aligned"
"""Kind of the representations that an alignment on negative controls wrote."""
EXTERNAL = "external"
"""Kind of the representations that were imported: vectors of another tool."""
PIXEL_STATISTICS = "pixel_statistics"
"""Kind and name of the baseline without an encoder: statistics of each channel's pixels."""
CHAMPION = "champion"
"""Alias of the promoted representation in the MLflow registry that the catalog's models are promoted to."""

Level: TypeAlias = Literal["crop", "well"]
TABLES: dict[Level, tuple[str, str, str]] = {
    "crop": ("embeddings", "embedding", "crop_id"),
    "well": ("profiles", "profile", "well_id"),
}
"""Table of each level, its column of vectors and its column of ids."""

ROWS_AT_ONCE = 4096  # a row group of the catalog's tables
_BATCHES_AHEAD = 4  # keeps the CPUs busy; Arrow's own 16 hold four times the memory and are no faster (measured)
_LISTED = 8


def find_representation(catalog: Catalog, name: str, *, of: str = "", not_of: str = "") -> dict[str, Any]:
    """Row of `representations` of the representation that a name means.

    Args:
        name: An id, or its beginning; the name under which an external one was imported; `champion`, the promoted
            one; or `pixel_statistics`, the newest of that kind.
        of: `pixel_statistics` of packs of the curation of this name only.
        not_of: No `pixel_statistics` of packs of the curation of this name. A curation that reads the newest
            embeddings of what it kept itself would keep less each time it is run.

    Raises:
        CatalogError: There is none, or several external ones of this name, or several whose ids begin so. Lists those
            that are there.
    """
    if name == CHAMPION:
        name = _promoted(catalog)
    if row := stored_representation(catalog, name):
        return row
    known = catalog.table("representations").sort_by(
        [("created_at", "ascending"), ("representation_id", "ascending")]
    ).to_pylist()  # fmt: skip
    external = [row for row in known if row["kind"] == EXTERNAL and row["architecture"] == name]
    if len(external) > 1:
        raise CatalogError(
            f"representation {name}: {len(external)} external representations have this name, expected one: "
            f"{', '.join(row['representation_id'] for row in external)}. Give one of these ids."
        )
    if external:
        return dict(external[0])
    statistics = [row for row in known if name == PIXEL_STATISTICS == row["kind"] and row["pooling"] == "all"]
    fitting = statistics
    if statistics and (of or not_of):
        there = catalog.sql("SELECT DISTINCT curation_id FROM curations WHERE curation = ?", parameters=[of or not_of])
        ids = set(there["curation_id"].to_pylist())
        fitting = [row for row in statistics if (row["curation_id"] in ids) == bool(of)]
    if fitting:
        return dict(fitting[-1])
    if identity := whole_id(name, (row["representation_id"] for row in known), "representation"):
        return next(dict(row) for row in known if row["representation_id"] == identity)
    whose = f" of curation {of}" if of else f" of a curation other than {not_of}" if not_of and statistics else ""
    listed = "; ".join(
        f"{row['representation_id']} ({row['architecture'] if row['kind'] == EXTERNAL else row['kind']}, "
        f"block {row['block']} {row['pooling']}, pack {row['pack_id']})"
        for row in known[-_LISTED:]
    )
    raise CatalogError(
        f"representation {name or '(none given)'}{whose}: not in the table representations, which has {len(known)}"
        f"{f', the newest: {listed}' if known else ''}. Expected an id or its beginning, the name of an external one, "
        f"{CHAMPION} or {PIXEL_STATISTICS}. Embed a pack with `cytolake embed`, or import vectors with "
        "`cytolake import`."
    )


def stored_representation(catalog: Catalog, representation_id: str) -> dict[str, Any] | None:
    """Row of `representations` of an id; None where it is not there. One that is there is whole."""
    rows = catalog.table("representations", where="representation_id = ?", parameters=[representation_id]).to_pylist()
    return dict(rows[0]) if rows else None


def no_vectors(representation: Mapping[str, Any], level: Level) -> CatalogError:
    """The error of a representation, by its row, that has no vectors at a level."""
    remedy = "Run `cytolake embed`, or import it."
    if representation["kind"] == ALIGNED and level == "crop":
        remedy = (
            "It was aligned at the level of wells: take its profiles (level well), or align representation "
            f"{representation['parent_id']} at the level of crops."
        )
    return CatalogError(
        f"representation {representation['representation_id']} has no rows in the table {TABLES[level][0]}. {remedy}"
    )


class VectorReader:
    """Reads vectors of one level from one version of its table, for one representation after another."""

    def __init__(self, catalog: Catalog, level: Level = "crop") -> None:
        """Open the table as it is now, or as a pinned catalog has it."""
        self.level: Level = level
        self.table, self.vector, self.key = TABLES[level]
        self._files, self._visible = catalog.visible_files(self.table)
        """All files with visible rows, and the condition of the visible rows where a file has others too."""

    def count(self, representation_id: str) -> int:
        """Vectors of a representation."""
        return int(self._files.count_rows(filter=self._condition(representation_id)))

    def dim(self, representation_id: str) -> int:
        """D of its first vector; 0 where it has none."""
        first = self._files.head(
            1, columns=[self.vector], filter=self._condition(representation_id), batch_size=1, batch_readahead=0,
            fragment_readahead=0,
        )  # fmt: skip
        return len(first[self.vector][0]) if first.num_rows else 0

    def columns(self, representation_id: str, names: Sequence[str]) -> pa.Table:
        """Columns of all its rows, such as ids; in the order of `batches`."""
        return self._files.to_table(columns=list(names), filter=self._condition(representation_id))

    def batches(self, representation_id: str, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Its rows with these columns and the vector, batch by batch, read by several threads."""
        found = self._files.to_batches(
            columns=[*columns, self.vector],
            filter=self._condition(representation_id),
            batch_size=ROWS_AT_ONCE,
            batch_readahead=_BATCHES_AHEAD,
            fragment_readahead=1,
        )
        yield from (batch for batch in found if batch.num_rows)

    def rows(self, representation_id: str, part: int = 0, n_parts: int = 1) -> Iterator[pa.Table]:
        """Its rows as they are stored, at most `ROWS_AT_ONCE` at a time, by this thread alone.

        Args:
            representation_id: Whose.
            part: Of the row groups 0, 1, 2, ... the numbers part, part + n_parts, part + 2 n_parts, ...
            n_parts: 1 gives all.
        """
        groups = [group for file in self.files(representation_id) for group in file.split_by_row_group()]
        yield from self.rows_of_groups(representation_id, groups[part::n_parts])

    def files(self, representation_id: str) -> list[ds.ParquetFileFragment]:
        """Parquet files with rows of a representation, in the order of their paths."""
        fragments = self._files.get_fragments(filter=pc.field("representation_id") == representation_id)
        return sorted(fragments, key=lambda file: str(file.path))

    def rows_of_groups(self, representation_id: str, groups: Iterable[ds.ParquetFileFragment]) -> Iterator[pa.Table]:
        """Its rows in row groups of its files, at most `ROWS_AT_ONCE` at a time."""
        for group in groups:
            # No read-ahead: by default it holds 16 batches.
            for batch in group.to_batches(
                schema=self._files.schema, filter=self._condition(representation_id), batch_size=ROWS_AT_ONCE,
                batch_readahead=0, fragment_readahead=0, use_threads=False,
            ):  # fmt: skip
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])

    def places(self, representation_id: str, ids: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
        """(N,) position of each id among the rows in the order of `batches`; null for an id without a vector."""
        there = self.columns(representation_id, [self.key])[self.key].combine_chunks()
        wanted = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.string())
        found = pc.index_in(wanted, value_set=there)
        return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found

    def take(self, representation_id: str, places: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """(N, D) vectors at some positions of the order of `batches`; a position may be there twice.

        Raises:
            CatalogError: Vectors of several lengths.
        """
        order = np.argsort(places, kind="stable")
        wanted = places[order]
        matrix: NDArray[np.float32] = np.empty((0, 0), np.float32)
        start = 0
        for batch in self.batches(representation_id):
            lists = batch[self.vector]
            first, last = np.searchsorted(wanted, [start, start + len(lists)])
            vectors_ND = _matrix(lists, representation_id)
            if start == 0:
                matrix = np.empty((len(places), vectors_ND.shape[1]), np.float32)
            if vectors_ND.shape[1] != matrix.shape[1]:
                raise wrong_width(representation_id, {vectors_ND.shape[1], matrix.shape[1]})
            matrix[order[first:last]] = vectors_ND[wanted[first:last] - start]
            start += len(lists)
        return matrix

    def _condition(self, representation_id: str) -> pc.Expression:
        ours = pc.field("representation_id") == representation_id
        return ours if self._visible is None else ours & self._visible


def read_vectors(
    catalog: Catalog,
    representation_id: str,
    ids: Sequence[str] | pa.Array | pa.ChunkedArray,
    *,
    level: Level = "crop",
) -> NDArray[np.float32]:
    """(N, D) vectors of a representation in the order of the ids of crops or wells.

    Raises:
        CatalogError: An id without a vector, or vectors of several lengths.
    """
    reader = VectorReader(catalog, level)
    places = reader.places(representation_id, ids)
    if places.null_count:
        raise CatalogError(
            f"representation {representation_id}: {places.null_count} of {len(places)} {level}s have no row in the "
            f"table {reader.table}. Run `cytolake embed` again, which adds what is missing; representations of other "
            "packs have other crops."
        )
    return reader.take(representation_id, places.to_numpy())


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVectors:
    """Vectors of those of some crops that have one."""

    rows: NDArray[np.int64]
    """(N,) ascending positions among the crops."""
    vectors: NDArray[np.float32]
    """(N, D), in that order."""


def stored_vectors(catalog: Catalog, representation_id: str, crop_ids: pa.ChunkedArray) -> StoredVectors:
    """Vectors of crops, all in memory: 1.5 GB for a million of 384 values.

    Raises:
        CatalogError: None of the crops has a vector.
    """
    reader = VectorReader(catalog)
    places = reader.places(representation_id, crop_ids)
    rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64)
    if not len(rows):
        raise CatalogError(
            f"representation {representation_id}: none of {len(crop_ids)} crops has a vector, "
            f"{reader.count(representation_id)} others have. Name a representation of a pack with these crops."
        )
    return StoredVectors(rows=rows, vectors=reader.take(representation_id, places.drop_null().to_numpy()))


def vectors_of(rows: pa.Table, representation_id: str, dim: int | None = None) -> NDArray[np.float32]:
    """(N, D) vectors of rows of `embeddings` or `profiles`, which must all be of this one representation.

    Args:
        rows: As they are stored.
        representation_id: Whose.
        dim: D, where it is known.

    Raises:
        CatalogError: Rows of another representation, vectors of several lengths or another than D, or values that are
            not finite.
    """
    found = pc.unique(rows["representation_id"]).to_pylist()
    if set(found) - {representation_id}:
        raise CatalogError(
            f"rows of the representations {', '.join(map(str, found[:4]))} in one matrix, expected "
            f"{representation_id} alone: vectors of two models or blocks cannot be compared. Read one at a time."
        )
    name = "profile" if "profile" in rows.column_names else "embedding"
    matrix = _matrix(rows[name].combine_chunks(), representation_id)
    key = "well_id" if name == "profile" else "crop_id"
    return checked(matrix, representation_id, key, rows[key], dim)


def checked(
    matrix: NDArray[np.float32],
    representation_id: str,
    key: str,
    ids: pa.Array | pa.ChunkedArray,
    dim: int | None = None,
) -> NDArray[np.float32]:
    """The (N, D) matrix itself, once its width is `dim` and its values are finite.

    Raises:
        CatalogError: They are not. Names some of the `ids`, which are of the column `key`.
    """
    if dim is not None and matrix.shape[1] != dim:
        raise wrong_dim(representation_id, matrix.shape[1], dim)
    if not np.isfinite(matrix).all():
        bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
        some = ", ".join(ids.take(pa.array(bad[:5])).to_pylist())
        raise CatalogError(
            f"representation {representation_id}: vectors that are not finite, such as those of {key} {some}. Check "
            "the loss curve of the encoder's run, train again and embed again."
        )
    return matrix


def vectors_column(matrix: NDArray[np.float32]) -> pa.ListArray:
    """(N, D) as N lists."""
    offsets = pa.array(np.arange(len(matrix) + 1, dtype=np.int64) * matrix.shape[1], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).ravel()))


def wrong_width(representation_id: str, widths: set[Any]) -> CatalogError:
    """The error of vectors of several lengths, or of none (null)."""
    found = ", ".join("null" if width is None else str(width) for width in sorted(widths, key=str))
    return CatalogError(
        f"representation {representation_id}: vectors of {found} values, expected one length. The rows were not "
        "written by one embedding job: embed the pack again under a new model."
    )


def wrong_dim(representation_id: str, found: int, wanted: int) -> CatalogError:
    """The error of vectors of another length than the row of `representations` says."""
    return CatalogError(
        f"representation {representation_id}: vectors of {found} values, expected {wanted} as in the table "
        "representations. The rows are another model's: embed the pack again under a new model."
    )


def _matrix(lists: pa.ListArray, representation_id: str) -> NDArray[np.float32]:
    """(N, D) of N lists of one length."""
    lengths = pc.list_value_length(lists)
    ends = pc.min_max(lengths).as_py()
    if lists.null_count or ends["min"] != ends["max"]:
        raise wrong_width(representation_id, set(pc.unique(lengths).to_pylist()))
    values = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    return values.reshape(len(lists), -1)


def _promoted(catalog: Catalog) -> str:
    from cytolake.tracking import AliasNotFoundError, resolve_promoted  # MLflow, slow to import

    try:
        return str(resolve_promoted(catalog.root).representation_id)
    except AliasNotFoundError as error:
        raise CatalogError(f"representation {CHAMPION}: {error}") from error
