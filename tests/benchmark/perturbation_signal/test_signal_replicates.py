"""Replicate consistency across experiments, against scipy and loops."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from cytolake.benchmark.perturbation_signal import replicate_consistency as replicates
from cytolake.benchmark.perturbation_signal.replicate_consistency import replicate_consistency


def make_map(n_perturbations=20, n_experiments=3, *, strength=2.0, shift=0.0, dim=8, n_wells=1, seed=0):
    random = np.random.default_rng(seed)
    directions = strength * random.normal(size=(n_perturbations, dim))
    offsets = shift * random.normal(size=(n_experiments, dim))
    p, e = (x.ravel() for x in np.meshgrid(np.arange(n_perturbations), np.arange(n_experiments), indexing="ij"))
    p, e = np.repeat(p, n_wells), np.repeat(e, n_wells)
    vectors = directions[p] + offsets[e] + random.normal(size=(len(p), dim))
    return vectors, [f"gene {i:03d}" for i in p], [f"experiment {i}" for i in e]


def all_pairs(vectors, names, experiments):
    """Cosines of every pair of replicates, and of every pair of others, over two experiments: by loops."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same, different = [], []
    for i, j in combinations(range(len(names)), 2):
        if experiments[i] != experiments[j]:
            (same if names[i] == names[j] else different).append(unit[i] @ unit[j])
    return np.asarray(same), np.asarray(different)


def test_the_scores_are_scipys_on_the_pairs_of_the_definition():
    """The query pairs are all of them; of the others a sample, so the scores agree within its error."""
    arguments = make_map(60, 3, strength=1.0)
    result = replicate_consistency(*arguments, bootstrap_draws=20)
    same, different = all_pairs(*arguments)
    assert result.n_pairs == result.n_pairs_in_all == len(same) == 180
    ks = stats.ks_2samp(same, different).statistic
    assert result.kolmogorov_smirnov.value == pytest.approx(ks, abs=3 * np.sqrt(0.25 / 180))
    # The same number of pairs on both sides, drawn by hand over and over.
    random = np.random.default_rng(0)
    by_hand = [
        stats.cramervonmises_2samp(same, random.choice(different, 180, replace=False), method="asymptotic").statistic
        for _ in range(60)
    ]
    assert np.min(by_hand) < result.cramer_von_mises.value < np.max(by_hand)


def test_the_pairs_are_of_one_perturbation_and_of_two_always_over_two_experiments(monkeypatch):
    """Vectors that spell who they are: the cosines that are taken are looked at themselves."""
    seen = []
    real = replicates._cosines
    monkeypatch.setattr(replicates, "_cosines", lambda unit, a, b: seen.append((a, b)) or real(unit, a, b))
    vectors, names, experiments = make_map(7, 4, n_wells=3)
    result = replicate_consistency(vectors, names, experiments, bootstrap_draws=5)
    cells = sorted(set(zip(names, experiments, strict=True)))
    (one, other), (anchor, stranger) = seen
    assert result.n_pairs == len(one) == 7 * 6
    assert len({frozenset(pair) for pair in zip(one.tolist(), other.tolist(), strict=True)}) == 42
    for i, j, a, k in zip(one, other, anchor, stranger, strict=True):
        assert a == i
        assert cells[i][0] == cells[j][0] != cells[k][0]
        assert cells[i][1] != cells[j][1] == cells[k][1]


def test_the_resampled_scores_of_the_data_itself_are_scipys():
    """With all weights 1 the weighted scores are those of the two samples."""
    arguments = make_map(30, 3, strength=0.7)
    result = replicate_consistency(*arguments, bootstrap_draws=5)
    random = np.random.default_rng(1)
    query, null = random.normal(size=50) + 0.5, random.normal(size=50)

    ks, per_pair = replicates._Distances(query, null).of(np.ones(50), np.ones(50))
    assert ks == pytest.approx(stats.ks_2samp(query, null).statistic, abs=1e-12)
    expected = stats.cramervonmises_2samp(query, null).statistic
    assert per_pair * 50 / 2 == pytest.approx(expected, abs=1e-9)
    assert result.cramer_von_mises_per_pair.value * result.n_pairs / 2 == pytest.approx(result.cramer_von_mises.value)


def test_effects_raise_the_scores_and_batch_shifts_lower_them():
    none, weak, strong = (
        replicate_consistency(*make_map(40, 3, strength=s), bootstrap_draws=50).kolmogorov_smirnov
        for s in (0.0, 0.7, 4.0)
    )
    assert none.value < 0.3 < weak.value < strong.value
    assert strong.value > 0.95
    assert weak.low < weak.value < weak.high
    assert none.high < strong.low
    shifted = replicate_consistency(*make_map(40, 3, strength=0.7, shift=3.0), bootstrap_draws=5).kolmogorov_smirnov
    assert shifted.value < weak.value


