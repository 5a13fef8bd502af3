"""Order statistics by blocks are those of sorting all cosines, whatever ties there are and wherever blocks run."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from cytolake.benchmark.relations import cosine_blocks
from cytolake.benchmark.relations.blocks_on_ray import on_ray
from cytolake.benchmark.relations.cosine_blocks import (
    GRID,
    measure_block,
    order_statistics,
    pair_cosines,
    unit_vectors,
)

NOBODY = np.zeros(0, np.int64)


def one_after_the_other(function, unit, tasks):
    return [function(unit, task) for task in tasks]


def all_cosines(unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and cosines of all pairs, as the blocks have them: asked for one by one."""
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


@pytest.mark.parametrize("sampled", [20, 2000])
@pytest.mark.parametrize("name", maps())
def test_order_statistics_are_those_of_sorting_all_pairs(many_brackets, name, sampled):
    unit = unit_vectors(maps()[name])
    _, _, cosines = all_cosines(unit)
    n = len(cosines)
    ranks = [0, 1, n // 20, n // 10, n // 2, n - n // 10, n - n // 20, n - 1]
    found, _ = order_statistics(unit, ranks, NOBODY, NOBODY, sampled=sampled, margin_sd=2.0)
    np.testing.assert_array_equal(found, np.sort(cosines)[ranks])


def test_a_bracket_that_misses_is_widened_until_it_holds(many_brackets):
    unit = unit_vectors(maps()["normal"])
    passes = []

    def counted(function, vectors, tasks):
        passes.append(len(tasks))
        return one_after_the_other(function, vectors, tasks)

    _, _, cosines = all_cosines(unit)
    ranks = np.linspace(0, len(cosines) - 1, 12).astype(int).tolist()
    found, _ = order_statistics(unit, ranks, NOBODY, NOBODY, counted, sampled=50, margin_sd=0.0)
    np.testing.assert_array_equal(found, np.sort(cosines)[ranks])
    assert len(passes) > 1


def test_a_good_bracket_needs_one_pass_and_keeps_little(monkeypatch):
    monkeypatch.setattr(cosine_blocks, "HELD_WHOLE", 0)
    unit = unit_vectors(np.random.default_rng(0).normal(size=(1500, 16)))
    n = len(unit) * (len(unit) - 1) // 2
    kept = []

    def watched(function, vectors, tasks):
        results = one_after_the_other(function, vectors, tasks)
        kept.append(sum(len(each) for result in results for each in result.inside))
        return results

    order_statistics(unit, [n // 20, n - n // 20], NOBODY, NOBODY, watched)
    assert len(kept) == 1
    assert kept[0] < 0.02 * n


def test_vectors_that_are_multiples_of_each_other_tie_exactly_across_blocks(many_brackets):
    unit = unit_vectors(
        np.outer(np.random.default_rng(1).uniform(1e-3, 1e3, 150), np.random.default_rng(2).normal(size=97))
    )
    _, _, cosines = all_cosines(unit)
    assert set(cosines.tolist()) == {1.0}


def test_cosines_asked_for_are_the_very_numbers_that_were_ranked(many_brackets):
    unit = unit_vectors(maps()["normal"])
    i, j, cosines = all_cosines(unit)
    shuffled = np.random.default_rng(0).permutation(len(i))
    swapped = np.random.default_rng(1).integers(0, 2, len(i)).astype(bool)
    first, second = np.where(swapped, i, j)[shuffled], np.where(swapped, j, i)[shuffled]
    ranks = range(0, len(i), 500)
    ranked, asked = order_statistics(unit, ranks, first, second, sampled=100)
    np.testing.assert_array_equal(asked, cosines[shuffled])
    np.testing.assert_array_equal(ranked, np.sort(asked)[ranks])


def test_single_pairs_agree_with_the_blocks():
    unit = unit_vectors(maps()["normal"])
    i, j, cosines = all_cosines(unit)
    assert np.abs(pair_cosines(unit, i, j) - cosines).max() <= GRID


def test_very_long_and_very_short_vectors_keep_their_direction():
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    lengths = 10.0 ** np.linspace(-300, 300, 30)[:, None]
    np.testing.assert_allclose(unit_vectors(vectors * lengths), unit_vectors(vectors), rtol=1e-12)
    assert not unit_vectors(np.zeros((2, 3))).any()


def test_a_rank_beyond_the_pairs_is_refused():
    with pytest.raises(ValueError, match="of 3 pairs, expected 0 to 2"):
        order_statistics(np.eye(3), [3], NOBODY, NOBODY)


def test_ray_tasks_threads_and_a_loop_give_the_same_bits(local_ray, monkeypatch):
    unit = unit_vectors(np.random.default_rng(5).normal(size=(1600, 8)))
    n = len(unit) * (len(unit) - 1) // 2
    i, j = np.arange(0, 1500, 7), np.arange(100, 1600, 7)
    results = [order_statistics(unit, [n // 20, n - n // 20], i, j, run) for run in (None, one_after_the_other, on_ray)]
    for statistics, cosines in results[1:]:
        np.testing.assert_array_equal(statistics, results[0][0])
        np.testing.assert_array_equal(cosines, results[0][1])


def test_every_pair_is_counted_once(many_brackets):
    unit = unit_vectors(maps()["normal"])
    held = []

    def watched(function, vectors, tasks):
        assert function is measure_block
        results = one_after_the_other(function, vectors, tasks)
        held.append(
            sum(int(each.below[0] + each.at_low[0] + each.at_high[0]) + len(each.inside[0]) for each in results)
        )
        return results

    order_statistics(unit, [len(unit) * (len(unit) - 1) // 2 - 1], NOBODY, NOBODY, watched, sampled=1000)
    assert held[-1] == len(unit) * (len(unit) - 1) // 2
