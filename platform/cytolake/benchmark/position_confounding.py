"""Confounding of labels with the position, plate or batch of wells, by prediction from the layout alone.

- `position_confounding`: balanced accuracy of a classifier that sees one fact about a well's place, compared with
  random layouts.
- `same_positions`: labels whose wells are at the same positions on every plate.

Shapes: N wells, K classes, V values of a factor, B layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cytolake.benchmark.split import Split, classes_in_both, hold_out_groups, hold_out_wells
from cytolake.catalog.ids import content_id
from cytolake.screens.plate_format import plate_format
from cytolake.statistics.false_discovery import holm
from cytolake.statistics.p_values import permutation_p_value

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
Factor = Literal["row", "column", "edge", "well", "plate", "batch"]
Smoothing = Callable[[Floats], Floats]

ALPHA = 0.05
LEAST_GAIN, LEAST_FACTOR = 0.1, 2.0
"""An accuracy below both limits does not matter: excess over chance as a share of 1 - chance, multiple of chance."""
N_SPLITS = 5
HELD_OUT_SHARE = 0.25
MAX_CLASSES = 500
"""Most classes; a random sample of more, to keep the tables of classes by positions small."""
MAX_WELLS = 20_000
"""Most wells; a random sample of more."""
BANDWIDTH_WELLS = 0.5
"""Bandwidth of the Gaussian weights by distance: a direct neighbour has exp(-2) of the weight of the same position."""
TIE = 1e-9
CELLS_AT_ONCE = 2_000_000  # of the tables of several random layouts, 16 MB

_SEEN: dict[Factor, str] = {
    "row": "the row", "column": "the column", "edge": "the distance to the plate's edge",
    "well": "the position on the plate", "plate": "the plate", "batch": "the batch",
}  # fmt: skip
_ADVICE: dict[Factor, str] = {
    "row": "position effects. Compare with the split `row`, or randomise positions.",
    "column": "position effects. Compare with the split `column_block`, or randomise positions.",
    "edge": "edge effects. Leave the edge wells out and compare, or randomise positions.",
    "well": "position effects. Compare with the split `column_block`, or randomise positions.",
    "plate": "plate effects. Compare with the split `plate`, or replicate the labels over plates.",
    "batch": "batch effects. Compare with the split `batch`, or replicate the labels over batches.",
}


class WellPlace(NamedTuple):
    """Plate, position and batch of a well."""

    plate: str
    row: int | None
    """0 is A; None where the well has no position."""
    column: int | None
    """0 is the first column."""
    batch: str


@dataclass(frozen=True, slots=True)
class PositionConfounding:
    """Result of a classifier that sees one fact about a well's place and nothing else."""

    label: str
    """Label that is predicted, such as `pathway`."""
    factor: Factor
    """Input of the classifier: `edge` is the distance to the plate's edge in wells, `well` the row and the column."""
    balanced_accuracy: float
    """On held-out wells, mean over splits."""
    chance: float
    """1 / K."""
    null_low: float
    """95 % range of the balanced accuracy over random layouts of the same wells; low end."""
    null_high: float
    p_value: float
    """p-value against random layouts, adjusted for all factors of the label by Holm's method."""
    n_wells: int
    n_classes: int
    n_classes_in_all: int
    """More than `n_classes` where a random sample of the classes was tested, or a class has one well."""

    @property
    def is_confounded(self) -> bool:
        """Whether the accuracy is above that of random layouts and far enough above chance to matter for a score."""
        is_large = (
            self.balanced_accuracy - self.chance >= LEAST_GAIN * (1 - self.chance)
            or self.balanced_accuracy >= LEAST_FACTOR * self.chance
        )
        return self.p_value <= ALPHA and is_large

    @property
    def sentence(self) -> str:
        """The result in one sentence, for a page or a terminal."""
        seen = _SEEN[self.factor]
        numbers = (
            f"(balanced accuracy {self.balanced_accuracy:.2f}, chance {self.chance:.2f}, random layouts "
            f"{self.null_low:.2f} to {self.null_high:.2f})"
        )
        if not self.is_confounded:
            return f"{self.label} cannot be predicted from {seen} alone {numbers}."
        part = "" if self.balanced_accuracy - self.chance >= 0.5 * (1 - self.chance) else "in part "
        return (
            f"{self.label} can be predicted {part}from {seen} alone {numbers}: scores of this label may be "
            f"{_ADVICE[self.factor]}"
        )


