"""The share that replicates: 5 % of nothing, all of a strong effect, and no plate effect where plates are matched."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cytolake.benchmark.perturbation_signal.percent_replicating import median_correlations, percent_replicating

D = 24


def screen(rng, n_perturbations, n_replicates, *, effect=0.0, plate_effect=0.0, one_plate_each=False, n_plates=4):
    """Replicate r of every perturbation is on plate r, or all replicates of a perturbation on one plate."""
    names = np.repeat(np.arange(n_perturbations), n_replicates)
    replicate = np.tile(np.arange(n_replicates), n_perturbations)
    plate = names % n_plates if one_plate_each else replicate % n_plates
    vectors = rng.normal(size=(len(names), D))
    vectors += effect * rng.normal(size=(n_perturbations, D))[names]
    vectors += plate_effect * rng.normal(size=(n_plates, D))[plate]
    return vectors, [f"p{name:03d}" for name in names], [f"P{each}" for each in plate]


@pytest.mark.parametrize("is_by_plate", [False, True])
def test_a_twentieth_of_perturbations_without_an_effect_replicates(is_by_plate):
    vectors, names, plates = screen(np.random.default_rng(0), 400, 4)
    found = percent_replicating(vectors, names, plates=plates if is_by_plate else None)
    assert found.share.total == 400
    assert abs(found.share.value - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 400)
    p = np.asarray(found.table["p_value"])
    assert abs(np.mean(p <= 0.2) - 0.2) < 3 * np.sqrt(0.2 * 0.8 / 400)
    assert np.min(found.table["q_value"]) > 0.05


def test_all_perturbations_with_a_strong_effect_replicate():
    vectors, names, plates = screen(np.random.default_rng(1), 60, 3, effect=2.0)
    for given in (None, plates):
        found = percent_replicating(vectors, names, plates=given)
        assert found.share.value == 1
        assert found.share.low > 0.9
        assert np.max(found.table["q_value"]) < 0.05


def test_what_plates_share_replicates_in_the_published_null_and_not_where_plates_are_matched():
    vectors, names, plates = screen(np.random.default_rng(2), 200, 3, plate_effect=1.0, one_plate_each=True)
    assert percent_replicating(vectors, names).share.value > 0.5
    matched = percent_replicating(vectors, names, plates=plates)
    assert abs(matched.share.value - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 200)


def test_scores_and_threshold_are_those_of_a_loop_over_all_pairs():
    rng = np.random.default_rng(3)
    vectors, names, _ = screen(rng, 12, 2, effect=1.0)
    vectors = 5 + 3 * vectors  # no Pearson correlation sees it
    found = percent_replicating(vectors, names, n_draws=20_000)
    correlation = np.corrcoef(vectors)
    others = [
        correlation[i, j] for i, j in itertools.combinations(range(len(names)), 2) if names[i] != names[j]
    ]  # of two replicates, the null is a pair of different perturbations
    rows = found.table.to_pylist()
    for row in rows:
        i, j = (k for k, name in enumerate(names) if name == row["perturbation"])
        assert row["median_correlation"] == pytest.approx(correlation[i, j], abs=1e-12)
        share = np.mean(np.asarray(others) >= correlation[i, j])
        assert row["p_value"] == pytest.approx(share, abs=5 * np.sqrt(max(share, 1e-3) / 20_000))
    rank = np.mean(np.asarray(others) < rows[0]["threshold"])
    assert rank == pytest.approx(0.95, abs=0.01)  # 264 pairs: a step is .004


def test_the_median_is_over_all_pairs_of_replicates():
    rows = np.random.default_rng(4).normal(size=(1, 4, D))
    rows -= rows.mean(axis=2, keepdims=True)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    pairs = [rows[0, i] @ rows[0, j] for i, j in itertools.combinations(range(4), 2)]
    assert median_correlations(rows)[0] == pytest.approx(np.median(pairs), abs=1e-12)


def test_more_replicates_are_compared_with_a_null_of_as_many():
    """The median of many pairs varies less: a null of pairs alone would call fewer than 5 % of large perturbations."""
    rng = np.random.default_rng(5)
    many, few = screen(rng, 60, 6), screen(rng, 60, 2)
    vectors = np.concatenate([many[0], few[0]])
    names = [f"many{name}" for name in many[1]] + [f"few{name}" for name in few[1]]
    of = {row["perturbation"]: row for row in percent_replicating(vectors, names).table.to_pylist()}
    thresholds = [{of[name]["threshold"] for name in of if name.startswith(kind)} for kind in ("many", "few")]
    assert [len(each) for each in thresholds] == [1, 1]
    assert max(thresholds[0]) < 0.5 * max(thresholds[1])


def test_wells_and_perturbations_that_cannot_be_compared_stay_with_a_reason():
    vectors, names, plates = screen(np.random.default_rng(6), 10, 3, effect=1.0)
    vectors[0] = np.nan
    vectors[1] = 7.0  # constant: no correlation
    plates[-3:] = ["alone"] * 3
    found = percent_replicating(vectors, names, plates=plates)
    assert found.n_left_out == 2
    rows = {row["perturbation"]: row for row in found.table.to_pylist()}
    assert rows["p000"]["reason"] == "1 usable wells, expected 2 or more"
    assert rows["p009"]["reason"] == "fewer than 3 perturbations to draw wells of on its plates"
    assert rows["p009"]["q_value"] is None
    assert found.share.total == 8


def test_of_very_many_replicates_a_sample_is_compared_and_the_same_each_time():
    vectors, names, _ = screen(np.random.default_rng(7), 30, 4, effect=1.0)
    names = ["control"] * 40 + names[40:]
    first, again = (percent_replicating(vectors, names, max_wells=8, n_draws=99) for _ in range(2))
    assert first.table.equals(again.table)
    assert first.table.to_pylist()[0] | {"n_wells": 40} == first.table.to_pylist()[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plates": ["P"]}, "1 plates for 30 wells"),
        ({"n_draws": 5}, "n_draws is 5"),
        ({"perturbations": [f"p{i}" for i in range(30)]}, "none of 30 perturbations has replicates"),
        ({"vectors": np.zeros((30, 1))}, "with 2 features or more"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, said):
    vectors, names, _ = screen(np.random.default_rng(8), 10, 3)
    with pytest.raises(ValueError, match=said):
        percent_replicating(**{"vectors": vectors, "perturbations": names, **change})
