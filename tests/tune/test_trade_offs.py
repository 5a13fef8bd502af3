from __future__ import annotations

import numpy as np
import pytest

from cytolake.tune.trade_offs import adjusted, confusion_matrix, no_free_lunch_gap, recall_of_classes, trade_offs

VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)
CLASSES = ("helped", "harmed", "flat", "noise")


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
    label, told = random.integers(0, 6, 500), random.integers(0, 6, 500)
    found = confusion_matrix(label, told, 6)
    np.testing.assert_array_equal(found, oracle(label, told))
    np.testing.assert_allclose(recall_of_classes(found), recall_score(label, told, average=None))


def test_a_class_without_crops_has_no_recall():
    found = recall_of_classes(confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3))
    assert found[0] == 0.5
    assert np.isnan(found[1:]).all()


def test_classes_of_opposite_effects_are_a_pair():
    found = trade_offs(VALUES, recalls(np.random.default_rng(0)), CLASSES)
    assert found.pairs == [("helped", "harmed")]
    effect = {each.name: each for each in found.classes}
    assert effect["helped"].spearman > 0.9
    assert effect["helped"].best == 1.0
    assert effect["harmed"].best == 0.0
    assert effect["harmed"].spread == pytest.approx(0.3, abs=0.03)
    assert np.isnan(effect["flat"].spearman)
    assert found.gap > 0.05
    assert "helped (helped) and harmed (harmed)" in found.verdict


def test_correlations_are_spearmans():
    from scipy.stats import spearmanr

    recall = recalls(np.random.default_rng(1))
    found = trade_offs(VALUES, recall, CLASSES)
    for k in (0, 1, 3):
        expected = spearmanr(np.repeat(VALUES, 3), recall[..., k].ravel()).statistic
        assert found.classes[k].spearman == pytest.approx(expected)


def test_p_values_of_a_knob_without_effect_are_uniform():
    random = np.random.default_rng(2)
    p_values = [
        each.p_value
        for _ in range(40)
        for each in trade_offs(VALUES, random.normal(size=(5, 3, 5)), list("abcde"), n_permutations=199).classes
    ]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.06)


def test_a_knob_without_effect_says_so():
    found = trade_offs(VALUES, np.random.default_rng(3).normal(size=(5, 3, 4)), CLASSES)
    assert found.pairs == []
    assert "no pair of classes" in found.verdict
    assert "15 trainings" in found.verdict


def test_the_gap_is_never_below_0_and_0_where_one_value_is_best_for_all():
    random = np.random.default_rng(4)
    for _ in range(100):
        assert no_free_lunch_gap(random.random((5, 7))) >= 0
    assert no_free_lunch_gap(np.linspace(0, 1, 5)[:, None] * np.ones((1, 3))) == pytest.approx(0)


def test_adjusted_p_values_leave_missing_ones_out():
    found = adjusted(np.array([0.01, np.nan, 0.04]))
    np.testing.assert_allclose(found, [0.02, np.nan, 0.04])


@pytest.mark.parametrize(
    ("values", "change", "told"),
    [
        (VALUES[:4], lambda r: r, "expected .4 values, seeds, 4 classes."),
        (VALUES[:2], lambda r: r[:2], "three or more, increasing"),
        (VALUES[::-1], lambda r: r, "three or more, increasing"),
        (VALUES, lambda r: np.where(np.arange(4) == 2, np.nan, r), "class flat has no recall at value 0"),
    ],
)
def test_what_cannot_be_judged_is_told(values, change, told):
    with pytest.raises(ValueError, match=told):
        trade_offs(values, change(recalls(np.random.default_rng(0))), CLASSES)
