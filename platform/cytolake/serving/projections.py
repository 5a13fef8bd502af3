"""Two-dimensional maps of a representation, PCA and UMAP: computed once in the background and kept on disk.

Vectors come at length 1, so that neighbours on a map are neighbours of the search, which compares directions. PCA is
exact on all crops. UMAP starts from the first 50 principal components. It is fitted on at most 20,000 crops, drawn with
a fixed seed. Up to 200,000 crops the others are placed by its own `transform`; beyond that each is placed at the mean
of its 5 nearest fitted crops in the space of those components, which is coarser and faster.

Shapes: M crops, D width of the vector, K principal components.
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

from cytolake.storage.atomic_write import atomic_file

logger = logging.getLogger(__name__)

Method = Literal["pca", "umap"]
METHODS: tuple[Method, ...] = ("pca", "umap")
Told = Callable[[float], None]
Points = NDArray[np.float32]

N_COMPONENTS = 50
N_FITTED = 20_000
N_TRANSFORMED = 200_000
"""Crops up to which UMAP's own transform places those that were not fitted."""
N_NEIGHBOURS = 15
"""UMAP's default: McInnes et al. 2018, arXiv 1802.03426."""
N_PLACING = 5
"""Fitted crops whose mean places another; more would pull all points to the middle of their clusters."""
CHUNK = 50_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Computing:
    """How far a map is."""

    share: float
    """0..1"""


class Projections:
    """The maps of one catalog. One of each method is computed at a time, so that no PCA waits for a UMAP. Each replica
    of a service computes for itself what no other has put on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._turns = {method: threading.Lock() for method in METHODS}
        self._lock = threading.Lock()
        self._jobs: dict[Path, _Job] = {}

    def points(
        self, representation_id: str, method: Method, version: int, n: int, vectors: Callable[[], NDArray[np.float32]]
    ) -> Points | Computing:
        """A map, or how far it is; asking starts the computation.

        Args:
            representation_id: Letters, digits, _, . and - only.
            method: Which map.
            version: Delta version of the table embeddings.
            n: How many points there are.
            vectors: Reads the (M, D) vectors at length 1; called in the background.

        Returns:
            (M, 2) float32 as computed, in the order of the vectors, mapped from disk.

        Raises:
            RuntimeError: The computation failed; asking again starts it anew.
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
                # A daemon: a service that is told to stop does not wait for a UMAP.
                work = threading.Thread(
                    target=self._compute, args=(job, path, method, vectors), name=f"projection-{method}", daemon=True
                )
                work.start()
        return Computing(share=job.share)

    def _compute(self, job: _Job, path: Path, method: Method, vectors: Callable[[], NDArray[np.float32]]) -> None:
        def tell(share: float) -> None:
            job.share = round(share, 3)

        try:
            with self._turns[method]:
                vectors_MD = vectors()
                tell(0.05)
                points_M2 = pca_points(vectors_MD) if method == "pca" else umap_points(vectors_MD, tell)
                _save(path, points_M2)
        except Exception as error:  # told to whoever asks next; the service goes on
            logger.exception("projection %s", path.name)
            job.error = f"{type(error).__name__}: {error}"[:300]
        job.is_done = True


@dataclass(slots=True)
class _Job:
    share: float = 0.0
    error: str = ""
    is_done: bool = False


def pca_points(vectors_MD: NDArray[np.float32]) -> Points:
    """(M, 2) first two principal components."""
    return _pad(_components(vectors_MD, 2), 2)


def umap_points(vectors_MD: NDArray[np.float32], tell: Told = lambda share: None, *, n_fitted: int = N_FITTED,
                n_transformed: int = N_TRANSFORMED, seed: int = 0) -> Points:  # fmt: skip
    """(M, 2) UMAP; the same for the same vectors.

    Args:
        vectors_MD: M crops.
        tell: Called with the share that is done, 0..1.
        n_fitted: Crops to fit on, at most.
        n_transformed: Crops up to which UMAP's transform places the others.
        seed: Of the sample and of UMAP.
    """
    n = len(vectors_MD)
    components_MK = _components(vectors_MD, N_COMPONENTS)
    tell(0.1)
    if n < 4:  # fewer than UMAP can lay out
        return _pad(components_MK, 2)
    import umap

    sample = np.sort(np.random.default_rng(seed).permutation(n)[:n_fitted])
    reducer = umap.UMAP(
        n_neighbors=min(N_NEIGHBOURS, len(sample) - 1), min_dist=0.1, init="pca" if len(sample) > 10 else "random",
        random_state=seed, n_jobs=1,
    )  # fmt: skip
    points_M2 = np.empty((n, 2), np.float32)
    points_M2[sample] = reducer.fit_transform(components_MK[sample])
    tell(0.5)
    others = np.setdiff1d(np.arange(n), sample, assume_unique=True)
    if not len(others):
        return points_M2
    place = reducer.transform if n <= n_transformed else _by_neighbours(components_MK[sample], points_M2[sample])
    for start in range(0, len(others), CHUNK):
        rows = others[start : start + CHUNK]
        points_M2[rows] = place(components_MK[rows])
        tell(0.5 + 0.5 * (start + len(rows)) / len(others))
    return points_M2


def _by_neighbours(fitted: NDArray[np.float32], points: Points) -> Callable[[NDArray[np.float32]], Points]:
    """Places crops at the mean of their nearest fitted ones."""
    from sklearn.neighbors import NearestNeighbors

    # Exact: an approximate index would first compile for minutes, and 1 million crops take about as long.
    index = NearestNeighbors(n_neighbors=min(N_PLACING, len(fitted)), algorithm="brute").fit(fitted)

    def place(rows_BK: NDArray[np.float32]) -> Points:
        return np.asarray(points[index.kneighbors(rows_BK, return_distance=False)].mean(axis=1), dtype=np.float32)

    return place


def _components(vectors_MD: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """(M, K) principal components, K = min(k, D); the largest loading of each is positive."""
    n, dim = vectors_MD.shape
    mean_D = vectors_MD.mean(axis=0, dtype=np.float64)
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, n, CHUNK):
        centred = vectors_MD[start : start + CHUNK] - mean_D
        covariance_DD += centred.T @ centred
    axes_DK = np.linalg.eigh(covariance_DD)[1][:, ::-1][:, :k]
    axes_DK = axes_DK * np.sign(axes_DK[np.abs(axes_DK).argmax(axis=0), np.arange(axes_DK.shape[1])])
    components_MK = np.empty((n, axes_DK.shape[1]), np.float32)
    for start in range(0, n, CHUNK):
        components_MK[start : start + CHUNK] = (vectors_MD[start : start + CHUNK] - mean_D) @ axes_DK
    return components_MK


def _pad(components_MK: NDArray[np.float32], k: int) -> Points:
    return np.pad(components_MK[:, :k], ((0, 0), (0, max(0, k - components_MK.shape[1]))))


def _load(path: Path, n: int) -> Any:
    """(n, 2) float32, mapped; None where there is no such file, or another thing in it."""
    try:
        points = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return points if points.shape == (n, 2) and points.dtype == np.float32 else None


def _save(path: Path, points_M2: Points) -> None:
    """Whole or not at all; then the maps of earlier versions of the table go."""
    with atomic_file(path) as part, part.open("wb") as file:
        np.save(file, points_M2, allow_pickle=False)
    name, _, version = path.stem.rpartition("-")
    for old in path.parent.glob(f"{name}-*.npy"):
        number = old.stem.removeprefix(f"{name}-")
        if number.isdecimal() and int(number) < int(version):
            old.unlink(missing_ok=True)
