"""Annotation of a plate: rows of the plate map joined to its wells, and the plate's batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from cytolake.screens.label_vocabulary import fold_column, label_vocabulary
from cytolake.screens.plate import Plate
from cytolake.screens.plate_map import PlateMap, wells_of_plate


def default_batch(screen: str, name: str) -> str:
    """Batch of plates without a batch in their source: unique to the screen and plate (or split)."""
    return f"{screen}/{name}"


def label_plate(plate: Plate, plate_map: PlateMap) -> Plate:
    """The plate with the wells and batch of a plate map, and contradictions as problems."""
    return _with_named_batch(annotate(plate, plate_map, plate.plate))


def name_batch(plate: Plate) -> Plate:
    """The plate with the batch that its wells name, or with `default_batch`."""
    named = _with_named_batch(plate)
    return named if _batches(plate) else replace(plate, batch=default_batch(plate.screen, plate.batch))


def _batches(plate: Plate) -> Counter[str]:
    """Batch to number of wells that name it."""
    vocabulary = label_vocabulary()
    column = vocabulary.place_column(dict.fromkeys(column for row in plate.wells for column in row), "batch")
    return Counter(batch for row in plate.wells if (batch := vocabulary.value(row.get(column or "", ""))))


def _with_named_batch(plate: Plate) -> Plate:
    """The plate with the batch that most of its wells name; unchanged if no well names one."""
    batches = _batches(plate)
    if not batches:
        return plate
    batch = batches.most_common(1)[0][0]
    if len(batches) == 1:
        return replace(plate, batch=batch)
    mixed = plate.problem(
        problem="mixed_batch",
        found=f"batches {', '.join(sorted(batches))}",
        expected="one batch for a plate",
        next_step=f"{batch}, the most frequent, was taken; correct the others.",
    )
    return replace(plate, batch=batch, problems=(*plate.problems, mixed))


def annotate(plate: Plate, plate_map: PlateMap, name: str) -> Plate:
    """The plate with its rows of the map; facts of an index CSV fill the cells that the map leaves empty."""
    rows, problems = wells_of_plate(plate_map, name, plate.sites)
    from_index = {row["well"]: row for row in plate.wells}
    merged = [_filled_in(row, from_index.pop(row["well"], {})) for row in rows]
    return replace(plate, wells=(*merged, *from_index.values()), problems=(*plate.problems, *problems))


def _filled_in(row: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """A row of the map, with cells of other rows for columns that it lacks or leaves empty.

    `Metadata_gene` and `gene` are one column.
    """
    if not others:
        return dict(row)
    says_nothing = label_vocabulary().says_nothing
    filled = {fold_column(column) for column, cell in row.items() if not says_nothing(cell)}
    added = {column: cell for column, cell in others.items() if fold_column(column) not in filled}
    kept = {c: cell for c, cell in row.items() if not (says_nothing(cell) and c in added)}
    return {**added, **kept}
