"""Two-dimensional maps of embeddings: PCA and UMAP.

PCA is exact on all rows. UMAP starts from the first 50 principal components and is fitted on a random sample of at most
20,000 rows. Up to 200,000 rows its own `transform` places the other rows; beyond that each is placed at the mean of its
5 nearest fitted rows in the space of those components, which is coarser and faster.

Shapes: M rows, D width of the vector, K principal components.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]
Progress = Callable[[float], None]

N_COMPONENTS = 50
N_FITTED = 20_000
N_TRANSFORMED = 200_000
"""Most rows for which UMAP's own transform places those that were not fitted."""
N_NEIGHBOURS = 15
"""UMAP's default: McInnes et al. 2018, arXiv 1802.03426."""
N_PLACING = 5
"""Fitted rows whose mean is the place of another; more would pull all points to the middle of their clusters."""
CHUNK = 50_000


def pca_points(vectors_MD: NDArray[np.float32]) -> Points:
    """(M, 2) first two principal components."""
    return _pad(_components(vectors_MD, 2), 2)


def umap_points(
    vectors_MD: NDArray[np.float32],
    progress: Progress = lambda share: None,
    *,
    n_fitted: int = N_FITTED,
    n_transformed: int = N_TRANSFORMED,
    seed: int = 0,
) -> Points:
    """(M, 2) UMAP; the same for the same vectors.

    Args:
        vectors_MD: M rows.
        progress: Called with the share that is done, 0..1.
        n_fitted: Most rows to fit on.
        n_transformed: Most rows for which UMAP's transform places those that were not fitted.
    """
    n = len(vectors_MD)
    components_MK = _components(vectors_MD, N_COMPONENTS)
    progress(0.1)
    if n < 4:  # fewer than UMAP can lay out
        return _pad(components_MK, 2)
    sample = np.sort(np.random.default_rng(seed).permutation(n)[:n_fitted])
    others = np.setdiff1d(np.arange(n), sample, assume_unique=True)
    init = "pca" if len(sample) > 10 else "random"
    transforms = len(others) > 0 and n <= n_transformed
    reducer = fit_umap(components_MK[sample], init=init, seed=seed, transforms=transforms)
    points_M2 = np.empty((n, 2), np.float32)
    points_M2[sample] = reducer.embedding_
    progress(0.5)
    if not len(others):
        return points_M2
    place = reducer.transform if transforms else _by_neighbours(components_MK[sample], points_M2[sample])
    for start in range(0, len(others), CHUNK):
        rows = others[start : start + CHUNK]
        points_M2[rows] = place(components_MK[rows])
        progress(0.5 + 0.5 * (start + len(rows)) / len(others))
    return points_M2


def fit_umap(
    features_MD: NDArray[np.float32],
    *,
    min_dist: float = 0.1,
    init: str = "spectral",
    seed: int = 0,
    transforms: bool = False,
) -> Any:
    """A fitted `umap.UMAP` of 15 neighbours; `embedding_` is (M, 2) float32.

    Args:
        features_MD: M rows, 4 or more.
        min_dist: Least distance of points on the map, in its units.
        init: Start of the layout: `spectral`, `pca` or `random`.
        seed: Of the layout, which runs on one thread so that it can be repeated.
        transforms: Whether its `transform` will be called. Without it neighbours are exact, and found several times as
            fast: UMAP's own search calls a Python function for each pair of up to 4,096 rows, and beyond that compiles
            an approximate index first.
    """
    import umap
    from sklearn.neighbors import NearestNeighbors

    _keep_compiled()
    n_neighbours = min(N_NEIGHBOURS, len(features_MD) - 1)
    options: dict[str, Any] = {}
    if not transforms:
        search = NearestNeighbors(n_neighbors=n_neighbours, algorithm="brute").fit(features_MD)
        distances, indices = search.kneighbors(features_MD)
        options = {"precomputed_knn": (indices, distances), "force_approximation_algorithm": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn", category=UserWarning)  # without an index
        reducer = umap.UMAP(
            n_neighbors=n_neighbours, min_dist=min_dist, init=init, random_state=seed, n_jobs=1, **options
        )
        return reducer.fit(features_MD)


def compile_umap() -> None:
    """Fit and transform a few points, so that no later process compiles: for the end of an installation."""
    points = np.random.default_rng(0).standard_normal((40, 4), np.float32)
    umap_points(points, n_fitted=30)
    umap_points(points)
    fit_umap(points)


@cache
def _keep_compiled() -> None:
    """Let numba keep UMAP's compiled functions on disk: 8 s of compilation are then 0.3 s in all later processes."""
    from numba.core.dispatcher import Dispatcher
    from umap import layouts, umap_, utils

    for module in (layouts, umap_, utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher):
                function.enable_caching()


def _by_neighbours(fitted: NDArray[np.float32], points: Points) -> Callable[[NDArray[np.float32]], Points]:
    """Places rows at the mean of their nearest fitted ones."""
    from sklearn.neighbors import NearestNeighbors

    # Exact: an approximate index would compile for minutes first, and the exact search of 1 million rows is no slower.
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