@dataclass(frozen=True, slots=True)
class SamePositions:
    """Number of labels whose wells are at the same positions on every plate."""

    label: str
    n_same: int
    n_repeated: int
    """Labels on two plates or more."""

    @property
    def is_by_design(self) -> bool:
        """Whether at least half of the labels are; in random layouts nearly none would be."""
        return self.n_repeated > 0 and 2 * self.n_same >= self.n_repeated


def position_confounding(
    wells: Sequence[WellPlace],
    labels: Sequence[str],
    *,
    label: str = "label",
    splits: Sequence[Split] | None = None,
    n_draws: int = 199,
    seed: int = 0,
) -> list[PositionConfounding]:
    """Predict a label from row, column, distance to the edge, position, plate and batch, each on its own.

    The classifier is Bayes' rule with equal classes: it predicts the class of which the largest share of training wells
    has the value. Tied classes share the credit, so a value without a training well gives chance. For the position,
    training wells are weighted by distance (Gaussian), so the nearest ones decide. Random layouts exchange the
    positions of each plate's wells, and for plate and batch those of all wells.

    Args:
        wells: N places. Those without a row or column count for plate and batch only.
        labels: N; wells with "" do not count.
        label: Name of the label, for the result.
        splits: Splits of the N wells, those of the scores to be judged. By default plates are held out, or wells of
            each class where no two plates share two classes. For plate and batch, wells of each class are always held
            out, because a held-out plate predicts nothing.
        seed: Seed of the draws.

    Returns:
        One result for each factor with two values or more, in the order of `Factor`, without `batch` where each plate
        is a batch. Empty where fewer than two classes are in the train and the test part of a split.

    Raises:
        ValueError: Arguments of different lengths, or a split of other wells.
    """
    if len(wells) != len(labels) or any(len(split.is_test) != len(wells) for split in splits or ()):
        raise ValueError(
            f"{len(wells)} wells, {len(labels)} labels and splits of "
            f"{sorted({len(split.is_test) for split in splits or ()}) or 'none'}, expected as many of each."
        )
    rng = np.random.default_rng(int(content_id("position confounding", seed), 16))
    names = sorted({str(each) for each in labels} - {""})
    taken = sorted(rng.choice(names, MAX_CLASSES, replace=False)) if len(names) > MAX_CLASSES else names
    code_of = {name: code for code, name in enumerate(taken)}
    label_N = np.asarray([code_of.get(str(each), -1) for each in labels], np.int64)
    labelled = np.flatnonzero(label_N >= 0)
    if len(labelled) > MAX_WELLS:
        label_N[rng.choice(labelled, len(labelled) - MAX_WELLS, replace=False)] = -1
    found: list[PositionConfounding] = []
    for task in _tasks(wells, label_N, splits):
        found += _test(task, label, len(names), n_draws, rng)
    adjusted = holm([each.p_value for each in found])
    return [replace(each, p_value=p_value) for each, p_value in zip(found, adjusted, strict=True)]


def same_positions(wells: Sequence[WellPlace], labels: Sequence[str], *, label: str = "label") -> SamePositions:
    """Count the labels on two plates or more that hold the same positions on each of them.

    Where all labels share all positions, as the guides of a pooled screen do, no position predicts a label: the count
    is 0.

    Args:
        wells: N places; those without a row or column do not count.
        labels: N; "" where a well has none.
        label: Name of the label, for the result.
    """
    positions: dict[str, dict[str, set[tuple[int, int]]]] = {}
    for well, name in zip(wells, labels, strict=True):
        if name and well.row is not None and well.column is not None:
            positions.setdefault(str(name), {}).setdefault(well.plate, set()).add((well.row, well.column))
    plates = {plate for of_plate in positions.values() for plate in of_plate}
    here = {p: {frozenset(of_plate[p]) for of_plate in positions.values() if p in of_plate} for p in plates}
    repeated = [list(of_plate.values()) for of_plate in positions.values() if len(of_plate) > 1]
    n_same = sum(all(each == first for each in others) for first, *others in repeated)
    if len(positions) > 1 and all(len(found) == 1 for found in here.values()):
        n_same = 0
    return SamePositions(label, n_same, len(repeated))


