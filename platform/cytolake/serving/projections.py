"""Maps of representations for the explorer: computed once in the background and kept on disk.

Vectors have length 1, so neighbours on a map are neighbours of the search, which compares directions; see `embed.maps`.

Shapes: M crops, D width of the vector.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytolake.embed.maps import Points, pca_points, umap_points
from cytolake.storage.atomic_write import atomic_file

logger = logging.getLogger(__name__)

Method = Literal["pca", "umap"]
METHODS: tuple[Method, ...] = ("pca", "umap")


@dataclass(frozen=True, kw_only=True, slots=True)
class Computing:
    """Progress of a map that is being computed."""

    share: float
    """Share that is done, 0..1."""


class Projections:
    """The maps of one catalog. One map of each method is computed at a time, so a PCA does not wait for a UMAP. Each
    replica of a service computes the maps that are not on disk yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turns = {method: threading.Lock() for method in METHODS}
        self._lock = threading.Lock()
        self._jobs: dict[Path, _Job] = {}

    def points(
        self, representation_id: str, method: Method, version: int, n: int, vectors: Callable[[], NDArray[np.float32]]
    ) -> Points | Computing:
        """A map, or its progress; the first call starts the computation.

        Args:
            representation_id: Letters, digits, _, . and - only.
            method: `pca` or `umap`.
            version: Delta version of the table embeddings.
            n: M, the number of points.
            vectors: Reads the (M, D) vectors at length 1; called in the background.

        Returns:
            (M, 2) float32 in the order of the vectors, memory-mapped.

        Raises:
            RuntimeError: The computation failed; the next call starts it again.
        """
        path = self.folder / f"{representation_id}-{method}-{version}.npy"
        with self._lock:
            job = self._jobs.get(path)
            if job is not None and job.error:
                del self._jobs[path]
                raise RuntimeError(job.error)
            stored: Points | None = None if job is not None and not job.is_done else _load(path, n)
            if stored is not None:
                self._jobs.pop(path, None)
                return stored
            if job is None or job.is_done:
                job = self._jobs[path] = _Job()
                # A daemon thread, so that the service can stop during a UMAP.
                work = threading.Thread(
                    target=self._compute, args=(job, path, method, vectors), name=f"projection-{method}", daemon=True
                )
                work.start()
        return Computing(share=job.share)

    def _compute(self, job: _Job, path: Path, method: Method, vectors: Callable[[], NDArray[np.float32]]) -> None:
        def report(share: float) -> None:
            job.share = round(share, 3)

        try:
            with self._turns[method]:
                vectors_MD = vectors()
                report(0.05)
                points_M2 = pca_points(vectors_MD) if method == "pca" else umap_points(vectors_MD, report)
                _save(path, points_M2)
        except Exception as error:  # raised by the next call of `points`; the service goes on
            logger.exception("projection %s", path.name)
            job.error = f"{type(error).__name__}: {error}"[:300]
        job.is_done = True


@dataclass(slots=True)
class _Job:
    share: float = 0.0
    error: str = ""
    is_done: bool = False


def _load(path: Path, n: int) -> Any:
    """(n, 2) float32, memory-mapped; None where there is no such file, or its content is another."""
    try:
        points = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return points if points.shape == (n, 2) and points.dtype == np.float32 else None


def _save(path: Path, points_M2: Points) -> None:
    """Write the whole file or nothing, then remove the maps of earlier versions of the table."""
    with atomic_file(path) as part, part.open("wb") as file:
        np.save(file, points_M2, allow_pickle=False)
    name, _, version = path.stem.rpartition("-")
    for old in path.parent.glob(f"{name}-*.npy"):
        number = old.stem.removeprefix(f"{name}-")
        if number.isdecimal() and int(number) < int(version):
            old.unlink(missing_ok=True)
