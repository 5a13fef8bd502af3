"""Shares and their intervals against SciPy's."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from cytolake.statistics.shares import share_of


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (0, 40), (3, 40), (40, 40), (1, 2), (712, 5000)])
def test_the_interval_of_a_share_is_scipys_wilson_interval(hits, total):
    share = share_of(hits, total)
    expected = stats.binomtest(hits, total).proportion_ci(method="wilson")
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.value == hits / total


def test_a_share_of_nothing_is_undefined_and_more_hits_than_things_are_refused():
    assert math.isnan(share_of(0, 0).value)
    with pytest.raises(ValueError, match="5 hits of 4"):
        share_of(5, 4)
