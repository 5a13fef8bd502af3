"""Averages a representation over wells, guides and perturbations.

Shapes: W wells, G groups of wells, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

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
    no_vectors,
    vectors_column,
    vectors_of,
    wrong_dim,
)
from cytolake.embed.well_sums import Progress, WellSums, sorted_sums, sum_by, well_sums

Level = Literal["well", "guide", "perturbation"]
MeanOf = Literal["crops", "wells", "guides"]

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
    *,
    mean_of: MeanOf = "wells",
    within: Sequence[str] = (),
    curation_id: str = "",
    progress: Progress | None = None,
) -> pa.Table:
    """Mean vectors of wells, guides or perturbations.

    Args:
        catalog: Where the rows are.
        representation_id: Whose vectors; its crops are those that the pack's curation kept. Of one that was aligned at
            the level of wells, the vectors of wells are taken as they are.
        level: One row for each of these. A well whose column of this name is empty belongs to none. In a well with
            labelled objects the crops of each label stand for a well: see `cytolake.catalog.labelled_units`.
        mean_of: What counts once: each crop, each well (the mean of well means), or each guide (the mean of guide
            means, each the mean of well means). A well's own vector is always the mean of its crops.
        within: More columns of `wells` to keep apart, such as `("batch",)`.
        curation_id: Only crops that this curation kept too, such as one with newer QC.
        progress: Called with the parts summed and to sum.

    Returns:
        The level's columns and those of `within`, `n_crops`, `n_wells` and `vector` (D float32), in the order of the
        columns.

    Raises:
        ValueError: A level, mean or column of another name; a representation without rows, vectors that are not of its
            width or not finite, a well that is not in `wells`, a curation that is not there or kept none of the crops.
    """
    if level not in COLUMNS or mean_of not in get_args(MeanOf):
        raise ValueError(
            f"level {level!r} and mean_of {mean_of!r}: expected a level of {', '.join(COLUMNS)}, and a mean of "
            f"{', '.join(get_args(MeanOf))}."
        )
    if mean_of == "guides" and level != "perturbation":
        raise ValueError(f"mean_of 'guides' for level {level!r}: only a perturbation has several guides. Take wells.")
    columns = list(dict.fromkeys([*COLUMNS[level], *within]))
    catalog = catalog.snapshot()
    representation = find_representation(catalog, representation_id)
    representation_id = representation["representation_id"]
    if curation_id and not catalog.table("curation_runs", where="curation_id = ?", parameters=[curation_id]).num_rows:
        raise ValueError(f"curation {curation_id}: not in the table curation_runs. Run jobs/curate.py first.")
    if _has_wells_alone(catalog, representation):
        if curation_id:
            raise no_vectors(representation, "crop")
        summed = _sums_of_profiles(catalog, representation_id)
    else:
        summed = well_sums(catalog, [representation_id], curation_id=curation_id, by_label=True, progress=progress)[0]
    if summed.sums.shape[1] != representation["dim"]:
        raise wrong_dim(representation_id, summed.sums.shape[1], representation["dim"])
    wells = _wells(catalog, summed.wells, [*columns, "guide"])
    means, of_level = summed.means, np.ones(len(summed.wells), dtype=bool)
    if level != "well":
        of_level = np.asarray([bool(name) for name in wells[level]])
    rows = np.flatnonzero(of_level)
    keys, group = _groups([wells[name] for name in columns], rows)
    n_groups = len(keys)
    n_crops = np.bincount(group, weights=summed.counts[rows], minlength=n_groups).astype(np.int64)
    if mean_of == "crops":
        vectors_GD = sum_by(group, summed.sums[rows], n_groups) / n_crops[:, None]
    elif mean_of == "wells":
        vectors_GD = _mean_by(group, means[rows], n_groups)
    else:
        guides, of_guide = _groups([wells[name] for name in dict.fromkeys([*columns, "guide"])], rows)
        first = np.unique(of_guide, return_index=True)[1]
        vectors_GD = _mean_by(group[first], _mean_by(of_guide, means[rows], len(guides)), n_groups)
    fields = {name: pa.array([key[i] for key in keys]) for i, name in enumerate(columns)}
    return pa.table(
        {
            **fields,
            "n_crops": n_crops,
            "n_wells": np.bincount(group, minlength=n_groups).astype(np.int32),
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
    names = list(dict.fromkeys(columns))
    there = labelled_units(catalog, names).rows
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
        for name in names
    }


def _groups(columns: Sequence[Sequence[Any]], rows: NDArray[np.intp]) -> tuple[list[tuple[Any, ...]], NDArray[np.intp]]:
    """The different rows of columns, sorted, and which of them each row is."""
    of_row = [tuple(column[row] for column in columns) for row in rows.tolist()]
    keys = sorted(set(of_row), key=lambda key: tuple((value is None, value) for value in key))
    number = {key: i for i, key in enumerate(keys)}
    return keys, np.asarray([number[key] for key in of_row], dtype=np.intp)


def _mean_by(group_N: NDArray[np.intp], values_ND: NDArray[Any], n_groups: int) -> NDArray[np.float64]:
    return sum_by(group_N, values_ND, n_groups) / np.bincount(group_N, minlength=n_groups)[:, None]
