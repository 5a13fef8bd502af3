"""Batch mixing and the neighbours below it."""

from __future__ import annotations

import numpy as np
import pytest

from cytolake.benchmark.transcriptomics.batch_mixing import ilisi, neighbour_weights
from cytolake.benchmark.transcriptomics.neighbours import nearest, nearest_others


def test_batches_apart_score_1():
    vectors = np.random.default_rng(0).normal(size=(400, 5))
    batches = np.repeat([0, 1], 200)
    vectors[batches == 1] += 100
    mixing = ilisi(vectors, batches, perplexity=20)
    np.testing.assert_allclose(mixing.lisi, 1.0)
    np.testing.assert_allclose(mixing.normalised, 0.0, atol=1e-12)


@pytest.mark.parametrize(("n_batches", "perplexity"), [(2, 83), (4, 250)])
def test_large_batches_that_mix_perfectly_score_their_number(n_batches, perplexity):
    random = np.random.default_rng(1)
    mixing = ilisi(random.normal(size=(1500, 6)), random.permutation(np.arange(1500) % n_batches), perplexity)
    assert mixing.mean == pytest.approx(n_batches, rel=0.05)
    assert mixing.normalised.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("perplexity", [83, 166])
def test_normalised_mixing_of_random_batches_is_1_at_any_perplexity_and_any_sizes(perplexity):
    random = np.random.default_rng(4)
    batches = random.permutation(np.repeat([0, 1, 2], [900, 400, 200]))
    mixing = ilisi(random.normal(size=(1500, 6)), batches, perplexity)
    assert mixing.mean < 2.3  # as 1 / sum of squared shares is
    assert mixing.normalised.mean() == pytest.approx(1, abs=0.08)  # one draw of the batches; sd 0.03


@pytest.mark.parametrize(("perplexity", "published"), [(5, 1.86), (10, 2.19), (30, 2.59)])
def test_three_random_batches_of_600_rows_score_what_the_published_code_gives(perplexity, published):
    random = np.random.default_rng(0)
    mixing = ilisi(random.normal(size=(600, 5)), random.integers(0, 3, 600), perplexity)
    assert mixing.mean == pytest.approx(published, abs=0.006)


def test_every_row_scores_what_a_loop_gives():
    random = np.random.default_rng(2)
    vectors, batches = random.normal(size=(90, 3)), random.integers(0, 4, 90)
    found = ilisi(vectors, batches, perplexity=8).lisi
    for row in range(0, 90, 7):
        distances = np.linalg.norm(vectors - vectors[row], axis=1)
        others = [other for other in np.argsort(distances) if other != row][:23]
        low, high = 0.0, 1e4
        for _ in range(200):  # bisection of the entropy, to the last digit
            beta = (low + high) / 2
            weights = np.exp(-beta * (distances[others] - distances[others].min()))
            weights /= weights.sum()
            entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum()
            low, high = (beta, high) if entropy > np.log(8) else (low, beta)
        simpson = sum(weights[batches[others] == batch].sum() ** 2 for batch in range(4))
        assert found[row] == pytest.approx(1 / simpson, rel=1e-4)


def test_the_scale_and_the_place_of_an_embedding_do_not_matter():
    random = np.random.default_rng(3)
    vectors, batches = random.normal(size=(200, 4)), random.integers(0, 2, 200)
    expected = ilisi(vectors, batches, perplexity=15).lisi
    np.testing.assert_allclose(ilisi(1e-4 * vectors + 3, batches, perplexity=15).lisi, expected, rtol=1e-4)


def test_weights_have_the_required_entropy_or_the_nearest_possible():
    distances = np.sort(np.random.default_rng(5).gamma(2, size=(50, 30)), axis=1)
    weights = neighbour_weights(distances, 10)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(-(weights * np.log(weights)).sum(axis=1), np.log(10), atol=1e-4)
    np.testing.assert_allclose(neighbour_weights(np.ones((1, 30)), 10), 1 / 30)
    many_equal = np.concatenate([np.zeros((1, 20)), np.ones((1, 10))], axis=1)
    np.testing.assert_allclose(neighbour_weights(many_equal, 10)[0, :20], 1 / 20, rtol=1e-3)


def test_too_few_rows_and_a_single_batch_are_refused_with_what_to_do():
    vectors = np.random.default_rng(6).normal(size=(30, 2))
    with pytest.raises(ValueError, match=r"perplexity 83 takes 248 neighbours of 29 other rows.*config\.perplexity"):
        ilisi(vectors, np.arange(30) % 2)
    with pytest.raises(ValueError, match=r"one batch.*config\.mixing_rows='all'"):
        ilisi(vectors, np.zeros(30, int), perplexity=4)


def test_neighbours_in_blocks_are_those_of_a_full_matrix_of_distances():
    random = np.random.default_rng(7)
    references, queries = random.normal(size=(50, 4)) + 1000, random.normal(size=(23, 4)) + 1000
    full = np.linalg.norm(queries[:, None] - references[None], axis=2)
    blocks = list(nearest(references, queries, 6, block_values=100))
    assert len(blocks) > 3
    np.testing.assert_array_equal(np.concatenate([found for _, _, found in blocks]), np.argsort(full, axis=1)[:, :6])
    distances = np.concatenate([distance for _, distance, _ in blocks])
    np.testing.assert_allclose(distances, np.sort(full, axis=1)[:, :6], rtol=1e-9)


def test_a_row_is_never_its_own_neighbour_but_its_copies_are():
    vectors = np.repeat(np.random.default_rng(8).normal(size=(10, 3)), 4, axis=0)
    for block, distances, found in nearest_others(vectors, 3):
        assert (found != np.arange(block.start, block.stop)[:, None]).all()
        np.testing.assert_array_equal(distances, 0)
    constant = np.ones((12, 2))
    for block, _, found in nearest_others(constant, 5):
        assert (found != np.arange(block.start, block.stop)[:, None]).all()
    with pytest.raises(ValueError, match="10 neighbours among 9 other rows"):
        next(iter(nearest_others(np.ones((10, 2)), 10)))
    with pytest.raises(ValueError, match="0 neighbours among"):
        next(nearest(constant, constant, 0))
