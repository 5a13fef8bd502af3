"""Averages a representation over wells, guides and perturbations.

Shapes: W wells, G groups of wells, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.labelled_units import UNIT, labelled_units
from cytolake.catalog.representations import (
    ALIGNED,
    VectorReader,
    find_representation,
    vectors_column,
    vectors_of,
    wrong_dim,
)
from cytolake.embed.well_sums import WellSums, sorted_sums, sum_by, well_sums

Level = Literal["well", "guide", "perturbation"]

COLUMNS: dict[Level, tuple[str, ...]] = {
    "well": ("screen", "batch", "plate", "well", "guide", "perturbation", "is_negative_control", "well_id"),
    "guide": ("screen", "perturbation", "guide"),
    "perturbation": ("screen", "perturbation"),
}
"""Columns of `wells` that identify the rows of a level. Screens are never averaged together."""


def aggregate(
    catalog: Catalog,
    representation_id: str,
    level: Level,
) -> pa.Table:
    """Vectors of wells, each the mean of its crops, or their means by guide or perturbation.

    Args:
        catalog: Where the rows are.
        representation_id: Whose vectors; its crops are those that the pack's curation kept. Of one that was aligned at
            the level of wells, the vectors of wells are taken as they are.
        level: One row for each of these. A well whose column of this name is empty belongs to none. In a well with
            labelled objects the crops of each label stand for a well: see `cytolake.catalog.labelled_units`.

    Returns:
        The level's columns, `n_crops`, `n_wells` and `vector` (D float32), in the order of the columns.

    Raises:
        ValueError: Another level; a representation without rows, vectors that are not of its width or not finite, a
            well that is not in `wells`.
    """
    if level not in COLUMNS:
        raise ValueError(f"level {level!r}: expected a level of {', '.join(COLUMNS)}.")
    columns = COLUMNS[level]
    catalog = catalog.snapshot()
    representation = find_representation(catalog, representation_id)
    representation_id = representation["representation_id"]
    if _has_wells_alone(catalog, representation):
        summed = _sums_of_profiles(catalog, representation_id)
    else:
        summed = well_sums(catalog, [representation_id], by_label=True)[0]
    if summed.sums.shape[1] != representation["dim"]:
        raise wrong_dim(representation_id, summed.sums.shape[1], representation["dim"])
    wells = _wells(catalog, summed.wells, columns)
    rows = np.flatnonzero([level == "well" or bool(name) for name in wells[level]])
    keys, group = _groups([wells[name] for name in columns], rows)
    n_groups = len(keys)
    n_crops = np.bincount(group, weights=summed.counts[rows], minlength=n_groups).astype(np.int64)
    n_wells = np.bincount(group, minlength=n_groups)
    vectors_GD = sum_by(group, summed.means[rows], n_groups) / n_wells[:, None]
    fields = {name: pa.array([key[i] for key in keys]) for i, name in enumerate(columns)}
    return pa.table(
        {
            **fields,
            "n_crops": n_crops,
            "n_wells": n_wells.astype(np.int32),
            "vector": vectors_column(vectors_GD.astype(np.float32)),
        }
    )


def _has_wells_alone(catalog: Catalog, representation: Mapping[str, Any]) -> bool:
    """Whether it was aligned at the level of wells."""
    return representation["kind"] == ALIGNED and not VectorReader(catalog).count(representation["representation_id"])


def _sums_of_profiles(catalog: Catalog, representation_id: str) -> WellSums:
    """What the sums over crops would be, from the means of wells; of wells with labelled objects, of their groups."""
    parts = list(VectorReader(catalog, "well").rows(representation_id))
    units = labelled_units(catalog, ())
    if units.plates_with_objects:
        whole = units.whole[UNIT].combine_chunks()
        parts = [rows.filter(pc.is_in(rows["well_id"], value_set=whole)) for rows in parts]
        parts = [rows for rows in parts if rows.num_rows]
    means_WD = np.concatenate([vectors_of(rows, representation_id) for rows in parts])
    stored = pa.concat_tables(parts)
    counts = np.asarray(stored["n_crops"].to_numpy(), dtype=np.int64)
    wells, plates = stored["well_id"].to_pylist(), stored["plate_id"].to_pylist()
    return sorted_sums(wells, plates, means_WD.astype(np.float64) * counts[:, None], counts)


def _wells(catalog: Catalog, well_ids: Sequence[str], columns: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of `wells`, in the order of the ids of wells and groups; a text that is null is empty."""
    there = labelled_units(catalog, columns).rows
    place = pc.index_in(pa.array(well_ids, pa.string()), value_set=there[UNIT].combine_chunks())
    if place.null_count:
        some = [well for well, found in zip(well_ids, place.to_pylist(), strict=True) if found is None]
        raise ValueError(
            f"{len(some)} of {len(well_ids)} wells of the embeddings are not in the table wells, such as "
            f"{', '.join(some[:3])}. Ingest their plates again."
        )
    taken = there.take(place)
    return {
        name: [
            ("" if value is None and pa.types.is_string(taken[name].type) else value)
            for value in taken[name].to_pylist()
        ]
        for name in columns
    }


def _groups(columns: Sequence[Sequence[Any]], rows: NDArray[np.intp]) -> tuple[list[tuple[Any, ...]], NDArray[np.intp]]:
    """The different rows of columns, sorted, and which of them each row is."""
    of_row = [tuple(column[row] for column in columns) for row in rows.tolist()]
    keys = sorted(set(of_row), key=lambda key: tuple((value is None, value) for value in key))
    number = {key: i for i, key in enumerate(keys)}
    return keys, np.asarray([number[key] for key in of_row], dtype=np.intp)