def test_the_size_of_the_sample_moves_t_and_not_its_corrected_form():
    arguments = make_map(200, 4, strength=1.0)
    small, large = (replicate_consistency(*arguments, max_pairs=n, bootstrap_draws=20) for n in (200, 1000))
    assert (small.n_pairs, large.n_pairs, small.n_pairs_in_all) == (200, 1000, 1200)
    assert large.cramer_von_mises.value > 3 * small.cramer_von_mises.value
    assert large.cramer_von_mises_per_pair.value == pytest.approx(small.cramer_von_mises_per_pair.value, rel=0.3)


def test_wells_of_one_experiment_are_averaged_first_and_their_order_does_not_matter():
    vectors, names, experiments = make_map(n_wells=4)
    unique = sorted(set(zip(names, experiments, strict=True)))
    means = np.asarray(
        [
            vectors[[i for i, key in enumerate(zip(names, experiments, strict=True)) if key == cell]].mean(axis=0)
            for cell in unique
        ]
    )
    expected = replicate_consistency(means, [p for p, _ in unique], [e for _, e in unique], bootstrap_draws=10)
    order = np.random.default_rng(1).permutation(len(names))
    result = replicate_consistency(
        vectors[order], [names[i] for i in order], [experiments[i] for i in order], bootstrap_draws=10
    )
    assert result.kolmogorov_smirnov.value == expected.kolmogorov_smirnov.value
    assert result.cramer_von_mises.value == pytest.approx(expected.cramer_von_mises.value)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of many small maps, against a large one of the same kind; a coarse check of a 95 % interval."""
    truth = replicate_consistency(
        *make_map(4000, 2, strength=1.0, seed=900), bootstrap_draws=5
    ).kolmogorov_smirnov.value
    held = [
        interval.low <= truth <= interval.high
        for interval in (
            replicate_consistency(*make_map(150, 2, strength=1.0, seed=seed), bootstrap_draws=100).kolmogorov_smirnov
            for seed in range(40)
        )
    ]
    assert np.mean(held) > 0.75  # 88 % over 150 maps


def test_rows_that_are_not_finite_are_left_out_and_integers_are_accepted():
    vectors, names, experiments = make_map()
    broken = vectors.copy()
    broken[0, 0] = np.nan
    result = replicate_consistency(broken, names, experiments, bootstrap_draws=5)
    assert result.n_not_finite == 1
    assert result.n_pairs == 20 * 3 - 2
    rounded = np.round(vectors * 10)
    whole = replicate_consistency(rounded.astype(np.int16), names, experiments, bootstrap_draws=5)
    assert whole.kolmogorov_smirnov.value == (
        replicate_consistency(rounded, names, experiments, bootstrap_draws=5).kolmogorov_smirnov.value
    )


def test_vectors_that_are_all_equal_score_zero():
    _, names, experiments = make_map()
    result = replicate_consistency(np.ones((len(names), 4)), names, experiments, bootstrap_draws=5)
    assert result.kolmogorov_smirnov.value == result.kolmogorov_smirnov.high == 0
    assert result.cramer_von_mises_per_pair.high == 0


def test_a_pair_in_an_experiment_without_others_is_left_out_and_counted():
    vectors, names, experiments = make_map(5, 2)
    lonely = replicate_consistency(
        np.vstack([vectors, vectors[:1]]), [*names, names[0]], [*experiments, "alone"], bootstrap_draws=5
    )
    assert lonely.n_pairs + lonely.n_unmatched == lonely.n_pairs_in_all == 7


def test_maps_without_replicates_or_without_others_are_refused():
    vectors, names, experiments = make_map()
    with pytest.raises(ValueError, match=r"no perturbation of 20 has finite rows in 2 of 1 experiments"):
        replicate_consistency(vectors, names, ["one"] * len(names))
    with pytest.raises(ValueError, match="holds no other perturbation"):
        replicate_consistency(vectors[:2], ["a", "a"], ["x", "y"])
    with pytest.raises(ValueError, match="has finite rows in 2 of"):
        replicate_consistency(np.full_like(vectors, np.nan), names, experiments)
    with pytest.raises(ValueError, match="59 experiments"):
        replicate_consistency(vectors, names, experiments[:59])
    with pytest.raises(ValueError, match="max_pairs is 0"):
        replicate_consistency(vectors, names, experiments, max_pairs=0)


def test_the_interval_of_few_perturbations_holds_the_distance_of_many():
    """Pairs resampled as if those with others were their own held it in 72 to 82 %."""
    for strength, least in ((0.0, 0.87), (0.7, 0.85)):
        many = np.mean([
            replicate_consistency(*make_map(600, 2, strength=strength, seed=seed), bootstrap_draws=1)
            .kolmogorov_smirnov.value for seed in range(2)
        ])  # fmt: skip
        found = [
            replicate_consistency(*make_map(20, 2, strength=strength, seed=100 + seed), bootstrap_draws=60)
            for seed in range(40)
        ]
        held = np.mean([each.kolmogorov_smirnov.low <= many <= each.kolmogorov_smirnov.high for each in found])
        assert held >= least
