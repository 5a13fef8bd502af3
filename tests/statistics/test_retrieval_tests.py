"""Permutation tests of mean average precision against loops, and their null hypothesis."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score

from cytolake.benchmark.retrieval.phenotypic import phenotypic_activity, phenotypic_consistency
from cytolake.statistics.retrieval_tests import activity_tests, label_tests, mean_average_precisions, similarity_ranks


def wells(seed: int, n_groups: int, n_rows: int = 6, n_controls: int = 30, dim: int = 8):
    """Rows of groups and of controls (-1), and strata that all have some of each."""
    groups = np.concatenate([np.repeat(np.arange(n_groups), n_rows), np.full(n_controls, -1)])
    return np.random.default_rng(seed).standard_normal((len(groups), dim)), groups, np.arange(len(groups)) % 3


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("blocked", [False, True])
def test_the_mean_is_scikit_learns_average_precision_over_queries(blocked):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((20, 5)))
    blocks = rng.integers(0, 3, 20) if blocked else np.arange(20)
    labelled = np.stack([rng.choice(20, 6, replace=False) for _ in range(10)])
    found = mean_average_precisions(similarity_ranks(vectors), labelled, blocks)
    for mean, rows in zip(found, labelled, strict=True):
        each = []
        for query in rows:
            candidates = [j for j in range(20) if j not in rows or blocks[j] != blocks[query]]
            is_positive = np.isin(candidates, rows)
            if is_positive.any():
                each.append(average_precision_score(is_positive, vectors[candidates] @ vectors[query]))
        assert mean == pytest.approx(np.mean(each))


def test_activity_is_that_of_the_benchmark():
    vectors, groups, strata = wells(1, 8)
    table = pa.table({"perturbation": [f"g{group}" for group in groups], "plate": strata})
    for across in (False, True):
        tests = activity_tests(vectors, groups, groups < 0, strata, 19, 0, across_strata=across)
        found = phenotypic_activity(table, vectors, groups < 0, positives_differ=("plate",) if across else ())
        expected = dict(
            zip(
                found.groups["perturbation"].to_pylist(),
                found.groups["mean_average_precision"].to_pylist(),
                strict=True,
            )
        )
        assert {f"g{test.group}": test.mean_average_precision for test in tests} == pytest.approx(expected)


@pytest.mark.parametrize("n_doses", [1, 2])
def test_that_of_labels_is_that_of_the_benchmark(n_doses):
    vectors = np.random.default_rng(2).standard_normal((48, 6))
    labels, units = np.arange(48) // 8, np.arange(48) // n_doses
    tests = label_tests(vectors, labels, units, 19, 0)
    table = pa.table({"perturbation": [f"p{u}" for u in units], "moa": [f"m{label}" for label in labels]})
    expected = phenotypic_consistency(table, vectors).groups["mean_average_precision"].to_pylist()
    assert [test.mean_average_precision for test in tests] == pytest.approx(expected)


@pytest.mark.parametrize("across", [False, True])
def test_activity_p_values_are_uniform_without_an_effect(across):
    p_values = []
    for seed in range(120):
        vectors, groups, strata = wells(seed, 3)
        vectors += 4 * np.random.default_rng(seed + 1000).standard_normal((3, 8))[strata]  # plates differ
        p_values += [
            test.p_value
            for test in activity_tests(vectors, groups, groups < 0, strata, 199, seed, across_strata=across)
        ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_p_values_of_labels_are_uniform_without_an_effect_also_where_doses_of_a_unit_are_alike():
    p_values = []
    for seed in range(30):
        of_unit = np.random.default_rng(seed).standard_normal((30, 8))
        vectors = np.repeat(of_unit, 2, axis=0) + 0.3 * np.random.default_rng(seed + 1000).standard_normal((60, 8))
        tests = label_tests(vectors, np.arange(60) // 10, np.arange(60) // 2, 99, seed)
        p_values += [test.p_value for test in tests]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_groups_that_act_are_found():
    vectors, groups, strata = wells(3, 6)
    vectors[groups == 2] += 3
    p_of = {test.group: test.p_value for test in activity_tests(vectors, groups, groups < 0, strata, 199, 0)}
    assert p_of[2] == 1 / 200
    labels = np.arange(36) // 6
    treatments = vectors[:36]
    p_of = {test.group: test.p_value for test in label_tests(treatments, labels, np.arange(36), 199, 0)}
    assert p_of[2] == 1 / 200


def test_equal_vectors_are_no_evidence():
    _, groups, strata = wells(4, 3)
    flat = np.ones((len(groups), 4))
    assert {test.p_value for test in activity_tests(flat, groups, groups < 0, strata, 99, 0)} == {1.0}
    assert {test.p_value for test in label_tests(flat, groups, np.arange(len(groups)), 99, 0)} == {1.0}


def test_labels_among_many_rows_are_tested_on_a_sample():
    vectors = np.random.default_rng(5).standard_normal((60, 6))
    vectors[:6] += 3
    labels = np.arange(60) // 6
    first, again = (label_tests(vectors, labels, np.arange(60), 99, 0, max_rows=30) for _ in range(2))
    assert first == again
    assert first[0].p_value == 1 / 100


def test_labels_of_one_unit_or_of_few_placements_are_not_tested():
    vectors = np.random.default_rng(6).standard_normal((6, 4))
    assert label_tests(vectors, np.asarray([0, 0, 0, 1, 1, 1]), np.asarray([0, 0, 0, 1, 2, 3]), 99, 0) == []
