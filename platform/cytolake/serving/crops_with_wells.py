"""Crops with what is known of their wells: the columns that a condition may name and a hit tells."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import Catalog


def add_wells(catalog: Catalog, crops: pa.Table) -> pa.Table:
    """The crops with the columns of their wells that they do not have; null where the well is not known.

    Args:
        catalog: Where the wells are, at the version it is pinned to.
        crops: Any rows, with a column well_id.
    """
    wells = catalog.table("wells")
    rows = pc.index_in(crops["well_id"].combine_chunks(), value_set=wells["well_id"].combine_chunks())
    for name in wells.schema.names:
        if name not in crops.schema.names:
            crops = crops.append_column(name, wells[name].combine_chunks().take(rows))
    return crops
