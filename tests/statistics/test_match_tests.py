"""Matches of two kinds: exact where nothing matches, powerful where targets match, and right in a loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cytolake.statistics.match_tests import match_tests

D, N_TARGETS = 24, 40


def screen(seed, matched, n_doses=3):
    """Two guides a gene that look alike, and two compounds whose doses look alike; their targets match, or don't."""
    rng = np.random.default_rng(seed)
    of_gene = 2 * rng.normal(size=(N_TARGETS, D))
    guides = np.repeat(of_gene, 2, axis=0) + rng.normal(size=(2 * N_TARGETS, D))
    of_compound = 2 * rng.normal(size=(2 * N_TARGETS, D)) + matched * np.repeat(of_gene, 2, axis=0)
    doses = np.repeat(of_compound, n_doses, axis=0) + rng.normal(size=(2 * N_TARGETS * n_doses, D))
    genes = np.repeat([f"G{i:02d}" for i in range(N_TARGETS)], 2)
    compounds = np.repeat([f"c{i:02d}" for i in range(2 * N_TARGETS)], n_doses)
    return guides, genes, doses, np.repeat(genes, n_doses), compounds


def test_a_twentieth_of_targets_without_a_match_have_p_below_005_though_doses_and_guides_look_alike():
    p = np.asarray([test.p_value for seed in range(12) for test in match_tests(*screen(seed, 0.0), 199, seed)])
    assert len(p) == 12 * N_TARGETS
    for level in (0.05, 0.2):
        assert abs(np.mean(p <= level) - level) < 3 * np.sqrt(level * (1 - level) / len(p))


def test_targets_that_match_are_found():
    tests = match_tests(*screen(0, 1.0), 199, 0)
    assert np.mean([test.p_value <= 0.05 for test in tests]) > 0.95


def test_the_mean_average_precision_is_that_of_a_loop():
    guides, genes, doses, targets, compounds = screen(1, 0.5)
    found = {test.target: test for test in match_tests(guides, genes, doses, targets, compounds, 19, 0)}
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (guides, doses)]
    cosines = unit[0] @ unit[1].T
    for gene in ("G00", "G17"):
        values = []
        for similar, own, other in ((cosines, genes, targets), (cosines.T, targets, genes)):
            for query in np.flatnonzero(own == gene):
                hits = (other[np.argsort(-similar[query])] == gene).tolist()
                values.append(np.mean([sum(hits[: k + 1]) / (k + 1) for k, hit in enumerate(hits) if hit]))
        assert found[gene].mean_average_precision == pytest.approx(np.mean(values))


def test_p_values_of_few_reagents_are_the_share_of_all_placements():
    rng = np.random.default_rng(2)
    knockouts, compounds = rng.normal(size=(2, 4)), rng.normal(size=(5, 4))
    tests = match_tests(knockouts, ["A", "B"], compounds, ["A", "A", "B", "B", "C"], list("vwxyz"), 20_000, 0)
    cosines = (knockouts @ compounds.T) / np.outer(*(np.linalg.norm(each, axis=1) for each in (knockouts, compounds)))

    def mean(row, placed):
        ranks = np.sort([1 + np.sum(cosines[row] > cosines[row, c]) for c in placed])
        as_queries = [1.0 if cosines[row, c] == cosines[:, c].max() else 0.5 for c in placed]
        return (np.mean([1, 2] / ranks) + sum(as_queries)) / 3

    for row, own in ((0, (0, 1)), (1, (2, 3))):
        all_means = np.asarray([mean(row, placed) for placed in itertools.combinations(range(5), 2)])
        exact = np.mean(all_means >= mean(row, own) - 1e-12)
        assert tests[row].p_value == pytest.approx(exact, abs=5 * np.sqrt(0.25 / 20_000))


def test_equal_vectors_make_no_match():
    tests = match_tests(np.ones((6, 3)), list("abcdef"), np.ones((6, 3)), list("abcdef"), list("uvwxyz"), 99, 0)
    assert {test.p_value for test in tests} == {1.0}
    assert all(test.mean_average_precision == pytest.approx(1 / 6) for test in tests)


def test_a_target_of_one_kind_alone_is_not_tested_and_a_reagent_has_one_target():
    guides, genes, doses, targets, compounds = screen(3, 0.0)
    tests = match_tests(guides[2:], genes[2:], doses, targets, compounds, 19, 0)
    assert [test.target for test in tests] == [f"G{i:02d}" for i in range(1, N_TARGETS)]
    compounds = compounds.copy()
    compounds[-1] = compounds[0]
    with pytest.raises(ValueError, match="reagent c00 has several targets"):
        match_tests(guides, genes, doses, targets, compounds, 19, 0)
