"""The cell-count baseline: a representation whose only information is the number of cells in the crop's site.

A perturbation that kills cells, or a dense corner of a plate, is easy to recognise by the number of cells alone;
what an encoder adds is only visible next to it (arXiv 2603.13377; Nature Communications 2026, s41467-026-68725-5). The
count is quality control's `object_count` of the crop's site in the nuclear channel, or the median over channels where a
site has no channel named DNA.

N crops.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id, representation_id
from cytolake.catalog.representations import stored_representation, vectors_column
from cytolake.embed.well_sums import append_profiles
from cytolake.packs.pack import Pack

CELL_COUNT = "cell_count"
MODEL = "cell_count/1"
"""Names this exact vector: the count, and the logarithm of one more."""
CROPS_PER_APPEND = 2_000_000


def append_cell_counts(catalog: Catalog, pack: Pack) -> dict[str, Any] | None:
    """Write the cell counts of a pack's crops as a representation, unless they are there.

    Returns:
        The row of `representations`; None where a crop's site has no counted objects (plates that quality control has
        not measured).
    """
    model = content_id(MODEL)
    identity = representation_id(model, -1, "all", pack.pack_id)
    if there := stored_representation(catalog, identity):
        return there
    n_counted = _read(catalog, pack.index.select(["crop_id"]), "count(object_count) as n")["n"][0].as_py()
    if n_counted < pack.n_crops:
        return None
    schema = catalog.table("embeddings", where="false").schema
    for start in range(0, pack.n_crops, CROPS_PER_APPEND):
        part = pack.index.select(["crop_id"]).slice(start, CROPS_PER_APPEND)
        crops = _read(catalog, part, "crop_id, well_id, plate_id, object_count").sort_by("crop_id")
        count_N = crops["object_count"].to_numpy()
        columns = {name: crops[name] for name in ("crop_id", "well_id", "plate_id")}
        columns["representation_id"] = pa.repeat(identity, crops.num_rows)
        columns["embedding"] = vectors_column(np.stack([count_N, np.log1p(count_N)], axis=1).astype(np.float32))
        table = pa.table(columns).select(schema.names).cast(schema)
        catalog.append("embeddings", table, transaction=f"embeddings/{content_id(identity, start)}")
    append_profiles(catalog, [identity])
    row = {
        "representation_id": identity,
        "kind": CELL_COUNT,
        "model_id": model,
        "architecture": CELL_COUNT,
        "block": -1,
        "pooling": "all",
        "dim": 2,
        "pack_id": pack.pack_id,
        "curation_id": pack.curation_id,
        "checkpoint": "",
        "run_id": "",
        "created_at": datetime.now(UTC),
    }
    new = pa.Table.from_pylist([row], schema=catalog.table("representations", where="false").schema)
    catalog.append("representations", new, transaction=f"representations/{identity}")
    return row


def _read(catalog: Catalog, crop_ids: pa.Table, columns: str) -> pa.Table:
    """Columns of the crops joined with the objects of their sites; null where none were counted."""
    return catalog.sql(
        f"""
        with counted as (
            select site_id, coalesce(max(object_count) filter (channel = 'DNA'), median(object_count)) as object_count
            from qc_metrics where isfinite(object_count) group by site_id
        )
        select {columns} from wanted join crops using (crop_id) left join counted using (site_id)
        """,
        wanted=crop_ids,
    )
