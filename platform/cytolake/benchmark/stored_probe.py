"""Linear probe of any stored representation: an import, an aligned one, or a block of an encoder."""

from __future__ import annotations

import pyarrow as pa

from cytolake.benchmark.cross_validation import ProbeResult, probe_representation
from cytolake.benchmark.linear_probe import ProbeConfig, probe_key
from cytolake.benchmark.probe_data import read_probe_data
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.catalog.representations import read_vectors


def probe_stored(catalog: Catalog, representation_id: str, config: ProbeConfig) -> ProbeResult:
    """Score one representation with a linear probe and add the rows to `scores`, once.

    Rows of an import with only plate and well count as crops of their wells. The scores compare representations of the
    same crops; they choose no block and promote nothing.

    Args:
        catalog: Catalog with the vectors and the scores.
        representation_id: Representation with rows in `embeddings`.
        config: Label, split and strengths of regularisation.

    Raises:
        ValueError: No vectors, fewer than two classes, or too few plates to hold out.
    """
    data = read_probe_data(catalog, representation_id, config.label, include_controls=config.include_controls)
    key = probe_key(data, config)
    vectors_ND = read_vectors(catalog, representation_id, data.crop_ids)
    result = probe_representation(vectors_ND, representation_id, data, config, key)
    table = pa.Table.from_pylist(result.rows, schema=catalog.table("scores", where="false").schema)
    catalog.append("scores", table, transaction=f"scores/{content_id(key, representation_id)}")
    return result
