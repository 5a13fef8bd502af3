"""Units that a probe holds out whole, and their folds.

    plate, batch            wells that were prepared and imaged together
    row, column             wells of one row or column, on all plates
    column_block            neighbouring columns, on all plates: quarters of the plate
    well                    sets of wells, each with wells of every class; for screens of one plate
    leave_one_well_out      sets with one well of each class

W wells, U units, F folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.probe_data import ProbeData
from cytolake.benchmark.split import SplitBy
from cytolake.catalog.ids import content_id
from cytolake.storage.natural_order import natural_order

MAX_UNITS = 64
"""Most units; more plates are combined into as many groups, since an interval gains nothing from more."""
MAX_WELL_SETS = 10
MAX_LEFT_OUT = 24
"""Most sets of `leave_one_well_out`; each needs its own fits."""
N_COLUMN_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Units:
    """Units that are held out, and their folds."""

    kind: SplitBy
    names: tuple[str, ...]
    """U names."""
    of_well: NDArray[np.intp]
    """(W,) index into the names; -1 for a well without a class."""
    fold: NDArray[np.intp]
    """(U,) fold of each unit, 0 and up; units of one fold are held out together."""

    @property
    def n_folds(self) -> int:
        return int(self.fold.max()) + 1

    def is_held_out(self, folds: tuple[int, ...]) -> NDArray[np.bool_]:
        """(W,) True for wells of these folds."""
        return np.asarray((self.of_well >= 0) & np.isin(self.fold[self.of_well], folds))


def held_out_units(data: ProbeData, kind: SplitBy, held_out_share: float, seed: int, only: Sequence[str] = ()) -> Units:
    """Find the units of the wells with a class, and assign them to folds.

    Args:
        data: Wells with their plates, batches, rows, columns and classes.
        held_out_share: Share of the units in one fold; there are at least three folds where there are enough units.
        seed: Seed of the assignment, and of the sets of wells.
        only: Plates, batches, ... that are held out, by their name or the part after its `/`; all by default.

    Raises:
        ValueError: Fewer than two units, or positions that are not in the plate map.
    """
    used = np.flatnonzero(data.label_of_well >= 0)
    if kind in ("well", "leave_one_well_out"):
        name_of_well = _well_sets(data, used, kind, seed)
    else:
        groups = group_names(data, kind)
        name_of_well = {
            int(well): groups[well]
            for well in used
            if not only or groups[well] in only or groups[well].rsplit("/", 1)[-1] in only
        }
    names = sorted(set(name_of_well.values()), key=natural_order)
    if len(names) < 2:
        raise ValueError(
            f"probe.split is {kind}, and the wells with a {data.label} have {len(names)} of these "
            f"({', '.join(names) or 'none'}), expected 2 or more. Ingest more plates, or set probe.split=well for "
            "screens of one plate."
        )
    place = {name: i for i, name in enumerate(names)}
    shuffled = np.random.default_rng([seed, len(names)]).permutation(len(names))
    if len(names) > MAX_UNITS:
        group_of = np.empty(len(names), np.intp)
        group_of[shuffled] = np.arange(len(names)) % MAX_UNITS
        sizes = np.bincount(group_of)
        firsts = [names[int(np.flatnonzero(group_of == i)[0])] for i in range(MAX_UNITS)]
        place = {name: int(group_of[i]) for i, name in enumerate(names)}
        names = [f"{first} and {size - 1} more" for first, size in zip(firsts, sizes.tolist(), strict=True)]
        shuffled = np.arange(MAX_UNITS)
    of_well = np.full(len(data.well_ids), -1, np.intp)
    for well, name in name_of_well.items():
        of_well[well] = place[name]
    n_folds = len(names) if kind == "leave_one_well_out" else min(len(names), max(3, round(1 / held_out_share)))
    fold = np.empty(len(names), np.intp)
    fold[shuffled] = np.arange(len(names)) % n_folds
    return Units(kind, tuple(names), of_well, fold)


def group_names(data: ProbeData, kind: SplitBy) -> tuple[str, ...]:
    """(W,) plate, batch, row, column or block of columns of each well.

    Raises:
        ValueError: A split by position of wells whose position is not known.
    """
    if kind == "plate":
        return data.plates
    if kind == "batch":
        return data.batches
    if len(data.rows) != len(data.well_ids) or not all(data.rows):
        raise ValueError(
            f"probe.split is {kind}, and some wells have no row and column. Set probe.split=plate or well."
        )
    if kind == "row":
        return tuple(f"row {row}" for row in data.rows)
    if kind == "column":
        return tuple(f"column {column}" for column in data.columns)
    used = sorted({column for column, label in zip(data.columns, data.label_of_well, strict=True) if label >= 0})
    blocks = np.array_split(np.asarray(used), min(N_COLUMN_BLOCKS, len(used)))
    block_of = {int(c): f"columns {block[0]} to {block[-1]}" for block in blocks for c in block}
    return tuple(block_of.get(column, "") for column in data.columns)


def _well_sets(data: ProbeData, used: NDArray[np.intp], kind: SplitBy, seed: int) -> dict[int, str]:
    """Sets of wells, over which the wells of each class are spread evenly."""
    if data.is_pooled:
        return _pooled_well_sets(data, used, kind, seed)
    label_of_used = data.label_of_well[used]
    counts = np.bincount(label_of_used)
    counts = counts[counts > 0]
    if kind == "leave_one_well_out":
        n_sets = int(counts.max())
        if n_sets > MAX_LEFT_OUT:
            raise ValueError(
                f"probe.split is leave_one_well_out, and a class of {data.label} has {n_sets} wells, expected "
                f"{MAX_LEFT_OUT} or fewer: every set takes fits of its own. Set probe.split=well."
            )
    else:
        n_sets = int(min(MAX_WELL_SETS, max(2, np.median(counts))))
    sets: dict[int, str] = {}
    dealt = 0
    for label in np.unique(label_of_used).tolist():
        members = used[label_of_used == label]
        order = np.argsort([content_id("well set", seed, data.well_ids[well]) for well in members], kind="stable")
        for number, well in enumerate(members[order].tolist()):
            sets[well] = f"wells {(dealt + number) % n_sets + 1}"
        dealt += len(members)
    return sets


def _pooled_well_sets(data: ProbeData, used: NDArray[np.intp], kind: SplitBy, seed: int) -> dict[int, str]:
    """Sets of whole wells, each with all the classes that it holds."""
    wells = sorted({data.held_wells[i] for i in used.tolist()}, key=lambda well: content_id("well set", seed, well))
    if kind == "leave_one_well_out" and len(wells) > MAX_LEFT_OUT:
        raise ValueError(
            f"probe.split is leave_one_well_out, and there are {len(wells)} wells, expected {MAX_LEFT_OUT} or fewer: "
            "every set takes fits of its own. Set probe.split=well."
        )
    n_sets = len(wells) if kind == "leave_one_well_out" else min(MAX_WELL_SETS, len(wells))
    set_of = {well: f"wells {number % n_sets + 1}" for number, well in enumerate(wells)}
    return {i: set_of[data.held_wells[i]] for i in used.tolist()}
