"""Stored embeddings: the representation that a name stands for, and its vectors of some crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog

CHAMPION = "champion"
PIXEL_STATISTICS = "pixel_statistics"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredVectors:
    """Vectors of requested crops; crops without a vector are left out."""

    rows: NDArray[np.int64]
    """(N,) positions among the requested crops, ascending."""
    vectors: NDArray[np.float32]
    """(N, D), in that order."""


def find_representation(catalog: Catalog, name: str, *, of: str = "", not_of: str = "") -> str:
    """Id of the representation that a name stands for.

    Args:
        catalog: The catalog with representations and curations.
        name: An id; `champion`, the promoted one; or `pixel_statistics`, the newest of that kind.
        of: Only representations of packs of this curation.
        not_of: No representation of packs of this curation, unless given by its id: a curation that read the newest
            embeddings of its own crops would keep fewer crops in every run.

    Raises:
        CatalogError: There is none. Names the job that makes one, and the existing representations.
    """
    if name == CHAMPION:
        from cytolake.tracking import AliasNotFoundError, TrackingConfig, resolve_alias  # MLflow, slow to import

        try:
            name = resolve_alias(TrackingConfig().at(catalog.root)).representation_id
        except AliasNotFoundError as error:
            raise CatalogError(f"representation {CHAMPION}: {error}") from error
    known = catalog.sql(
        "SELECT representation_id, kind, block, pooling, r.created_at, coalesce(k.curation, '') AS curation "
        "FROM representations r LEFT JOIN (SELECT DISTINCT curation_id, curation FROM curations) k USING (curation_id) "
        "ORDER BY r.created_at, representation_id"
    ).to_pylist()
    for row in known:
        if row["representation_id"] == name:
            return name
    of_kind = [row for row in known if name == PIXEL_STATISTICS == row["kind"] and row["pooling"] == "all"]
    fitting = [row for row in of_kind if row["curation"] == of or (not of and row["curation"] != not_of)]
    if fitting:
        return str(fitting[-1]["representation_id"])
    listed = "; ".join(
        f"{row['representation_id']} ({row['kind']}, block {row['block']} {row['pooling']}, curation {row['curation']})"
        for row in known[-8:]
    )
    whose = f" of curation {of}" if of else f" of a curation other than {not_of}" if not_of and of_kind else ""
    raise CatalogError(
        f"representation {name}{whose}: not in the table representations. There are: {listed or 'none'}. Expected an "
        f"id, {CHAMPION} or {PIXEL_STATISTICS}. Curate with a curation that needs no embeddings, and run jobs/embed.py "
        "on its pack first."
    )


def stored_vectors(catalog: Catalog, representation_id: str, crop_ids: pa.ChunkedArray) -> StoredVectors:
    """Vectors of crops, all in memory: 1.5 GB for a million of 384 values.

    Raises:
        CatalogError: None of the crops has one.
    """
    stored = catalog.table(
        "embeddings", columns=["crop_id", "embedding"], where=f"representation_id = '{representation_id}'"
    )
    places = pc.index_in(crop_ids, value_set=stored.column("crop_id").combine_chunks())
    has_vector = np.asarray(pc.is_valid(places).to_numpy(zero_copy_only=False), np.bool_)
    if not has_vector.any():
        raise CatalogError(
            f"representation {representation_id}: 0 of {len(crop_ids)} crops have a vector, {stored.num_rows} others "
            "have. Name a representation of a pack with these crops."
        )
    rows = np.flatnonzero(has_vector)
    lists = stored.column("embedding").take(places.drop_null()).combine_chunks()
    values = np.asarray(lists.flatten().to_numpy(zero_copy_only=False), np.float32)
    return StoredVectors(rows=rows, vectors=values.reshape(len(rows), -1))
