"""Cosines within clusters against those to the rest."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.metrics.pairwise import cosine_similarity

from cytolake.benchmark.relations.clusters import cluster_tests


@pytest.fixture
def screen():
    """200 genes; A to L share a direction, the others none."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 16))
    vectors[:12] += random.normal(size=16)
    return vectors, [*"ABCDEFGHIJKL", *(f"G{k}" for k in range(188))]


def test_tests_are_those_of_scipy_on_the_whole_matrix(screen):
    vectors, entities = screen
    test, noise = cluster_tests(vectors, entities, {"alike": "ABCDEFGHIJKLX", "noise": [f"G{k}" for k in range(30)]})
    matrix = np.round(cosine_similarity(vectors), 10)
    for each, rows in ((test, np.arange(12)), (noise, np.arange(12, 42))):
        within = matrix[np.ix_(rows, rows)][np.triu_indices(len(rows), k=1)]
        between = np.delete(matrix[rows], rows, axis=1).ravel()
        expected = ks_2samp(within, between)
        assert each.statistic == pytest.approx(expected.statistic)
        assert each.p_value == pytest.approx(expected.pvalue)
        assert (each.within, each.between) == pytest.approx((within.mean(), between.mean()))
    assert test.genes == tuple("ABCDEFGHIJKL")
    assert test.p_value < 1e-6 < 0.001 < noise.p_value
    assert (test.q_value, noise.q_value) == pytest.approx((2 * test.p_value, noise.p_value))


def test_clusters_that_are_too_small_or_the_whole_map_are_not_tested(screen):
    vectors, entities = screen
    clusters = {"small": "ABCDEFGHI", "absent": ["X", "Y"], "all": entities, "just": "ABCDEFGHIJ"}
    assert [test.cluster for test in cluster_tests(vectors, entities, clusters)] == ["just"]
    assert cluster_tests(vectors, entities, {"small": "AB"}) == []
    assert len(cluster_tests(vectors, entities, {"small": "AB"}, min_genes=2)) == 1


def test_a_constant_map_sets_no_cluster_apart(screen):
    _, entities = screen
    (test,) = cluster_tests(np.tile(np.random.default_rng(1).normal(size=33), (200, 1)), entities, {"c": "ABCDEFGHIJ"})
    assert (test.statistic, test.p_value, test.within, test.between) == (0, 1, 1, 1)


def test_what_cannot_be_tested_is_refused(screen):
    vectors, entities = screen
    with pytest.raises(ValueError, match="min_genes is 1"):
        cluster_tests(vectors, entities, {}, min_genes=1)
    with pytest.raises(ValueError, match=r"A \(2 times\)"):
        cluster_tests(vectors, ["A", *entities[:-1]], {})
