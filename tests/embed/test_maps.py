"""Maps of embeddings; PCA against scikit-learn's is tested with the explorer."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cytolake.embed import maps
from cytolake.embed.maps import pca_points, umap_points

pytestmark = pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")  # of umap, on its import


def three_kinds():
    rng = np.random.default_rng(0)
    kind = np.arange(240) % 3
    return kind, (np.eye(3, 12)[kind] * 4 + rng.normal(size=(240, 12))).astype(np.float32)


def assert_kinds_are_together(points, kind):
    assert points.shape == (240, 2)
    assert np.isfinite(points).all()
    centres = np.stack([np.median(points[kind == k], axis=0) for k in range(3)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == kind).mean() > 0.95


@pytest.mark.parametrize(("n_fitted", "n_transformed"), [(90, 1000), (90, 0), (240, 1000)])
def test_umap_puts_rows_of_one_kind_together_fitted_or_not(n_fitted, n_transformed):
    """Most rows are placed after the fit, by transform or at the mean of their neighbours; or all are fitted."""
    kind, vectors = three_kinds()
    points = umap_points(vectors, n_fitted=n_fitted, n_transformed=n_transformed)
    assert_kinds_are_together(points, kind)
    np.testing.assert_array_equal(points, umap_points(vectors, n_fitted=n_fitted, n_transformed=n_transformed))


@pytest.mark.parametrize("n_transformed", [1000, 0])
def test_rows_that_are_not_fitted_are_placed_in_their_order(monkeypatch, n_transformed):
    """With two principal components in place of UMAP: the same place, fitted or transformed; near it by neighbours."""

    def fit(features, **options):
        assert len(features) == 90
        return SimpleNamespace(embedding_=features[:, :2], transform=lambda rows: rows[:, :2])

    monkeypatch.setattr(maps, "fit_umap", fit)
    monkeypatch.setattr(maps, "CHUNK", 40)
    kind, vectors = three_kinds()
    shares: list[float] = []
    points = umap_points(vectors, shares.append, n_fitted=90, n_transformed=n_transformed)
    assert_kinds_are_together(points, kind)
    is_exact = np.isclose(points, pca_points(vectors), atol=1e-4).all(axis=1)
    assert is_exact.sum() == 240 if n_transformed else 90 <= is_exact.sum() < 100
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_rows_have_a_map_too(n):
    vectors = np.random.default_rng(n).normal(size=(n, 6)).astype(np.float32)
    assert np.isfinite(umap_points(vectors)).all()
    assert umap_points(vectors).shape == (n, 2)
