from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from cytolake.catalog.curation import consistency
from cytolake.catalog.curation.consistency import (
    Experiment,
    align_to_controls,
    cauchy_combination,
    combined_p_value,
    condition_tests,
    mean_pairwise_cosine,
)


def experiment(profiles, conditions, *, strata=None, n_draws=999, seed=0, name="E") -> Experiment:
    strata = np.zeros(len(conditions)) if strata is None else strata
    return Experiment(
        name=name,
        profiles=np.asarray(profiles, np.float64),
        conditions=np.asarray(conditions, np.int64),
        strata=np.asarray(strata, np.int64),
        n_draws=n_draws,
        seed=seed,
    )


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pairs_loop(vectors) -> float:
    """The definition, word for word."""
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(vectors, 2)]
    return sum(cosines) / len(cosines)


def planted(seed: int, n_conditions: int, n_wells: int, strength: float, dim: int = 24):
    """Profiles of conditions, of which the first half has an effect, one direction each; and the conditions."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((n_conditions, dim)) * strength
    directions[n_conditions // 2 :] = 0
    conditions = np.repeat(np.arange(n_conditions), n_wells)
    return directions[conditions] + rng.standard_normal((len(conditions), dim)), conditions


@pytest.mark.parametrize("n", [2, 3, 17])
def test_the_statistic_is_the_mean_cosine_of_all_pairs(n):
    vectors = np.random.default_rng(n).standard_normal((n, 9))
    assert mean_pairwise_cosine(unit(vectors)) == pytest.approx(pairs_loop(vectors), abs=1e-12)
    from_distances = 1 - np.mean([stats_cosine(a, b) for a, b in combinations(vectors, 2)])
    assert mean_pairwise_cosine(unit(vectors)) == pytest.approx(from_distances, abs=1e-12)


def stats_cosine(a, b) -> float:
    from scipy.spatial.distance import cosine

    return float(cosine(a, b))


def test_p_is_the_share_of_all_sets_of_wells_that_are_as_alike():
    """Against every subset of 12 wells, listed; 20,000 draws leave 3 standard errors of 0.0035 at most."""
    profiles = np.random.default_rng(1).standard_normal((12, 4))
    conditions = np.repeat(np.arange(4), 3)
    every = np.array([pairs_loop(profiles[list(chosen)]) for chosen in combinations(range(12), 3)])
    for test in condition_tests(experiment(profiles, conditions, n_draws=20_000)):
        own = pairs_loop(profiles[conditions == test.condition])
        expected = np.mean(every >= own - 1e-9)
        assert test.cosine == pytest.approx(own)
        assert test.n_wells == 3
        assert abs(test.p_value - expected) < 3 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4


def test_draws_hold_as_many_wells_of_each_stratum_as_the_condition():
    profiles = np.random.default_rng(2).standard_normal((12, 3))
    profiles[:5] += 3  # plates differ, which a draw over both would take for an effect
    strata = np.repeat([0, 1], [5, 7])
    conditions = np.array([0, 0, 1, 1, 2, 0, 3, 3, 1, 2, 2, 4])
    tests = {
        test.condition: test
        for test in condition_tests(experiment(profiles, conditions, strata=strata, n_draws=20_000))
    }
    own = profiles[conditions == 0]
    every = np.array(
        [pairs_loop(profiles[[*first, second]]) for first, second in product(combinations(range(5), 2), range(5, 12))]
    )
    expected = np.mean(every >= pairs_loop(own) - 1e-9)
    assert abs(tests[0].p_value - expected) < 3 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-4
    assert 4 not in tests, "one well cannot be like itself"


@pytest.mark.parametrize("n_strata", [1, 3])
def test_adding_cosines_and_adding_vectors_give_the_same_p_values(monkeypatch, n_strata):
    profiles, conditions = planted(3, 20, 5, 0.5)
    strata = np.random.default_rng(3).integers(0, n_strata, len(conditions))
    asked = experiment(profiles, conditions, strata=strata, n_draws=2_500)
    of_cosines = condition_tests(asked)
    monkeypatch.setattr(consistency, "COSINES_UP_TO", 0)
    assert condition_tests(asked) == of_cosines


def test_every_set_of_wells_is_drawn_as_often():
    drawn = np.sort(consistency.random_subsets(np.random.default_rng(0), 6, 3, 20_000), axis=1)
    sets, counts = np.unique(drawn, axis=0, return_counts=True)
    assert [tuple(row) for row in sets.tolist()] == list(combinations(range(6), 3))
    assert stats.chisquare(counts).pvalue > 0.001


def test_without_an_effect_p_values_are_uniform():
    """One condition of each of 400 experiments, so that no two p-values share their draws."""
    p_values = []
    for number in range(400):
        profiles, conditions = planted(100 + number, 8, 4, 0.0)
        p_values.append(condition_tests(experiment(profiles, conditions, name=f"E{number}"))[number % 8].p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_without_an_effect_p_values_combined_over_experiments_are_uniform():
    combined = []
    for number in range(300):
        tests = []
        for name in "ABC":
            profiles, conditions = planted(1000 + 7 * number + ord(name), 8, 4, 0.0)
            tests.append(condition_tests(experiment(profiles, conditions, name=f"{name}{number}"))[0])
        combined.append(combined_p_value(tests, 999))
    assert stats.kstest(combined, "uniform").pvalue > 0.01


def test_conditions_with_an_effect_are_found_and_the_others_are_not():
    """400 conditions, half of them without an effect, 4 wells in each of 3 experiments: p < 0.01 tells them apart."""
    tests: dict[int, list] = {}
    for name, seed in (("A", 1), ("B", 2), ("C", 3)):
        profiles, conditions = planted(seed, 400, 4, 0.7)
        for test in condition_tests(experiment(profiles, conditions, name=name, n_draws=10_000)):
            tests.setdefault(test.condition, []).append(test)
    p_values = np.array([combined_p_value(tests[condition], 10_000) for condition in range(400)])
    removed, without_effect = p_values >= 0.01, np.arange(400) >= 200
    assert (removed & without_effect).sum() / removed.sum() > 0.95
    assert (removed & without_effect).sum() / without_effect.sum() > 0.95


def test_the_same_experiment_gives_the_same_p_values_and_another_seed_others():
    profiles, conditions = planted(5, 30, 3, 0.4)
    first = condition_tests(experiment(profiles, conditions))
    assert condition_tests(experiment(profiles, conditions)) == first
    assert condition_tests(experiment(profiles, conditions, seed=1)) != first
    assert condition_tests(experiment(profiles, conditions, name="F")) != first


def test_only_the_directions_of_profiles_count():
    profiles, conditions = planted(6, 20, 3, 0.5)
    longer = profiles * np.random.default_rng(0).uniform(0.1, 10, len(profiles))[:, None]
    first, second = (condition_tests(experiment(some, conditions)) for some in (profiles, longer))
    assert [test.p_value for test in first] == [test.p_value for test in second]


def test_no_p_value_is_below_what_the_draws_can_tell():
    profiles = np.concatenate([np.eye(20), np.full((3, 20), [1.0] + [0.0] * 19)])
    tests = condition_tests(experiment(profiles, [*range(20), 30, 30, 30], n_draws=99))
    assert [test.p_value for test in tests] >= [1 / 100]
    assert tests[0].p_value < 0.05


def test_cauchy_combination_of_uniform_values_is_uniform():
    drawn = np.random.default_rng(0).uniform(size=(2_000, 5))
    assert stats.kstest([cauchy_combination(row) for row in drawn], "uniform").pvalue > 0.01


def test_cauchy_combination_agrees_with_the_quantiles_of_the_distribution():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p_values, weights = rng.uniform(size=4), rng.dirichlet(np.ones(4))
        assert cauchy_combination(p_values, weights) == pytest.approx(
            stats.cauchy.sf(weights @ stats.cauchy.isf(p_values))
        )
        assert cauchy_combination(p_values) == pytest.approx(cauchy_combination(p_values[::-1]))


@pytest.mark.parametrize("p", [1e-12, 1e-4, 0.5, 0.999])
def test_cauchy_combination_of_equal_values_is_that_value(p):
    assert cauchy_combination([p, p, p]) == pytest.approx(p, rel=1e-3)
    assert cauchy_combination([p]) == pytest.approx(p, rel=1e-3)


def test_one_experiment_of_no_likeness_at_all_does_not_silence_the_others():
    profiles, conditions = planted(7, 4, 5, 3.0)
    (strong, *_) = condition_tests(experiment(profiles, conditions, n_draws=10_000))
    hopeless = consistency.ConditionTest(condition=0, n_wells=2, cosine=-1.0, p_value=1.0)
    assert cauchy_combination([strong.p_value, strong.p_value, hopeless.p_value]) > 0.5
    assert combined_p_value([strong, strong, hopeless], 10_000) < 0.001
    assert combined_p_value([hopeless, hopeless], 10_000) > 0.999


@pytest.fixture
def plates():
    """Profiles of three plates of 20 wells, the first 8 of each controls; plates lie apart."""
    rng = np.random.default_rng(0)
    plate = np.repeat(np.arange(3), 20)
    is_control = np.tile(np.arange(20) < 8, 3)
    return rng.standard_normal((60, 5)) @ np.diag([1, 1, 1, 9, 0.1]) + 5 * plate[:, None], plate, is_control


@pytest.mark.parametrize("sphere", [False, True])
def test_a_shift_of_a_whole_plate_or_another_unit_of_a_feature_changes_nothing(plates, sphere):
    profiles, plate, is_control = plates
    aligned, without = align_to_controls(profiles, plate, is_control, sphere=sphere)
    shifted = profiles + np.array([3.0, -7.0, 100.0])[plate][:, None]
    again, _ = align_to_controls(shifted * np.array([1, 10, 0.1, 3, 7]), plate, is_control, sphere=sphere)
    # Principal directions have no sign: compare what is between wells.
    np.testing.assert_allclose(again @ again.T, aligned @ aligned.T, atol=1e-8)
    assert without == []


@pytest.mark.parametrize("sphere", [False, True])
def test_the_controls_of_each_plate_are_the_origin(plates, sphere):
    profiles, plate, is_control = plates
    aligned, _ = align_to_controls(profiles, plate, is_control, sphere=sphere)
    for number in range(3):
        np.testing.assert_allclose(aligned[is_control & (plate == number)].mean(axis=0), 0, atol=1e-9)


def test_sphering_makes_directions_in_which_controls_vary_count_less():
    rng = np.random.default_rng(0)
    is_control = np.arange(300) < 200
    profiles = rng.standard_normal((300, 4)) + np.outer(3 * is_control * rng.standard_normal(300), np.ones(4))

    def largest_over_smallest(sphere: bool) -> float:
        aligned, _ = align_to_controls(profiles, np.zeros(300, int), is_control, sphere=sphere)
        variances = np.linalg.eigvalsh(np.cov(aligned[is_control].T))
        return variances[-1] / variances[0]

    assert largest_over_smallest(False) > 20
    assert largest_over_smallest(True) < largest_over_smallest(False) / 4


def test_plates_without_a_control_are_named_and_centred_on_all_their_wells(plates):
    profiles, plate, is_control = plates
    aligned, without = align_to_controls(profiles, plate, is_control & (plate != 1), sphere=False)
    assert without == [1]
    np.testing.assert_allclose(aligned[plate == 1].mean(axis=0), 0, atol=1e-9)