@dataclass(frozen=True, slots=True)
class _Task:
    """Factors with the same splits and random layouts."""

    values: dict[Factor, tuple[Codes, int, Smoothing | None]]
    """(N,) value of each well, the number of values, and the smoothing of counts over neighbouring values."""
    group: Codes
    """(N,) group of each well; a random layout exchanges wells within groups."""
    label: Codes
    """(N,)"""
    splits: list[Split]


def _tasks(wells: Sequence[WellPlace], label_N: Codes, splits: Sequence[Split] | None) -> list[_Task]:
    plate_N, batch_N = (_codes([getattr(well, name) for well in wells]) for name in ("plate", "batch"))
    tasks = []
    placed = np.asarray([well.row is not None and well.column is not None for well in wells], bool) & (label_N >= 0)
    if placed.any():
        here = np.flatnonzero(placed)
        row, column = (
            np.asarray([getattr(wells[i], name) for i in here.tolist()], np.int64) for name in ("row", "column")
        )
        width = int(column.max()) + 1
        values: dict[Factor, tuple[Codes, int, Smoothing | None]] = {
            "row": (row, int(row.max()) + 1, None),
            "column": (column, width, None),
            "edge": _with_size(_to_edge(row, column, plate_N[here])),
            "well": (row * width + column, (int(row.max()) + 1) * width, _nearby(int(row.max()) + 1, width)),
        }
        given = [replace(split, is_test=split.is_test[here]) for split in splits or ()]
        chosen = given if splits is not None else _default_splits(label_N[here], plate_N[here])
        tasks.append(_Task(_varied(values), plate_N[here], label_N[here], chosen))
    here = np.flatnonzero(label_N >= 0)
    plate, batch = plate_N[here], batch_N[here]
    values = {"plate": _with_size(plate)}
    if len(np.unique(plate)) != len(np.unique(batch)):
        values["batch"] = _with_size(batch)
    tasks.append(_Task(_varied(values), np.zeros(len(here), np.int64), label_N[here], _well_splits(label_N[here])))
    return tasks


def _default_splits(label_N: Codes, plate_N: Codes) -> list[Split]:
    if len(np.unique(plate_N)) > 1:
        splits = hold_out_groups([f"{plate:09d}" for plate in plate_N.tolist()], HELD_OUT_SHARE, range(N_SPLITS))
        if all(len(classes_in_both(label_N, split.is_test)) > 1 for split in splits):
            return splits
    return _well_splits(label_N)


def _well_splits(label_N: Codes) -> list[Split]:
    names = [str(i) for i in range(len(label_N))]
    return hold_out_wells(names, [f"{code:09d}" for code in label_N.tolist()], HELD_OUT_SHARE, range(N_SPLITS))


def _test(
    task: _Task, label: str, n_classes_in_all: int, n_draws: int, rng: np.random.Generator
) -> list[PositionConfounding]:
    """Accuracy of each factor in the true layout and in random ones."""
    parts = [_part(task.label, split.is_test) for split in task.splits]
    parts = [part for part in parts if part.n_classes > 1]
    if not parts or not task.values:
        return []
    by_group = np.argsort(task.group, kind="stable")
    orders_BN = np.empty((n_draws, len(by_group)), np.int64)
    for order in orders_BN:
        order[by_group] = np.lexsort((rng.random(len(by_group)), task.group))
    n_classes = max(part.n_classes for part in parts)
    chance = float(np.mean([1 / part.n_classes for part in parts]))
    results = []
    for factor, (value, size, smoothing) in task.values.items():
        accuracy = float(_accuracies(parts, value[None], size, smoothing)[0])
        null_B = _accuracies(parts, value[orders_BN], size, smoothing)
        low, high = np.quantile(null_B, [0.025, 0.975])
        p_value = permutation_p_value(accuracy, null_B, TIE)
        results.append(
            PositionConfounding(
                label, factor, accuracy, chance, float(low), float(high), p_value, len(task.label), n_classes,
                n_classes_in_all,
            )
        )  # fmt: skip
    return results


