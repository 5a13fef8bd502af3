"""Columns that all crops of a site share, so that a condition on these is compared once for each site.

Shapes: N crops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from cytolake.catalog import table_contract
from cytolake.qc.newest import QC_COLUMNS
from cytolake.serving.search.nearest import Rows

OF_SITES = frozenset({
    "site_id", "well_id", "plate_id", "screen", "plate", "batch", "well", "site", "n_channels", *QC_COLUMNS,
})  # fmt: skip
"""Columns of crops that are the same for all crops of a site, as the columns of wells are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sites:
    """The sites of an index's crops, about a hundred times fewer than crops.

    For 1 million crops `plate = 'P042'` takes 2 ms, compared with 16 ms for a million texts.
    """

    table: pa.Table
    """One row for each site, with the columns that its crops share."""
    of_crop: NDArray[np.int32]
    """(N,) row of each crop's site."""

    def rows(self, passing: pc.Expression) -> Rows:
        """Rows of the crops whose site passes, increasing."""
        numbered = ds.dataset(self.table.append_column("__row", pa.array(np.arange(self.table.num_rows))))
        # A dataset reads only the columns of the condition; Table.filter would copy all.
        found = numbered.to_table(columns=["__row"], filter=passing, use_threads=False)
        passes = np.zeros(self.table.num_rows, bool)
        passes[found["__row"].to_numpy()] = True
        return np.flatnonzero(passes[self.of_crop])


def sites_of(crops: pa.Table) -> Sites | None:
    """The sites of a table of crops, wells and QC; None where a site is in two wells."""
    encoded = pc.dictionary_encode(crops["site_id"].combine_chunks(), null_encoding="encode")
    of_crop = np.asarray(encoded.indices.to_numpy(), np.int32)
    first = np.zeros(len(encoded.dictionary), np.int64)
    first[of_crop[::-1]] = np.arange(len(of_crop))[::-1]  # in reverse, so the first crop is written last
    of_crops = set(table_contract("crops").schema.names) - OF_SITES
    names = [name for name in crops.schema.names if name not in of_crops]
    table = crops.select(names).take(pa.array(first)).combine_chunks()
    wells = table["well_id"].combine_chunks().take(pa.array(of_crop))
    return Sites(table=table, of_crop=of_crop) if wells.equals(crops["well_id"].combine_chunks()) else None
