"""The search index of one representation: finds the stored crops nearest to a vector.

Shapes: N crops, D width of the vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from cytolake.qc.newest import QC_COLUMNS
from cytolake.serving.problems import ServingError
from cytolake.serving.search.approximate import Cells, nearest_approximately
from cytolake.serving.search.nearest import Rows, nearest
from cytolake.serving.search.sites import Sites
from cytolake.serving.where import compile_where

NO_ROWS: Rows = np.zeros(0, dtype=np.int64)

RESULT_COLUMNS = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "control",
    *QC_COLUMNS,
)  # fmt: skip
"""Columns of every hit: those of crops and wells, and the QC verdict of the site."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropIndex:
    """Vectors and their crops, at one version of the tables. Immutable."""

    representation_id: str
    versions: Mapping[str, int]
    """Delta versions of `TABLES` that were read."""
    unit_vectors: NDArray[np.float32]
    """(N, D) embeddings divided by their length; a vector of zeros stays zero, with similarity 0 to all. Where the disk
    could take one, a memory-mapped file that all processes of the machine share."""
    crops: pa.Table
    """N rows in the order of `unit_vectors`: the columns of crops, then those of wells that are not among them, then
    `qc_pass` and `qc_reasons`."""
    sites: Sites | None = None
    """Columns that all crops of a site share, for conditions on these alone; None where each crop is compared."""
    cells: Cells | None = None
    """Cells of the approximate search; None where every search is exact."""

    def search(
        self,
        vector: NDArray[np.floating[Any]],
        k: int,
        where: str = "",
        leave_out: Rows = NO_ROWS,
        *,
        approximate: bool = False,
    ) -> list[dict[str, Any]]:
        """The k most similar crops, best first; fewer where fewer pass the condition.

        Args:
            vector: (D,), of any length above 0.
            where: SQL condition over `crops`, see `compile_where`; "" lets all crops pass. It is applied before the
                ranking, so there are k hits whenever k crops pass.
            leave_out: Rows that are no hits, such as the query itself.
            approximate: Compare only part of the crops where there are very many. Similarities are exact; hits may be
                missing. Exact where the index has no cells.

        Raises:
            ServingError: 422, a vector of another width or of zeros, or a condition that is not allowed.
        """
        unit_1D = self._unit_vector(vector)[None]
        rows = self._rows_where(where)
        if len(leave_out):
            may_answer = np.full(self.crops.num_rows, rows is None)
            if rows is not None:
                may_answer[rows] = True
            may_answer[leave_out] = False
            rows = np.flatnonzero(may_answer)
        if approximate and self.cells is not None:
            ((best, similarities),) = nearest_approximately(self.cells, self.unit_vectors, unit_1D, k, rows)
        else:
            ((best, similarities),) = nearest(self.unit_vectors, unit_1D, k, rows)
        hits = self.crops.select(list(RESULT_COLUMNS)).take(pa.array(best)).to_pylist()
        return [hit | {"similarity": similarity} for hit, similarity in zip(hits, similarities.tolist(), strict=True)]

    def mean_vector(self, rows: Rows) -> NDArray[np.float32]:
        """(D,) mean of the unit vectors of some rows, read in parts: a control may have a third of all crops."""
        total_D = np.zeros(self.unit_vectors.shape[1])
        for start in range(0, len(rows), 65_536):
            total_D += self.unit_vectors[rows[start : start + 65_536]].sum(axis=0, dtype=np.float64)
        return np.asarray(total_D / max(1, len(rows)), np.float32)

    def rows_of_perturbation(self, perturbation: str) -> Rows:
        """Rows of a perturbation's crops on all screens and plates, increasing.

        Raises:
            ServingError: 404, no crop with an embedding has it.
        """
        if self.sites is not None:
            rows = self.sites.rows(pc.field("perturbation") == perturbation)
        else:
            is_of_it = pc.equal(self.crops["perturbation"], perturbation).fill_null(False)
            rows = np.flatnonzero(is_of_it.to_numpy())
        if not len(rows):
            raise ServingError(
                status=404,
                detail=f"no crop with an embedding has the perturbation {perturbation!r}. Take its name from "
                "the column perturbation of the table wells.",
            )
        return rows

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
                "from the crops table that curation kept; a new plate must be embedded first (`cytolake embed`).",
            )
        return int(row)

    def rows_of(self, crop_ids: Sequence[str]) -> list[int]:
        """Rows of many crops, in their order, with one pass over the table.

        Raises:
            ServingError: 404, one of the crops has no embedding in this representation.
        """
        found = pc.index_in(pa.array(crop_ids, pa.string()), value_set=self.crops["crop_id"].combine_chunks())
        return [
            self.row_of(crop_id) if row is None else row
            for crop_id, row in zip(crop_ids, found.to_pylist(), strict=True)
        ]

    def _rows_where(self, where: str) -> Rows | None:
        """Rows that pass the condition, increasing; None for all."""
        if not where.strip():
            return None
        if self.sites is not None:
            try:
                return self.sites.rows(compile_where(where, self.sites.table.schema))
            except ServingError:
                pass  # the condition names a column of single crops, or an unknown one
        passing = compile_where(where, self.crops.schema)
        numbered = ds.dataset(self.crops.append_column("__row", pa.array(np.arange(self.crops.num_rows))))
        # A dataset reads only the columns of the condition; Table.filter would copy all.
        found = numbered.to_table(columns=["__row"], filter=passing)["__row"].to_numpy()
        return np.sort(np.asarray(found, np.int64))

    def _unit_vector(self, vector: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        dim = self.unit_vectors.shape[1]
        if vector.shape != (dim,):
            raise ServingError(
                status=422,
                detail=f"the vector has {vector.size} values, representation {self.representation_id} has {dim}. "
                "Search with a vector that this service embedded.",
            )
        largest = float(np.abs(vector).max())
        if not 0 < largest < float("inf"):
            raise ServingError(status=422, detail="the vector has no direction: it is zero, or not finite.")
        scaled = vector.astype(np.float64) / largest  # so that squares neither overflow nor underflow
        return np.asarray(scaled / np.linalg.norm(scaled), dtype=np.float32)
