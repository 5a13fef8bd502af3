"""Questions to the stored embeddings of one representation: which crops are nearest to a vector.

Shapes: N crops, D width of the vector, Q questions.
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
from cytolake.serving.filters import compile_filter
from cytolake.serving.problems import ServingError
from cytolake.serving.search.approximate import Cells, nearest_approximately
from cytolake.serving.search.nearest import Rows, nearest
from cytolake.serving.search.sites import Sites

NO_ROWS: Rows = np.zeros(0, dtype=np.int64)

RESULT_COLUMNS = (
    "crop_id", "screen", "plate", "well", "site", "y", "x", "size", "perturbation", "gene", "compound", "control",
    *QC_COLUMNS,
)  # fmt: skip
"""Columns of crops and wells that come with every hit, and what quality control said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CropIndex:
    """Vectors and what is known about their crops, at one version of the tables. Never changed."""

    representation_id: str
    versions: Mapping[str, int]
    """Delta versions that were read, of `TABLES`."""
    unit_vectors: NDArray[np.float32]
    """(N, D) embeddings divided by their length; a vector of zeros stays one, and is like nothing. A file in memory
    that all processes of the machine share, where the disk took one."""
    crops: pa.Table
    """N rows in the order of `unit_vectors`: the columns of crops, then those of wells that crops does not have, then
    `qc_pass` and `qc_reasons`."""
    sites: Sites | None = None
    """What the crops of a site have in common, for conditions on nothing else; None where each crop is looked at."""
    cells: Cells | None = None
    """Where an approximate search looks; None where every search is exact."""

    def search(
        self,
        vector: NDArray[np.floating[Any]],
        k: int,
        condition: str = "",
        leave_out: Rows = NO_ROWS,
        *,
        approximate: bool = False,
    ) -> list[dict[str, Any]]:
        """The k most similar crops, best first; fewer where fewer pass the condition.

        Args:
            vector: (D,), any length above 0.
            k: How many.
            condition: SQL condition over `crops`, see `filters.compile_filter`; "" lets all pass. It is applied before
                the ranking, so k hits come back whenever k crops pass.
            leave_out: Rows that are no answer: what is asked about.
            approximate: Look at part of the crops where there are very many. Similarities are exact; hits may be
                missing. Exact where the index has no cells.

        Raises:
            ServingError: 422, a vector of another width, or of zeros; or a condition that is not understood.
        """
        unit_1D = self._unit_vector(vector)[None]
        rows = self._rows(condition)
        if len(leave_out):
            may_answer = np.full(self.crops.num_rows, rows is None)
            if rows is not None:
                may_answer[rows] = True
            may_answer[leave_out] = False
            rows = np.flatnonzero(may_answer)
        return self._hits(unit_1D, k, rows, approximate)[0]

    def search_many(
        self, vectors: NDArray[np.floating[Any]], k: int, condition: str = "", *, approximate: bool = False
    ) -> list[list[dict[str, Any]]]:
        """`search` for each of many vectors; 16 questions take the time of 2 or 3.

        Args:
            vectors: (Q, D).
            k: How many for each.
            condition: As in `search`; applied once.
            approximate: As in `search`.

        Raises:
            ServingError: As `search`, naming the vector.
        """
        if vectors.ndim != 2:
            raise ServingError(status=422, detail=f"the vectors have shape {vectors.shape}, expected (questions, D).")
        units = [self._unit_vector(vector, f"vector {number}") for number, vector in enumerate(vectors)]
        return self._hits(np.stack(units), k, self._rows(condition), approximate) if units else []

    def mean_vector(self, rows: Rows) -> NDArray[np.float32]:
        """(D,) mean of some unit vectors, which are read part by part: a control may hold a third of all crops."""
        total_D = np.zeros(self.unit_vectors.shape[1])
        for start in range(0, len(rows), 65_536):
            total_D += self.unit_vectors[rows[start : start + 65_536]].sum(axis=0, dtype=np.float64)
        return np.asarray(total_D / max(1, len(rows)), np.float32)

    def rows_of_perturbation(self, perturbation: str) -> Rows:
        """Rows of a perturbation's crops, increasing; of all screens and plates.

        Raises:
            ServingError: 404, no crop of this representation has it.
        """
        if self.sites is not None:
            rows = self.sites.rows(pc.field("perturbation") == perturbation)
        else:
            is_of_it = pc.equal(self.crops["perturbation"], perturbation).fill_null(False)
            rows = np.flatnonzero(is_of_it.to_numpy())
        if not len(rows):
            raise ServingError(
                status=404,
                detail=f"no crop with an embedding has the perturbation {perturbation!r}. Spell it as the column "
                "perturbation of the wells table does.",
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
                "from the crops table that curation kept; a new plate must be embedded first (jobs/embed.py).",
            )
        return int(row)

    def rows_of(self, crop_ids: Sequence[str]) -> list[int]:
        """Rows of many crops, in their order: one pass over the table for all of them.

        Raises:
            ServingError: 404, one of the crops has no embedding in this representation.
        """
        found = pc.index_in(pa.array(crop_ids, pa.string()), value_set=self.crops["crop_id"].combine_chunks())
        return [
            self.row_of(crop_id) if row is None else row
            for crop_id, row in zip(crop_ids, found.to_pylist(), strict=True)
        ]

    def _hits(
        self, units_QD: NDArray[np.float32], k: int, rows: Rows | None, approximate: bool
    ) -> list[list[dict[str, Any]]]:
        if approximate and self.cells is not None:
            found = nearest_approximately(self.cells, self.unit_vectors, units_QD, k, rows)
        else:
            found = nearest(self.unit_vectors, units_QD, k, rows)
        told = self.crops.select(list(RESULT_COLUMNS))
        return [
            [
                hit | {"similarity": similarity}
                for hit, similarity in zip(told.take(pa.array(best)).to_pylist(), similarities.tolist(), strict=True)
            ]
            for best, similarities in found
        ]

    def _rows(self, condition: str) -> Rows | None:
        """Rows that pass, increasing; None for all."""
        if not condition.strip():
            return None
        if self.sites is not None:
            try:
                return self.sites.rows(compile_filter(condition, self.sites.table.schema))
            except ServingError:
                pass  # it names a column of single crops, or nothing that there is
        passing = compile_filter(condition, self.crops.schema)
        numbered = ds.dataset(self.crops.append_column("__row", pa.array(np.arange(self.crops.num_rows))))
        # A dataset reads the columns of the condition; Table.filter would copy the others too.
        found = numbered.to_table(columns=["__row"], filter=passing)["__row"].to_numpy()
        return np.sort(np.asarray(found, np.int64))

    def _unit_vector(self, vector: NDArray[np.floating[Any]], name: str = "the vector") -> NDArray[np.float32]:
        dim = self.unit_vectors.shape[1]
        if vector.shape != (dim,):
            raise ServingError(
                status=422,
                detail=f"{name} has {vector.size} values, representation {self.representation_id} has {dim}. "
                "Search with a vector that this service embedded.",
            )
        largest = float(np.abs(vector).max())
        if not 0 < largest < float("inf"):
            raise ServingError(status=422, detail=f"{name} has no direction: it is zero, or not finite.")
        scaled = vector.astype(np.float64) / largest  # so that squares neither overflow nor vanish
        return np.asarray(scaled / np.linalg.norm(scaled), dtype=np.float32)
