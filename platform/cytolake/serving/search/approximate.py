"""Approximate search: selects candidate rows by an inverted file of cells, which is stored next to the vectors.

The cells only select candidates. Similarities are computed from the stored vectors, so they equal those of an exact
search; but hits may be missing.

Shapes: N rows, D width, Q queries, W candidates.
"""

from __future__ import annotations

import fcntl
import logging
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.serving.search.nearest import Rows, Vectors, nearest
from cytolake.storage.atomic_write import atomic_file

logger = logging.getLogger(__name__)

MIN_ROWS = 200_000
"""Fewer rows have no cells: an exact search takes under 25 ms on two cores."""
MIN_SHARE = 0.1
"""Where a smaller share of the rows passes the condition, the search is exact, which takes no longer."""
CELLS_SEARCHED = 128
"""Of 1,000 cells of a million simulated crops 128 held 96 % of the nearest 100, 64 held 91 %, 256 held 99 %."""
OVERFETCH = 4
"""Candidates for each hit; the nearest of them are selected by the stored vectors."""
TRAINING_ROWS_PER_CELL = 50
FILE_NAME = "cells.faiss"


class Cells:
    """The inverted file of one index, which another thread or process may still be building."""

    def __init__(self, path: Path, n_rows: int, dim: int) -> None:
        self._path, self._n_rows, self._dim = path, n_rows, dim
        self._read: Any = None
        self._is_bad = False

    def is_ready(self) -> bool:
        """Whether the file is loaded; loads it where it is on disk."""
        if self._read is None and not self._is_bad and self._path.is_file():
            self._load()
        return self._read is not None

    def _load(self) -> None:
        try:
            import faiss

            read = faiss.read_index(str(self._path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            if (read.ntotal, read.d) != (self._n_rows, self._dim):
                raise ValueError(f"{read.ntotal} rows of {read.d}, expected {self._n_rows} of {self._dim}")
            self._read = read
        except Exception as error:  # faiss raises various errors for a damaged file; exact search needs no cells
            self._is_bad = True
            logger.warning("%s: no approximate search, every search is exact: %s", self._path, error)

    def candidates(self, queries_QD: Vectors, n_wanted: int, rows: Rows | None) -> list[Rows]:
        """Rows that are probably near each query, increasing; fewer than `n_wanted` where the cells hold fewer."""
        import faiss

        faiss.omp_set_num_threads(1)  # of this thread only; torch keeps its own
        selector = None
        if rows is not None:
            is_allowed = np.zeros(self._n_rows, bool)
            is_allowed[rows] = True
            bits = np.packbits(is_allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        parameters = faiss.SearchParametersIVF(sel=selector, nprobe=min(CELLS_SEARCHED, self._read.nlist))
        _, found_QW = self._read.search(np.ascontiguousarray(queries_QD), n_wanted, params=parameters)
        return [np.unique(found[found >= 0]).astype(np.int64) for found in found_QW]


def nearest_approximately(
    cells: Cells, vectors_ND: Vectors, queries_QD: Vectors, k: int, rows: Rows | None
) -> list[tuple[Rows, NDArray[np.float32]]]:
    """As `nearest`, but some of the k nearest may be missing. Exact where `rows` are few, and where the cells hold
    fewer than k of them."""
    n_rows = len(vectors_ND) if rows is None else len(rows)
    if n_rows < MIN_SHARE * len(vectors_ND) or not cells.is_ready():
        return nearest(vectors_ND, queries_QD, k, rows)
    found = []
    for query, near in zip(queries_QD, cells.candidates(queries_QD, OVERFETCH * k, rows), strict=True):
        compared = rows if len(near) < min(k, n_rows) else near
        found += nearest(vectors_ND, query[None], k, compared)
    return found


def build_cells(vectors_ND: Vectors, path: Path) -> None:
    """Write the inverted file of N ** 0.5 cells, with 8 bits for each value; the whole file or nothing.

    On one thread, 40 s for a million rows of 384 values on one core of 2.4 GHz.
    """
    import faiss

    faiss.omp_set_num_threads(1)
    n_rows, dim = vectors_ND.shape
    n_cells = max(1, math.isqrt(n_rows))
    cells = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(dim), dim, n_cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    n_training = min(n_rows, TRAINING_ROWS_PER_CELL * n_cells)
    chosen = np.sort(np.random.default_rng(0).choice(n_rows, n_training, replace=False))
    cells.train(np.ascontiguousarray(vectors_ND[chosen]))
    for start in range(0, n_rows, 16_384):
        cells.add(np.ascontiguousarray(vectors_ND[start : start + 16_384]))
    with atomic_file(path) as part:
        faiss.write_index(cells, str(part))


def build_in_background(vectors_ND: Vectors, path: Path) -> threading.Thread:
    """Build the cells in a thread of low priority; does nothing where another process builds them."""

    def build() -> None:
        try:
            if sys.platform == "linux":  # elsewhere the priority is that of the whole process
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
                if not path.exists():
                    build_cells(vectors_ND, path)
        except BlockingIOError:
            return
        except Exception as error:
            logger.warning("%s: not built, every search is exact: %s", path, error)

    thread = threading.Thread(target=build, name="search-cells", daemon=True)
    thread.start()
    return thread
