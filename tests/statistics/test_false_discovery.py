"""q-values: equal to SciPy's, undefined tests pass through, and the share of false findings holds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from cytolake.statistics.false_discovery import benjamini_hochberg


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_q_values_are_scipys(n):
    p = np.random.default_rng(n).random(n) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p, method="bh"), rtol=1e-12)


def test_an_undefined_test_passes_through_and_is_not_counted():
    p = np.array([0.01, np.nan, 0.04, 0.03, np.nan])
    q = benjamini_hochberg(p)
    assert np.isnan(q[[1, 4]]).all()
    np.testing.assert_allclose(q[[0, 2, 3]], false_discovery_control(p[[0, 2, 3]]))


def test_equal_p_values_have_equal_q_values():
    q = benjamini_hochberg([0.02, 0.5, 0.02, 0.02, 1.0])
    assert q[0] == q[2] == q[3] == pytest.approx(0.02 * 5 / 3)


def test_no_tests_have_no_q_values():
    assert benjamini_hochberg([]).shape == (0,)
    assert np.isnan(benjamini_hochberg([np.nan, np.nan])).all()


def test_a_twentieth_of_the_findings_is_false_at_most():
    rng = np.random.default_rng(0)
    false, found = 0.0, 0
    for _ in range(400):
        p = np.concatenate([rng.random(80), rng.beta(0.05, 10, 20)])
        passed = benjamini_hochberg(p) <= 0.05
        false += passed[:80].sum() / max(1, passed.sum())
        found += passed[80:].sum()
    assert false / 400 < 0.05  # 80 of 100 hypotheses are true: 0.04 expected
    assert found > 400 * 20 * 0.3


@pytest.mark.parametrize("p_values", [[0.1, 1.2], [-0.1], [[0.1], [0.2]]])
def test_what_is_no_p_value_is_refused(p_values):
    with pytest.raises(ValueError, match="expected one dimension and 0 to 1"):
        benjamini_hochberg(p_values)
