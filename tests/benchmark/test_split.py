"""Who is held out, and how often."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytolake.benchmark.split import classes_in_both, hold_out_groups, hold_out_wells


@settings(deadline=None)
@given(n_groups=st.integers(2, 9), share=st.floats(0.05, 0.95), n_seeds=st.integers(1, 12))
def test_splits_are_distinct_as_long_as_there_are_distinct_ones(n_groups, share, n_seeds):
    groups = [f"P{i % n_groups}" for i in range(3 * n_groups)]
    splits = hold_out_groups(groups, share, range(n_seeds))
    size = min(max(1, round(share * n_groups)), n_groups - 1)
    n_distinct = sum(math.comb(n_groups, k) for k in range(size, max(size, n_groups // 2) + 1))
    assert len({split.held_out for split in splits}) == min(n_seeds, n_distinct)


def test_a_group_is_whole_in_one_part_and_both_parts_have_groups():
    groups = ["P0", "P0", "P1", "P1", "P2"]
    for split in hold_out_groups(groups, 0.5, range(6)):
        for group in set(groups):
            assert len({bool(test) for test, name in zip(split.is_test, groups, strict=True) if name == group}) == 1
        assert split.is_test.any()
        assert not split.is_test.all()
        assert {name for name, test in zip(groups, split.is_test, strict=True) if test} == set(split.held_out)


def test_every_plate_has_its_turn_before_any_has_a_second():
    splits = hold_out_groups([f"P{i}" for i in range(8)], 0.25, range(4))
    assert Counter(name for split in splits for name in split.held_out) == Counter({f"P{i}": 1 for i in range(8)})


def test_a_seed_gives_the_same_split_whatever_other_seeds_there_are():
    groups = [f"P{i}" for i in range(6)]
    alone = hold_out_groups(groups, 0.3, [4])[0]
    among = hold_out_groups(groups, 0.3, range(8))[4]
    assert alone.held_out == among.held_out
    assert alone.held_out == hold_out_groups(groups[::-1], 0.3, [4])[0].held_out


def test_one_plate_cannot_be_split_by_plate():
    with pytest.raises(ValueError, match=r"found 1 group .*probe\.split=well"):
        hold_out_groups(["P0", "P0"], 0.25, [0])


def test_well_splits_leave_every_class_of_two_wells_in_both_parts():
    labels = ["a"] * 2 + ["b"] * 8 + ["c"]
    wells = [f"W{i}" for i in range(len(labels))]
    label_W = np.asarray([0] * 2 + [1] * 8 + [2])
    splits = hold_out_wells(wells, labels, 0.25, range(5))
    for split in splits:
        assert classes_in_both(label_W, split.is_test).tolist() == [0, 1]
        assert split.is_test.sum() == 1 + 2
    assert len({split.held_out for split in splits}) > 1
    assert hold_out_wells(wells, labels, 0.25, [0], stream=1)[0].held_out != splits[0].held_out


def test_wells_without_a_label_are_no_class():
    assert classes_in_both(np.asarray([-1, -1, 0, 0]), np.asarray([True, False, True, False])).tolist() == [0]
