"""Joins the columns of wells to crops, for SQL conditions and hits."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import Catalog


def add_wells(catalog: Catalog, crops: pa.Table) -> pa.Table:
    """The crops with the further columns of their wells; null where the well is unknown.

    Args:
        crops: Rows with a column well_id.
    """
    wells = catalog.table("wells")
    rows = pc.index_in(crops["well_id"].combine_chunks(), value_set=wells["well_id"].combine_chunks())
    for name in wells.schema.names:
        if name not in crops.schema.names:
            crops = crops.append_column(name, wells[name].combine_chunks().take(rows))
    return crops
