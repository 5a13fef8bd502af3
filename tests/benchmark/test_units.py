"""What a probe holds out: every well once, and nothing of a unit in two folds."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from cytolake.benchmark.probe_data import ProbeData
from cytolake.benchmark.split import SPLITS
from cytolake.benchmark.units import MAX_UNITS, held_out_units

N_ROWS, N_COLUMNS = 4, 8


def make_data(n_plates: int = 4, n_classes: int = 4, label: str = "perturbation") -> ProbeData:
    """Plates of 4 x 8 wells; the class goes round along the columns, the first column holds controls."""
    places = list(itertools.product(range(n_plates), range(N_ROWS), range(N_COLUMNS)))
    labels = [-1 if column == 0 else (row + column) % n_classes for _, row, column in places]
    return ProbeData(
        crop_ids=tuple(f"c{i}" for i in range(len(places))),
        well_of_crop=np.arange(len(places)),
        well_ids=tuple(f"w{i:04d}" for i in range(len(places))),
        plates=tuple(f"s/P{p}" for p, _, _ in places),
        batches=tuple(f"s/B{p // 2}" for p, _, _ in places),
        is_control=np.asarray([value < 0 for value in labels]),
        classes=tuple("abcdefgh"[:n_classes]),
        label_of_well=np.asarray(labels),
        label=label,
        rows=tuple("ABCD"[row] for _, row, _ in places),
        columns=tuple(column + 1 for _, _, column in places),
    )


@pytest.mark.parametrize("kind", SPLITS)
def test_every_well_with_a_class_is_held_out_once_and_with_its_unit(kind):
    data = make_data(n_classes=5)
    units = held_out_units(data, kind, 0.25, seed=0)
    times = sum(units.is_held_out((fold,)).astype(int) for fold in range(units.n_folds))
    np.testing.assert_array_equal(times, (data.label_of_well >= 0).astype(int))
    assert sorted(set(units.of_well[data.label_of_well >= 0].tolist())) == list(range(len(units.names)))
    if kind in ("plate", "batch"):
        groups = data.plates if kind == "plate" else data.batches
        assert {units.names[u] for u in units.of_well if u >= 0} == set(groups)
        for well, unit in enumerate(units.of_well):
            assert unit < 0 or units.names[unit] == groups[well]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("plate", 4), ("batch", 2), ("row", 4), ("column", 7), ("column_block", 4), ("well", 10),
        ("leave_one_well_out", 24),
    ],
)  # fmt: skip
def test_units_are_what_their_name_says(kind, expected):
    data = make_data(n_classes=5) if kind == "leave_one_well_out" else make_data()
    assert len(held_out_units(data, kind, 0.25, seed=0).names) == expected


def test_blocks_of_columns_are_neighbours():
    units = held_out_units(make_data(), "column_block", 0.25, seed=0)
    assert units.names == ("columns 2 to 3", "columns 4 to 5", "columns 6 to 7", "columns 8 to 8")


def test_leaving_one_well_out_takes_one_well_of_a_class_at_most():
    data = make_data(n_classes=5)
    units = held_out_units(data, "leave_one_well_out", 0.25, seed=0)
    for fold in range(units.n_folds):
        labels = data.label_of_well[units.is_held_out((fold,))]
        assert len(labels) == len(set(labels.tolist()))


def test_sets_of_wells_hold_as_much_of_every_class_as_can_be():
    data = make_data()
    units = held_out_units(data, "well", 0.25, seed=0)
    for label in range(4):
        sizes = np.bincount(units.of_well[data.label_of_well == label], minlength=len(units.names))
        assert sizes.max() - sizes.min() <= 1


def test_another_seed_deals_other_folds_and_the_order_of_wells_does_not_matter():
    data = make_data(n_plates=12)
    one, other = (held_out_units(data, "plate", 0.25, seed=seed) for seed in (0, 1))
    assert one.names == other.names
    assert not np.array_equal(one.fold, other.fold)
    assert one.n_folds == 4
    assert np.bincount(one.fold).tolist() == [3, 3, 3, 3]


def test_many_plates_are_scored_in_groups():
    data = make_data(n_plates=MAX_UNITS + 36)
    units = held_out_units(data, "plate", 0.25, seed=0)
    assert len(units.names) == MAX_UNITS
    assert sum(int(name.split(" and ")[1].split()[0]) + 1 for name in units.names) == MAX_UNITS + 36
    of_plate: dict[str, set[int]] = {}
    for well, unit in enumerate(units.of_well.tolist()):
        if unit >= 0:
            of_plate.setdefault(data.plates[well], set()).add(unit)
    assert {len(found) for found in of_plate.values()} == {1}


def test_plates_that_are_not_named_are_fitted_on_and_never_scored():
    data = make_data(n_plates=6)
    units = held_out_units(data, "plate", 0.25, seed=0, only=("P0", "s/P2", "P5"))
    assert units.names == ("s/P0", "s/P2", "s/P5")
    held_out = np.any([units.is_held_out((fold,)) for fold in range(units.n_folds)], axis=0)
    assert {data.plates[well] for well in np.flatnonzero(held_out)} == set(units.names)


def test_what_cannot_be_held_out_is_refused_with_what_to_do():
    data = make_data(n_plates=1)
    with pytest.raises(ValueError, match=r"have 1 of these \(s/P0\), expected 2 or more.*probe\.split=well"):
        held_out_units(data, "plate", 0.25, seed=0)
    with pytest.raises(ValueError, match="some wells have no row and column"):
        held_out_units(dataclasses.replace(data, rows=(), columns=()), "row", 0.25, seed=0)
    with pytest.raises(ValueError, match="a class of perturbation has 56 wells, expected 24 or fewer"):
        held_out_units(make_data(n_plates=8), "leave_one_well_out", 0.25, seed=0)
