from __future__ import annotations

import numpy as np
import pytest

from cytolake.tune.trade_offs import confusion_matrix, recall_of_classes, trade_offs

VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)
CLASSES = ("gains", "loses", "flat", "noise")


def recalls(random, n_seeds=3):
    """(S, R, K): one class that gains, one that loses, one that never changes, one that changes at random."""
    x = np.array(VALUES)[:, None] + np.zeros((5, n_seeds))
    noise = 0.01 * random.normal(size=(5, n_seeds, 3))
    return np.stack(
        [0.4 + 0.4 * x + noise[..., 0], 0.9 - 0.3 * x + noise[..., 1], np.full_like(x, 0.5), 0.6 + 5 * noise[..., 2]],
        axis=-1,
    )


def test_the_confusion_of_all_crops_is_that_of_scikit_learn():
    from sklearn.metrics import confusion_matrix as oracle
    from sklearn.metrics import recall_score

    random = np.random.default_rng(0)
    label, predicted = random.integers(0, 6, 500), random.integers(0, 6, 500)
    found = confusion_matrix(label, predicted, 6)
    np.testing.assert_array_equal(found, oracle(label, predicted))
    np.testing.assert_allclose(recall_of_classes(found), recall_score(label, predicted, average=None))


def test_a_class_without_crops_has_no_recall():
    found = recall_of_classes(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3))
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()


def test_classes_of_opposite_effects_are_a_pair():
    found = trade_offs(VALUES, recalls(np.random.default_rng(0)), CLASSES)
    assert found.pairs == [("gains", "loses")]
    assert (found.improved, found.worsened) == (["gains"], ["loses"])
    effect = {each.name: each for each in found.classes}
    assert effect["gains"].spearman > 0.9
    assert effect["gains"].trend == pytest.approx(1, abs=0.1)
    assert effect["gains"].best == 1.0
    assert effect["loses"].best == 0.0
    assert effect["loses"].spread == pytest.approx(0.3, abs=0.03)
    assert np.isnan([effect["flat"].spearman, effect["flat"].p_value, effect["flat"].q_value]).all()
    assert found.gap.is_evident
    assert found.verdict.startswith(
        "One pair of classes responds in opposite directions, such as gains (improves) and "
    )


def test_the_spread_by_chance_is_the_spread_of_a_class_without_effect():
    random = np.random.default_rng(5)
    classes = [f"{k}" for k in range(200)]
    shift, noise = 0.06 * random.normal(size=(1, 3, 200)), 0.02 * random.normal(size=(5, 3, 200))
    without = trade_offs(VALUES, 0.4 + shift + noise, classes, n_permutations=199).classes
    strong = trade_offs(
        VALUES, 0.4 + 0.3 * np.array(VALUES)[:, None, None] + shift + noise, classes, n_permutations=199
    )
    mean = np.mean([each.spread for each in without])
    assert np.mean([each.spread_by_chance for each in without]) == pytest.approx(mean, rel=0.05)
    # An effect does not count as noise: its spread would be three times what chance gives otherwise.
    assert np.mean([each.spread_by_chance for each in strong.classes]) == pytest.approx(mean, rel=0.15)


def test_correlations_of_all_trainings_are_spearmans():
    from scipy.stats import spearmanr

    recall = recalls(np.random.default_rng(1))
    found = trade_offs(VALUES, recall, CLASSES)
    for k in (0, 1, 3):
        expected = spearmanr(np.repeat(VALUES, 3), recall[..., k].ravel()).statistic
        assert found.classes[k].spearman == pytest.approx(expected)


def p_values(n_simulations: int, slope: float, seed_sd: float) -> np.ndarray:
    """Of 14 classes in each simulation: recall .4 at the first value, noise of sd .02, seeds that shift every class."""
    random = np.random.default_rng(2)
    response = np.linspace(0, slope, 5)[:, None, None]
    found = []
    for _ in range(n_simulations):
        shift = seed_sd * random.normal(size=(1, 3, 14))
        recall = 0.4 + response + shift + 0.02 * random.normal(size=(5, 3, 14))
        found += [
            each.p_value for each in trade_offs(VALUES, recall, list("abcdefghijklmn"), n_permutations=19).classes
        ]
    return np.array(found)


@pytest.mark.parametrize("seed_sd", [0.0, 0.06])
def test_p_values_of_a_setting_without_effect_are_uniform_whatever_the_seeds_do(seed_sd):
    found = p_values(60, 0.0, seed_sd)
    # 840 p-values: 3 sd of a share of .05 are .023. With values exchanged between seeds too the share is .004.
    assert np.mean(found < 0.05) == pytest.approx(0.05, abs=0.025)
    assert np.mean(found) == pytest.approx(0.5, abs=0.04)


def test_a_slope_is_found_although_seeds_differ_as_much():
    # 560 p-values: 3 sd of a share of .89 are .04. With values exchanged between seeds too the share is .28.
    assert np.mean(p_values(40, 0.06, 0.06) < 0.05) > 0.85


def test_a_setting_without_effect_says_so():
    found = trade_offs(VALUES, np.random.default_rng(3).normal(size=(5, 3, 4)), CLASSES)
    assert found.pairs == []
    assert found.verdict.count("No evidence") == 2
    assert "15 trainings" in found.verdict
    assert "gain" not in found.verdict.replace("gains", "")


def test_many_improved_classes_do_not_make_a_false_pair_likely():
    """Ten of 15 classes improve, none worsens. With one family of tests, pairs are several times as common."""
    random = np.random.default_rng(4)
    response = np.linspace(0, 1, 5)[:, None, None] * np.where(np.arange(15) < 10, 0.3, 0.0)
    found = [
        trade_offs(VALUES, response + 0.02 * random.normal(size=(5, 3, 15)), list("abcdefghijklmno"), n_permutations=19)
        for _ in range(100)
    ]
    assert np.mean([len(each.improved) for each in found]) > 9.9
    assert np.mean([bool(each.pairs) for each in found]) < 0.06


@pytest.mark.parametrize(("n_seeds", "least"), [(1, "0.33"), (2, "0.056")])
def test_too_few_trainings_for_any_evidence_are_reported(n_seeds, least):
    recall = np.stack([np.linspace(0, 1, 3), np.linspace(1, 0, 3)], axis=1)[:, None] * np.ones((1, n_seeds, 1))
    found = trade_offs((0.0, 0.5, 1.0), recall, ("up", "down"))
    assert found.pairs == []
    assert f"{3 * n_seeds} of them cannot give a p-value below {least}. Add seeds or strengths." in found.verdict


@pytest.mark.parametrize(
    ("values", "change", "message"),
    [
        (VALUES[:4], lambda r: r, "expected .4 values, seeds, 4 classes."),
        (VALUES[:2], lambda r: r[:2], "three or more, increasing"),
        (VALUES[::-1], lambda r: r, "three or more, increasing"),
        (VALUES, lambda r: np.where(np.arange(4) == 2, np.nan, r), "class flat has no recall at value 0"),
    ],
)
def test_what_cannot_be_judged_is_refused(values, change, message):
    with pytest.raises(ValueError, match=message):
        trade_offs(values, change(recalls(np.random.default_rng(0))), CLASSES)
