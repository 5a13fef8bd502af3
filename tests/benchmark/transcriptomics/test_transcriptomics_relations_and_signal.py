"""Known relations and perturbation signal against loops and known answers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from cytolake.benchmark.transcriptomics.embeddings import principal_components
from cytolake.benchmark.transcriptomics.known_relations import known_relation_recall, present_pairs
from cytolake.benchmark.transcriptomics.perturbation_signal import are_null, consistency, magnitude
from cytolake.benchmark.transcriptomics.post_processing import post_process
from cytolake.embed.alignment.held_out_controls import hold_out_controls


def test_a_random_map_recalls_a_tenth():
    random = np.random.default_rng(1)
    names = [f"g{i}" for i in range(300)]
    relations = [tuple(random.choice(names, 2, replace=False)) for _ in range(3000)]
    recall = known_relation_recall(random.normal(size=(300, 64)), names, relations)
    assert recall.value == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / len(recall.pairs)))


def test_pairs_are_counted_once_without_self_pairs_and_strangers():
    pairs = present_pairs(["a", "b", "c"], [("b", "a"), ("a", "b"), ("c", "c"), ("a", "z"), ("c", "b")])
    assert pairs.tolist() == [[0, 1], [1, 2]]
    assert np.isnan(known_relation_recall(np.eye(3), ["a", "b", "c"], [("x", "y")]).value)


def test_magnitude_is_the_energy_distance_to_the_controls(screen):
    vectors = screen.embeddings["model"]
    values, _ = magnitude(screen, vectors, n_draws=5, seed=0)
    for place in (0, 5):
        x, y = vectors[screen.perturbation_of_row == place], vectors[screen.is_control]
        expected = 2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()
        assert values[place] == pytest.approx(expected)


def test_real_effects_are_found_and_p_values_of_shuffled_labels_are_uniform(screen):
    vectors = principal_components(screen.features, 8)
    for test in (consistency, magnitude):
        assert (test(screen, vectors, n_draws=39, seed=0)[1] <= 0.05).all()
    found: dict[str, list[float]] = {"consistency": [], "magnitude": []}
    random = np.random.default_rng(4)
    for seed in range(6):
        labels = screen.perturbation_of_row.copy()
        for batch in range(len(screen.batches)):
            rows = np.flatnonzero(screen.batch_of_row == batch)
            labels[rows] = labels[random.permutation(rows)]
        shuffled = dataclasses.replace(screen, perturbation_of_row=labels)
        found["consistency"] += consistency(shuffled, vectors, n_draws=39, seed=seed)[1].tolist()
        found["magnitude"] += magnitude(shuffled, vectors, n_draws=39, seed=seed)[1].tolist()
    for p_values in found.values():
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
        assert np.mean(np.asarray(p_values) <= 0.05) < 0.2


def test_batches_alone_make_no_signal(screen):
    """A perturbation that was done in one batch only looks like its batch, not like an effect."""
    labels = screen.perturbation_of_row.copy()
    labels[(labels == 0) & (screen.batch_of_row != 0)] = 1
    random = np.random.default_rng(5)
    for batch in range(len(screen.batches)):
        rows = np.flatnonzero(screen.batch_of_row == batch)
        labels[rows] = labels[random.permutation(rows)]
    changed = dataclasses.replace(screen, perturbation_of_row=labels)
    shifted = random.normal(size=(screen.n_rows, 4)) + 5 * np.eye(4)[screen.batch_of_row]
    assert consistency(changed, shifted, n_draws=39, seed=0)[1][0] > 0.05
    assert magnitude(changed, shifted, n_draws=39, seed=0)[1][0] > 0.05


def test_centring_on_the_controls_makes_no_signal(screen):
    """Only the controls' noise is centred exactly, so they lie nearer to the origin than rows without any effect."""
    share = []
    for seed in range(4):
        noise = np.random.default_rng(seed).random((screen.n_rows, 200), dtype=np.float32)
        _, p_values = consistency(screen, post_process(screen, noise, "centred"), n_draws=39, seed=seed)
        share += (p_values <= 0.05).tolist()
    assert np.mean(share) < 0.16


def test_alignment_on_controls_makes_no_magnitude_where_others_are_compared_with(screen):
    """Rows without any effect differ from the controls that they were aligned on, and not from the other half."""
    seen, held_out = [], []
    others = hold_out_controls(screen.is_control, screen.batch_of_row)
    for seed in range(4):
        noise = np.random.default_rng(seed).standard_normal((screen.n_rows, 100), dtype=np.float32)
        seen += magnitude(screen, post_process(screen, noise, "centre_scaled"), 99, seed)[1].tolist()
        aligned = post_process(screen, noise, "centre_scaled", is_fitted=screen.is_control & ~others)
        held_out += magnitude(screen, aligned, 99, seed, is_compared=others)[1].tolist()
    assert np.mean(np.asarray(seen) <= 0.05) > 0.2
    assert np.mean(np.asarray(held_out) <= 0.05) < 0.2


def test_too_few_rows_have_no_p_value(screen):
    labels = screen.perturbation_of_row.copy()
    labels[np.flatnonzero(labels == 0)[1:]] = 1
    labels[np.flatnonzero(labels == 2)[4:]] = 3
    few = dataclasses.replace(screen, perturbation_of_row=labels)
    _, of_consistency = consistency(few, screen.embeddings["model"], 10, 0)
    _, of_magnitude = magnitude(few, screen.embeddings["model"], 10, 0)
    assert np.isnan(of_consistency).tolist() == [True] + 7 * [False]
    assert np.isnan(of_magnitude).tolist() == [True, False, True] + 5 * [False]


def test_names_that_are_no_perturbations_are_refused(screen):
    assert are_null(screen, ("gene1",)).tolist() == [False, True] + 6 * [False]
    with pytest.raises(ValueError, match=r"null perturbations geneX are not among.*config\.null_perturbations"):
        are_null(screen, ("geneX",))
