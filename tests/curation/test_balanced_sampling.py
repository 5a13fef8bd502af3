from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolake.curation.balanced_sampling import balanced_choice, fair_shares


def one_each_in_turn(sizes, total: int) -> list[int]:
    """Give every group one, and again, until nothing is left to give."""
    shares = [0] * len(sizes)
    while total and any(share < size for share, size in zip(shares, sizes, strict=True)):
        for group, size in enumerate(sizes):
            if shares[group] < size and total:
                shares[group] += 1
                total -= 1
    return shares


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(0, 100))
@settings(deadline=None)
def test_shares_are_what_giving_one_each_in_turn_gives(sizes, total):
    assert fair_shares(sizes, total).tolist() == one_each_in_turn(sizes, total)


def items(n: int = 600, seed: int = 0):
    """Clusters of very different sizes, treatments within them, and a random rank for each item."""
    rng = np.random.default_rng(seed)
    clusters = np.minimum(rng.geometric(0.4, n), 6) - 1
    return clusters, rng.integers(0, 4, n), rng.permutation(n)


@pytest.mark.parametrize("total", [1, 300, 10_000])
def test_the_requested_number_is_chosen_and_small_groups_whole_before_large_ones(total):
    clusters, treatments, rank = items()
    chosen = balanced_choice([clusters, treatments], rank, total)
    assert chosen.sum() == min(total, len(rank))
    sizes, kept = np.bincount(clusters), np.bincount(clusters[chosen], minlength=6)
    assert kept.max() - 1 <= kept[kept < sizes].min(initial=len(rank))


def test_within_a_group_the_next_level_is_fair_too():
    clusters, treatments, rank = items()
    chosen = balanced_choice([clusters, treatments], rank, 120)
    for cluster in range(6):
        of_cluster = clusters == cluster
        sizes = np.bincount(treatments[of_cluster], minlength=4)
        kept = np.bincount(treatments[of_cluster & chosen], minlength=4)
        assert kept.max() - 1 <= kept[kept < sizes].min(initial=len(rank))


def test_no_group_gives_more_than_its_cap_and_smaller_groups_give_all():
    clusters, treatments, rank = items()
    chosen = balanced_choice([clusters, treatments], rank, None, per_group=40)
    np.testing.assert_array_equal(np.bincount(clusters[chosen], minlength=6), np.minimum(np.bincount(clusters), 40))


def test_the_order_in_which_items_come_changes_nothing():
    clusters, treatments, rank = items()
    chosen = balanced_choice([clusters, treatments], rank, 100)
    order = np.random.default_rng(1).permutation(len(rank))
    again = balanced_choice([clusters[order], treatments[order]], rank[order], 100)
    np.testing.assert_array_equal(again, chosen[order])


def test_a_larger_number_keeps_what_a_smaller_one_kept():
    clusters, _, rank = items()
    small, large = (balanced_choice([clusters], rank, total) for total in (60, 180))
    assert not (small & ~large).any()
