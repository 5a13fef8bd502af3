"""From crops to wells: the mean of a well's crops, in the `profiles` table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id


def well_means(vectors: NDArray[np.float32], wells: Sequence[str]) -> tuple[list[str], NDArray[np.float32], list[int]]:
    """Mean vector of each well.

    Args:
        vectors: (N, D), one for each crop.
        wells: (N,) well of each crop.

    Returns:
        Wells sorted by name, their (W, D) means, and how many crops each has.
    """
    names, of_crop, counts = np.unique(np.asarray(wells), return_inverse=True, return_counts=True)
    order = np.argsort(of_crop, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    return names.tolist(), (sums / counts[:, None]).astype(np.float32), counts.tolist()


def append_profiles(catalog: Catalog, representation_ids: Sequence[str]) -> bool:
    """Write the well means of representations whose embeddings are whole, in one commit.

    Returns:
        False where they had been written before.
    """
    done = catalog.table("profiles", columns=["representation_id"], where=_among(representation_ids[:1])).num_rows
    if done or not representation_ids:
        return False
    schema = catalog.table("profiles", where="false").schema
    tables = []
    for representation_id in representation_ids:
        rows = catalog.table(
            "embeddings", columns=["well_id", "plate_id", "embedding"], where=_among([representation_id])
        )
        if rows.num_rows == 0:
            raise ValueError(f"representation {representation_id} has no embeddings to average. Run jobs/embed.py.")
        values = rows["embedding"].combine_chunks()
        vectors = np.asarray(values.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
        wells, means, counts = well_means(vectors.reshape(rows.num_rows, -1), rows["well_id"].to_pylist())
        first = pc.index_in(pa.array(wells, pa.string()), value_set=rows["well_id"].combine_chunks())
        offsets = pa.array(np.arange(len(wells) + 1, dtype=np.int32) * means.shape[1])
        columns = {
            "representation_id": pa.repeat(representation_id, len(wells)),
            "well_id": pa.array(wells, pa.string()),
            "plate_id": rows["plate_id"].take(first),
            "n_crops": pa.array(counts, pa.int32()),
            "profile": pa.ListArray.from_arrays(offsets, pa.array(means.ravel())),
        }
        tables.append(pa.table(columns).select(schema.names).cast(schema))
    profiles = pa.concat_tables(tables)
    return catalog.append("profiles", profiles, transaction=f"profiles/{content_id(*representation_ids)}")


def _among(representation_ids: Sequence[str]) -> str:
    return " or ".join(f"representation_id = '{each}'" for each in representation_ids) or "false"
