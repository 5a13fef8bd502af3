from __future__ import annotations

import sys

import numpy as np
import pytest

from cytolake.curation import near_duplicates
from cytolake.curation.near_duplicates import (
    centred,
    cluster_centres,
    find_duplicates,
    standardised,
    two_nearest,
    unit_rows,
)


def with_copies(seed: int = 0, n: int = 300, dim: int = 12, n_copies: int = 60, noise: float = 0.02):
    """Vectors of which some are near copies of others before them, and the row that each copies, -1 for none."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    original = np.full(n, -1)
    for row in rng.choice(np.arange(n // 2, n), n_copies, replace=False).tolist():
        original[row] = rng.integers(0, n // 2)
        vectors[row] = vectors[original[row]] * rng.uniform(0.5, 2) + noise * rng.standard_normal(dim)
    return vectors, original


def greedy_loop(vectors, min_cosine: float) -> list[bool]:
    """Whether each vector is near one of those that stay before it, one at a time."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    stay: list[int] = []
    for row in range(len(vectors)):
        if all(unit[row] @ unit[other] < min_cosine for other in stay):
            stay.append(row)
    return [row not in stay for row in range(len(vectors))]


@pytest.mark.parametrize(("min_cosine", "block", "at_once"), [(0.5, 7, 5), (0.7, 1024, 4096), (0.95, 7, 5)])
def test_one_vector_after_the_other_by_hand_finds_the_same(monkeypatch, min_cosine, block, at_once):
    monkeypatch.setattr(near_duplicates, "BLOCK", block)
    monkeypatch.setattr(near_duplicates, "KEPT_AT_ONCE", at_once)
    vectors, _ = with_copies()
    found = find_duplicates(vectors, min_cosine)
    np.testing.assert_array_equal(found.original >= 0, greedy_loop(vectors, min_cosine))
    assert (found.original[found.original[found.original >= 0]] == -1).all(), "a copy of one that goes"


def test_planted_copies_are_found_with_what_they_copy_and_nothing_else():
    vectors, original = with_copies(noise=0.02)
    found = find_duplicates(vectors, 0.98)
    np.testing.assert_array_equal(found.original >= 0, original >= 0)
    first = np.where(original >= 0, original, 0)
    same = found.original == first
    assert same[original >= 0].all()
    assert (np.isnan(found.cosine) == (original < 0)).all()
    assert found.cosine[original >= 0].min() >= 0.98


@pytest.mark.parametrize("n_clusters", [1, 4])
def test_of_those_that_stay_no_two_are_near_and_each_that_goes_is_near_one_before_it(n_clusters):
    vectors, original = with_copies(seed=1)
    found = find_duplicates(vectors, 0.9, n_clusters=n_clusters, seed=3)
    unit = unit_rows(vectors)
    gone = np.flatnonzero(found.original >= 0)
    assert (found.original[gone] < gone).all()
    np.testing.assert_allclose((unit[gone] * unit[found.original[gone]]).sum(axis=1), found.cosine[gone], atol=1e-6)
    stay = unit[found.original < 0]
    cosines = stay @ stay.T - 2 * np.eye(len(stay))
    if n_clusters == 1:
        assert cosines.max() < 0.9
    else:  # two that are near and in no common cluster may both stay; those planted are far nearer than that
        np.testing.assert_array_equal(found.original >= 0, find_duplicates(vectors, 0.9).original >= 0)
    assert (found.original[original >= 0] >= 0).all()


def test_the_same_vectors_and_seed_give_the_same_duplicates():
    vectors, _ = with_copies(seed=2)
    first, second = (find_duplicates(vectors, 0.8, n_clusters=5, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first.original, second.original)


def test_vectors_of_length_zero_are_alike_to_none():
    vectors = np.zeros((5, 3), np.float32)
    vectors[3:] = 1.0
    assert find_duplicates(vectors, 0.1).original.tolist() == [-1, -1, -1, -1, 3]


def test_no_vectors_have_no_duplicates():
    assert len(find_duplicates(np.zeros((0, 3), np.float32), 0.9).original) == 0


def test_standardised_features_have_mean_0_and_deviation_1_and_a_constant_one_is_0():
    vectors = np.random.default_rng(0).standard_normal((200, 3)) * [1, 1000, 0] + [0, 5e6, 7]
    found = standardised(vectors)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=0), [1, 1, 0], atol=1e-5)


def test_centred_groups_have_mean_0_and_a_shift_of_a_group_changes_nothing():
    vectors = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    groups = np.random.default_rng(1).integers(0, 3, 50)
    found = centred(vectors, groups)
    for group in range(3):
        np.testing.assert_allclose(found[groups == group].mean(axis=0), 0, atol=1e-6)
    shifted = vectors + 10 * np.arange(3, dtype=np.float32)[groups][:, None]
    np.testing.assert_allclose(centred(shifted, groups), found, atol=1e-5)
    assert centred(vectors[:0], groups[:0]).shape == (0, 4)


def test_clusters_on_ray_give_what_they_give_here(local_ray, monkeypatch):
    vectors = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    seen = []
    spread = find_duplicates(vectors, 0.95, n_clusters=6, progress=lambda *call: seen.append(call))
    monkeypatch.delitem(sys.modules, "ray")
    here = find_duplicates(vectors, 0.95, n_clusters=6)
    np.testing.assert_array_equal(spread.original, here.original)
    np.testing.assert_array_equal(spread.cosine, here.cosine)
    assert (here.original >= 0).any()
    assert seen[-1] == ("clusters compared", 6, 6)


def test_the_two_nearest_centres_are_those_of_all_distances(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK", 16)
    vectors = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    centres = cluster_centres(vectors, 7, seed=0)
    distances = np.linalg.norm(vectors[:, None] - centres[None], axis=2)
    np.testing.assert_array_equal(two_nearest(vectors, centres), np.argsort(distances, axis=1)[:, :2])
    assert two_nearest(vectors, centres[:1]).max() == 0
