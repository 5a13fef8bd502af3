"""The nearest crops to a vector: exact cosine over the stored embeddings of one representation.

Shapes: N crops, D width of the vector.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.serving.filters import compile_filter
from cytolake.serving.problems import ServingError

NO_ROWS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
TABLES = ("embeddings", "crops", "wells", "plates")
"""What an index is read from; `plates` decides which rows of the others show."""

RESULT_COLUMNS = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "control",
)  # fmt: skip
"""Columns of crops and wells that come with every hit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropIndex:
    """Vectors and what is known about their crops, at one version of the tables. Never changed."""

    representation_id: str
    versions: Mapping[str, int]
    """Delta versions that were read, of `TABLES`."""
    unit_vectors: NDArray[np.float32]
    """(N, D) embeddings divided by their length; a vector of zeros stays one, and is like nothing."""
    crops: pa.Table
    """N rows in the order of `unit_vectors`: the columns of crops, then those of wells that crops does not have."""

    def search(
        self, vector: NDArray[np.floating[Any]], k: int, condition: str = "", leave_out: NDArray[np.int64] = NO_ROWS
    ) -> list[dict[str, Any]]:
        """The k most similar crops, best first; fewer where fewer pass the condition.

        Args:
            vector: (D,), any length above 0.
            k: How many.
            condition: SQL condition over `crops`, see `filters.compile_filter`; "" lets all pass. It is applied before
                the ranking, so k hits come back whenever k crops pass.
            leave_out: Rows that are no answer: what is asked about.

        Raises:
            ServingError: 422, a vector of another width, or of zeros; or a condition that is not understood.
        """
        unit = _unit_vector(vector, self.unit_vectors.shape[1], self.representation_id)
        rows = self._rows(condition)
        if len(leave_out):
            rows = rows[~np.isin(rows, leave_out)]
        similarity = (self.unit_vectors @ unit)[rows]  # choosing rows first would copy the vectors
        n_hits = min(k, len(rows))
        if n_hits == 0:
            return []
        best = np.argpartition(-similarity, n_hits - 1)[:n_hits]
        best = best[np.argsort(-similarity[best], kind="stable")]
        hits = self.crops.select(list(RESULT_COLUMNS)).take(pa.array(rows[best])).to_pylist()
        return [hit | {"similarity": float(value)} for hit, value in zip(hits, similarity[best], strict=True)]

    def row_of(self, crop_id: str) -> int:
        """Row of a crop.

        Raises:
            ServingError: 404, the crop has no embedding in this representation.
        """
        row = pc.index(self.crops["crop_id"], crop_id).as_py()
        if row < 0:
            raise ServingError(
                status=404,
                detail=f"crop {crop_id!r} has no embedding in representation {self.representation_id}. Take a crop id "
                "from the crops table that curation kept; a new plate must be embedded first (jobs/embed.py).",
            )
        return int(row)

    def rows_of_perturbation(self, perturbation: str) -> NDArray[np.int64]:
        """Rows of a perturbation's crops.

        Raises:
            ServingError: 404, no crop of this representation has it.
        """
        is_it = pc.equal(self.crops["perturbation"], perturbation).fill_null(False).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(is_it)
        if not len(rows):
            raise ServingError(
                status=404,
                detail=f"no crop with an embedding has the perturbation {perturbation!r}. Spell it as the column "
                "perturbation of the wells table does.",
            )
        return rows

    def _rows(self, condition: str) -> NDArray[np.int64]:
        if not condition.strip():
            return np.arange(self.crops.num_rows)
        passing = compile_filter(condition, self.crops.schema)
        numbered = self.crops.append_column("__row", pa.array(np.arange(self.crops.num_rows)))
        return np.asarray(numbered.filter(passing)["__row"].to_numpy(), dtype=np.int64)


def read_index(catalog: Catalog, representation_id: str, dim: int) -> CropIndex:
    """Read one representation's embeddings and join what the catalog knows of their crops and wells.

    Args:
        catalog: Where the tables are; read at the versions it has now.
        representation_id: Whose embeddings. None written yet gives an index without rows.
        dim: Width that every embedding must have.

    Raises:
        ValueError: An embedding of another width, or embeddings of crops that the crops table does not hold.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", representation_id):
        raise ValueError(f"representation_id {representation_id!r}: expected letters, digits, _, . and - only")
    versions = catalog.versions()
    pinned = catalog.at(versions)
    crops_table, wells = pinned.table("crops"), pinned.table("wells")
    embeddings = pinned.table(
        "embeddings", columns=["crop_id", "embedding"], where=f"representation_id = '{representation_id}'"
    )
    crop_ids = embeddings["crop_id"].combine_chunks()
    rows = pc.index_in(crop_ids, crops_table["crop_id"].combine_chunks())
    if rows.null_count:
        missing = crop_ids.filter(pc.is_null(rows))
        raise ValueError(
            f"{len(missing)} embeddings of representation {representation_id} belong to crops that the crops table "
            f"does not hold, first {missing[0]}. The catalog root mixes two catalogs; ingest and embed again."
        )
    crops = crops_table.take(rows)
    well_rows = pc.index_in(crops["well_id"].combine_chunks(), wells["well_id"].combine_chunks())
    for name in wells.schema.names:
        if name not in crops.schema.names:
            crops = crops.append_column(name, wells[name].combine_chunks().take(well_rows))
    return CropIndex(
        representation_id=representation_id,
        versions={table: versions[table] for table in TABLES if table in versions},
        unit_vectors=_unit_rows(embeddings["embedding"], dim, representation_id),
        crops=crops.combine_chunks(),
    )


def _unit_rows(column: Any, dim: int, representation_id: str) -> NDArray[np.float32]:
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(-1)
    if len(lists) and not pc.all(pc.equal(lengths, dim)).as_py():
        raise ValueError(
            f"representation {representation_id}: embeddings of {pc.min(lengths)} to {pc.max(lengths)} values in the "
            f"table, the model gives {dim}. The embeddings are another model's; embed again (jobs/embed.py)."
        )
    vectors_ND = np.asarray(lists.flatten(), dtype=np.float32).reshape(len(lists), dim)
    length_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return np.asarray(vectors_ND / np.where(length_N1 > 0, length_N1, 1), dtype=np.float32)


def _unit_vector(vector: NDArray[np.floating[Any]], dim: int, representation_id: str) -> NDArray[np.float32]:
    if vector.shape != (dim,):
        raise ServingError(
            status=422,
            detail=f"the vector has {vector.size} values, representation {representation_id} has {dim}. "
            "Search with a vector that this service embedded.",
        )
    largest = float(np.abs(vector).max())
    if not 0 < largest < float("inf"):
        raise ServingError(status=422, detail="the vector has no direction: it is zero, or not finite.")
    scaled = vector.astype(np.float64) / largest  # so that squares neither overflow nor vanish
    return np.asarray(scaled / np.linalg.norm(scaled), dtype=np.float32)
