"""Order statistics by blocks equal those of sorting all cosines, with any ties and in any order of blocks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from tests.fast_cases import fast_cases

from cytolake.benchmark.relations import cosine_blocks
from cytolake.benchmark.relations.cosine_blocks import GRID, measure_block, order_statistics, pair_cosines
from cytolake.statistics.unit_vectors import unit_vectors_of_any_size as unit_vectors

NOBODY = np.zeros(0, np.int64)


def one_after_the_other(unit, tasks):
    return [measure_block(unit, task) for task in tasks]


def all_cosines(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and cosines of all pairs, as the blocks have them, requested one by one."""
    i, j = np.triu_indices(len(unit), k=1)
    return i, j, order_statistics(unit, [], i, j)[1]


@pytest.fixture
def many_brackets(monkeypatch):
    """Brackets and several tiles also for a small map."""
    monkeypatch.setattr(cosine_blocks, "HELD_WHOLE", 0)
    monkeypatch.setattr(cosine_blocks, "ROWS", 16)
    monkeypatch.setattr(cosine_blocks, "COLUMNS", 32)


def maps() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "normal": random.normal(size=(150, 6)),
        "few values": random.integers(-1, 2, size=(150, 3)).astype(float),
        "two directions": np.eye(2)[random.integers(0, 2, 150)],
        "constant": np.tile(random.normal(size=7), (150, 1)),
        "all near 1": 1 + 1e-3 * random.normal(size=(150, 5)),
        "half zero": random.normal(size=(150, 4)) * random.integers(0, 2, size=(150, 1)),
    }


@pytest.mark.parametrize("name", maps())
def test_cosines_are_those_of_scikit_learn_to_the_grid(name):
    vectors = maps()[name]
    i, j, cosines = all_cosines(unit_vectors(vectors))
    assert np.abs(cosines - cosine_similarity(vectors)[i, j]).max() <= 0.51 * GRID
    np.testing.assert_array_equal(cosines / GRID, np.rint(cosines / GRID))


@pytest.mark.parametrize("sampled", fast_cases([20, 2000], 20))
@pytest.mark.parametrize("name", maps())
def test_order_statistics_are_those_of_sorting_all_pairs(many_brackets, name, sampled):
    unit = unit_vectors(maps()[name])
    _, _, cosines = all_cosines(unit)
    n = len(cosines)
    ranks = [0, 1, n // 20, n // 10, n // 2, n - n // 10, n - n // 20, n - 1]
    found, _ = order_statistics(unit, ranks, NOBODY, NOBODY, sampled=sampled, margin_sd=2.0)
    np.testing.assert_array_equal(found, np.sort(cosines)[ranks])


def test_a_bracket_that_misses_is_widened_until_it_holds(many_brackets, monkeypatch):
    unit = unit_vectors(maps()["normal"])
    passes = []

    def counted(vectors, tasks):
        passes.append(len(tasks))
        return one_after_the_other(vectors, tasks)

    _, _, cosines = all_cosines(unit)
    monkeypatch.setattr(cosine_blocks, "measure_blocks", counted)
    ranks = np.linspace(0, len(cosines) - 1, 12).astype(int).tolist()
    found, _ = order_statistics(unit, ranks, NOBODY, NOBODY, sampled=50, margin_sd=0.0)
    np.testing.assert_array_equal(found, np.sort(cosines)[ranks])
    assert len(passes) > 1


def test_a_good_bracket_needs_one_pass_and_stores_little(monkeypatch):
    monkeypatch.setattr(cosine_blocks, "HELD_WHOLE", 0)
    unit = unit_vectors(np.random.default_rng(0).normal(size=(1500, 16)))
    n = len(unit) * (len(unit) - 1) // 2
    stored = []

    def watched(vectors, tasks):
        results = one_after_the_other(vectors, tasks)
        stored.append(sum(len(each) for result in results for each in result.inside))
        return results

    monkeypatch.setattr(cosine_blocks, "measure_blocks", watched)
    order_statistics(unit, [n // 20, n - n // 20], NOBODY, NOBODY)
    assert len(stored) == 1
    assert stored[0] < 0.02 * n


def test_vectors_that_are_multiples_of_each_other_tie_exactly_across_blocks(many_brackets):
    unit = unit_vectors(
        np.outer(np.random.default_rng(1).uniform(1e-3, 1e3, 150), np.random.default_rng(2).normal(size=97))
    )
    _, _, cosines = all_cosines(unit)
    assert set(cosines.tolist()) == {1.0}


def test_requested_cosines_are_the_very_numbers_that_were_ranked(many_brackets):
    unit = unit_vectors(maps()["normal"])
    i, j, cosines = all_cosines(unit)
    shuffled = np.random.default_rng(0).permutation(len(i))
    swapped = np.random.default_rng(1).integers(0, 2, len(i)).astype(bool)
    first, second = np.where(swapped, i, j)[shuffled], np.where(swapped, j, i)[shuffled]
    ranks = range(0, len(i), 500)
    ranked, requested = order_statistics(unit, ranks, first, second, sampled=100)
    np.testing.assert_array_equal(requested, cosines[shuffled])
    np.testing.assert_array_equal(ranked, np.sort(requested)[ranks])


def test_single_pairs_agree_with_the_blocks():
    unit = unit_vectors(maps()["normal"])
    i, j, cosines = all_cosines(unit)
    assert np.abs(pair_cosines(unit, i, j) - cosines).max() <= GRID


def test_a_rank_beyond_the_pairs_is_refused():
    with pytest.raises(ValueError, match="of 3 pairs, expected 0 to 2"):
        order_statistics(np.eye(3), [3], NOBODY, NOBODY)


def test_threads_and_a_loop_give_the_same_bits(monkeypatch):
    unit = unit_vectors(np.random.default_rng(5).normal(size=(1200, 8)))
    n = len(unit) * (len(unit) - 1) // 2
    i, j = np.arange(0, 1100, 7), np.arange(100, 1200, 7)
    on_threads = order_statistics(unit, [n // 20, n - n // 20], i, j)
    monkeypatch.setattr(cosine_blocks, "measure_blocks", one_after_the_other)
    in_a_loop = order_statistics(unit, [n // 20, n - n // 20], i, j)
    for one, other in zip(on_threads, in_a_loop, strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_pair_is_counted_once(many_brackets, monkeypatch):
    unit = unit_vectors(maps()["normal"])
    held = []

    def watched(vectors, tasks):
        results = one_after_the_other(vectors, tasks)
        held.append(
            sum(int(each.below[0] + each.at_low[0] + each.at_high[0]) + len(each.inside[0]) for each in results)
        )
        return results

    monkeypatch.setattr(cosine_blocks, "measure_blocks", watched)
    order_statistics(unit, [len(unit) * (len(unit) - 1) // 2 - 1], NOBODY, NOBODY, sampled=1000)
    assert held[-1] == len(unit) * (len(unit) - 1) // 2
