"""Finds crops by plate, well, perturbation and QC; reads only the files and row groups that hold them.

A plate's crops lie in one file, sorted by well, and the statistics of files and row groups name both. So the
small table of wells is read first, and the crops are then filtered by plate and well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.errors import CatalogError

if TYPE_CHECKING:
    from cytolake.catalog.tables import Catalog


def find_crops(
    catalog: Catalog,
    plates: Sequence[str],
    wells: Sequence[str],
    perturbations: Sequence[str],
    qc_id: str,
    columns: Sequence[str] | None,
) -> pa.Table:
    """See `Catalog.find_crops`."""
    crops = catalog.dataset("crops")
    names = list(columns) if columns is not None else crops.schema.names
    unknown = [name for name in names if name not in crops.schema.names]
    if unknown:
        raise CatalogError(f"table crops: no column {', '.join(unknown)}. There are: {', '.join(crops.schema.names)}.")
    filters = (("plate", plates), ("well", wells), ("perturbation", perturbations))
    conditions = [pc.field(name).isin(list(values)) for name, values in filters if values]
    chosen = None
    if conditions:
        wells_of_plate: dict[str, set[str]] = defaultdict(set)
        found = catalog.dataset("wells").to_table(columns=["plate_id", "well"], filter=_all(conditions))
        for plate, well in zip(found["plate_id"].to_pylist(), found["well"].to_pylist(), strict=True):
            wells_of_plate[plate].add(well)
        if not wells_of_plate:
            return crops.schema.empty_table().select(names)
        is_whole_plate = not wells and not perturbations
        chosen = _by_plate_and_well(wells_of_plate, is_whole_plate)
    if not qc_id:
        return crops.to_table(columns=names, filter=chosen)

    failed = (pc.field("qc_id") == qc_id) & ~pc.field("is_pass") & (pc.field("level") == "site")
    if conditions:
        failed &= pc.field("plate_id").isin(sorted(wells_of_plate))
    sites = catalog.dataset("qc_verdicts").to_table(columns=["site_id"], filter=failed)["site_id"].unique()
    passes = ~pc.field("site_id").isin(sites)
    return crops.to_table(columns=names, filter=passes if chosen is None else chosen & passes)


def _by_plate_and_well(wells_of_plate: dict[str, set[str]], is_whole_plate: bool) -> pc.Expression:
    """One condition for all plates on which the same wells are wanted: replicate plates share a layout."""
    if is_whole_plate:
        return _one_of("plate_id", sorted(wells_of_plate))
    plates_of_layout: dict[frozenset[str], list[str]] = defaultdict(list)
    for plate, wells in wells_of_plate.items():
        plates_of_layout[frozenset(wells)].append(plate)
    layouts = [
        _one_of("plate_id", sorted(plates)) & _one_of("well", sorted(wells))
        for wells, plates in plates_of_layout.items()
    ]
    return _any(layouts)


def _one_of(column: str, values: list[str]) -> pc.Expression:
    return pc.field(column) == values[0] if len(values) == 1 else pc.field(column).isin(values)


def _all(conditions: Sequence[pc.Expression]) -> pc.Expression:
    first, *others = conditions
    for other in others:
        first &= other
    return first


def _any(conditions: Sequence[pc.Expression]) -> pc.Expression:
    first, *others = conditions
    for other in others:
        first |= other
    return first