@dataclass(frozen=True, slots=True)
class _Part:
    """One split, with classes numbered from 0."""

    train: Codes
    train_label: Codes
    test: Codes
    test_label: Codes
    n_classes: int


def _part(label_N: Codes, is_test: NDArray[np.bool_]) -> _Part:
    classes = classes_in_both(label_N, is_test)
    used = np.isin(label_N, classes)
    train, test = np.flatnonzero(used & ~is_test), np.flatnonzero(used & is_test)
    coded = np.searchsorted(classes, label_N)
    return _Part(train, coded[train], test, coded[test], len(classes))


def _accuracies(parts: Sequence[_Part], value_BN: Codes, size: int, smoothing: Smoothing | None) -> Floats:
    """(B,) balanced accuracy of each layout, mean over the splits."""
    at_once = max(1, CELLS_AT_ONCE // (max(part.n_classes for part in parts) * size))
    blocks = [value_BN[start : start + at_once] for start in range(0, len(value_BN), at_once)]
    of_blocks = [
        np.stack([_balanced_accuracies(part, block, size, smoothing) for part in parts], axis=1) for block in blocks
    ]
    return np.concatenate([np.empty(0), *(each.mean(axis=1) for each in of_blocks)])


def _balanced_accuracies(part: _Part, value_BN: Codes, size: int, smoothing: Smoothing | None) -> Floats:
    shape = (len(value_BN), part.n_classes, size)
    train_BKV = _counts(part.train_label, value_BN[:, part.train], shape)
    test_BKV = _counts(part.test_label, value_BN[:, part.test], shape)
    share_BKV = train_BKV / train_BKV.sum(axis=2, keepdims=True)
    if smoothing is not None:
        share_BKV = smoothing(share_BKV)
    is_best_BKV = share_BKV >= share_BKV.max(axis=1, keepdims=True) * (1 - TIE)
    right_BK = (test_BKV * is_best_BKV / is_best_BKV.sum(axis=1, keepdims=True)).sum(axis=2)
    return np.asarray(np.mean(right_BK / test_BKV.sum(axis=2), axis=1))


def _counts(label: Codes, value_BN: Codes, shape: tuple[int, int, int]) -> Floats:
    n_layouts, n_classes, size = shape
    layout_B1 = np.arange(n_layouts)[:, None] * (n_classes * size)
    flat = np.bincount((layout_B1 + label * size + value_BN).ravel(), minlength=n_layouts * n_classes * size)
    return flat.reshape(shape).astype(np.float64)


def _nearby(height: int, width: int) -> Smoothing:
    """Spread counts over a plate with Gaussian weights."""
    over_rows, over_columns = (
        np.exp(-np.square(np.subtract.outer(np.arange(n), np.arange(n))) / (2 * BANDWIDTH_WELLS**2))
        for n in (height, width)
    )

    def spread(counts_BKV: Floats) -> Floats:
        return np.asarray(over_rows @ counts_BKV.reshape(-1, height, width) @ over_columns).reshape(counts_BKV.shape)

    return spread


def _to_edge(row: Codes, column: Codes, plate: Codes) -> Codes:
    """Wells between a well and the nearest edge of the smallest standard plate that holds the plate's wells."""
    distance = np.zeros(len(row), np.int64)
    for name in np.unique(plate).tolist():
        here = plate == name
        height, width = plate_format(int(row[here].max()), int(column[here].max()))
        y, x = row[here], column[here]
        distance[here] = np.min([y, x, height - 1 - y, width - 1 - x], axis=0)
    return distance


def _with_size(value: Codes) -> tuple[Codes, int, Smoothing | None]:
    return value, int(value.max(initial=0)) + 1, None


def _varied(
    values: dict[Factor, tuple[Codes, int, Smoothing | None]],
) -> dict[Factor, tuple[Codes, int, Smoothing | None]]:
    return {factor: each for factor, each in values.items() if len(np.unique(each[0])) > 1}


def _codes(names: Sequence[str]) -> Codes:
    return np.unique(np.asarray(names, str), return_inverse=True)[1].astype(np.int64)
