"""Which rows to look at when not all are: an inverted file of cells, built once beside the vectors.

Shapes: N rows, D width, Q questions, M rows that may answer.

The cells only say where to look. Similarities are always those of the stored vectors, so a hit's number is the same as
in an exact search; what may be missing is a hit.
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
"""Below it an exact search takes under 25 ms on two cores, and no cells are made."""
MIN_SHARE = 0.1
"""Where a smaller share of the rows may answer, all of them are looked at: that takes no longer."""
CELLS_LOOKED_AT = 128
"""Of the 1,000 cells of a million simulated crops they held 96 % of the nearest 100, 64 held 91 %, 256 held 99 %."""
OVERFETCH = 4
"""Rows taken from the cells for each hit wanted; the stored vectors then say which are the nearest."""
TRAINING_ROWS_PER_CELL = 50
FILE_NAME = "cells.faiss"


class Cells:
    """The inverted file of one index: on the disk now, or later, when whoever builds it is done."""

    def __init__(self, path: Path, n_rows: int, dim: int) -> None:
        self._path, self._n_rows, self._dim = path, n_rows, dim
        self._read: Any = None
        self._is_bad = False

    def is_ready(self) -> bool:
        """Whether `candidates` can be asked. Looks at the disk until it can."""
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
        except Exception as error:  # faiss raises what it likes on a damaged file; exact search needs none
            self._is_bad = True
            logger.warning("%s: no approximate search, every search is exact: %s", self._path, error)

    def candidates(self, questions_QD: Vectors, n_wanted: int, rows: Rows | None) -> list[Rows]:
        """For each question rows that are probably near, increasing; fewer than wanted where the cells hold fewer."""
        import faiss

        faiss.omp_set_num_threads(1)  # of this thread only; torch keeps its own
        selector = None
        if rows is not None:
            may_answer = np.zeros(self._n_rows, bool)
            may_answer[rows] = True
            bits = np.packbits(may_answer, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
        asked = faiss.SearchParametersIVF(sel=selector, nprobe=min(CELLS_LOOKED_AT, self._read.nlist))
        _, found_QW = self._read.search(np.ascontiguousarray(questions_QD), n_wanted, params=asked)
        return [np.unique(found[found >= 0]).astype(np.int64) for found in found_QW]


def nearest_approximately(
    cells: Cells, vectors_ND: Vectors, questions_QD: Vectors, k: int, rows: Rows | None
) -> list[tuple[Rows, NDArray[np.float32]]]:
    """As `nearest`, but hits may be missing among the k. Exact where few rows may answer, and where the cells that are
    looked at hold fewer than k."""
    n_rows = len(vectors_ND) if rows is None else len(rows)
    if n_rows < MIN_SHARE * len(vectors_ND) or not cells.is_ready():
        return nearest(vectors_ND, questions_QD, k, rows)
    found = []
    for question, near in zip(questions_QD, cells.candidates(questions_QD, OVERFETCH * k, rows), strict=True):
        looked_at = rows if len(near) < min(k, n_rows) else near
        found += nearest(vectors_ND, question[None], k, looked_at)
    return found


def build_cells(vectors_ND: Vectors, path: Path) -> None:
    """Write the inverted file: N ** 0.5 cells, rows at 8 bits a value. Whole or not at all.

    One thread, 40 s for a million rows of 384 on one core of 2.4 GHz.
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
    """Build the cells in a thread that gives way to all others; nothing where another process is at it."""

    def build() -> None:
        try:
            if sys.platform == "linux":  # where it is a matter of one thread, not of the process
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
                if not path.exists():
                    build_cells(vectors_ND, path)
        except BlockingIOError:
            return
        except Exception as error:
            logger.warning("%s: not built, every search is exact: %s", path, error)

    thread = threading.Thread(target=build, name="search-cells", daemon=True)
    thread.start()
    return thread
