"""Embeddings and what is known about their crops or wells, as one AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.annotation_columns import annotation_columns
from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.labelled_units import UNIT, labelled_units

if TYPE_CHECKING:
    from anndata import AnnData

    from cytolake.catalog.tables import Catalog


def to_anndata(
    catalog: Catalog, representation_id: str | Sequence[str], *, level: Literal["crop", "well"] = "crop"
) -> AnnData:
    """Put one or several representations of the same crops or wells into an AnnData.

    Args:
        catalog: Where the rows are.
        representation_id: One, or several. Of several, only the crops (wells) that have all of them are there.
        level: `crop` reads `embeddings`, `well` reads `profiles`.

    Returns:
        `obs`: columns of `crops` and `wells`, indexed by crop or well id, in the order of the ids, with the labels of
        objects where these have any (at the level of wells a row for each group of them); each annotation of
        the plate map is a column `Metadata_<name>`. `X`: (N, D) float32
        of one representation; of several, `X` is absent and each is in `obsm` under its id. `uns["cytolake"]`: rows
        of `representations` as JSON-like values.

    Raises:
        CatalogError: An id that is not in `representations`, or has no rows at this level.
    """
    import anndata

    ids = [representation_id] if isinstance(representation_id, str) else list(representation_id)
    vectors_table, vector, key = (
        ("embeddings", "embedding", "crop_id") if level == "crop" else ("profiles", "profile", "well_id")
    )
    known = _known_representations(catalog, ids)
    vectors = [
        catalog.sql(
            f"SELECT {key}, {vector} AS vector FROM {vectors_table} "
            f"WHERE representation_id = '{identity}' ORDER BY {key}"
        )
        for identity in ids
    ]
    for identity, rows in zip(ids, vectors, strict=True):
        if not rows.num_rows:
            remedy = f"Run jobs/embed.py for its pack {known[identity]['pack_id']} first."
            if known[identity]["kind"] == "aligned":
                remedy = "It was aligned at the level of wells: use level='well', or the one that it was made from."
            raise CatalogError(f"representation {identity}: no rows in {vectors_table}. {remedy}")
    obs = _observations(catalog, level, vectors)
    matrices = [_matrix(obs[key], rows, int(known[i]["dim"]), i) for i, rows in zip(ids, vectors, strict=True)]
    annotations = obs["annotations"].to_pylist()
    obs = obs.drop_columns(["annotations"])
    for name, column in annotation_columns(annotations, obs.column_names).items():
        obs = obs.append_column(name, column)
    frame = obs.to_pandas().set_index(key, drop=True)
    single = len(ids) == 1
    return anndata.AnnData(
        X=matrices[0] if single else None,
        obs=frame,
        obsm={} if single else dict(zip(ids, matrices, strict=True)),
        uns={"cytolake": {identity: known[identity] for identity in ids}},
    )


def _known_representations(catalog: Catalog, ids: list[str]) -> dict[str, dict[str, Any]]:
    rows = catalog.sql(
        "SELECT r.* EXCLUDE (created_at), strftime(created_at, '%Y-%m-%dT%H:%M:%SZ') AS created_at "
        "FROM representations r JOIN wanted USING (representation_id)",
        wanted=pa.table({"representation_id": pa.array(ids, pa.string())}),
    ).to_pylist()
    # HDF5 has no null: columns that the catalog gained later are empty.
    known = {
        row["representation_id"]: {name: "" if value is None else value for name, value in row.items()} for row in rows
    }
    unknown = [identity for identity in ids if identity not in known]
    if unknown or not ids:
        some = catalog.table("representations", columns=["representation_id"]).column(0).to_pylist()
        raise CatalogError(
            f"representation {', '.join(unknown) or '(none given)'}: not in the table representations, which has "
            f"{len(some)}{': ' if some else ''}{', '.join(some[:5])}. Take an id from there, or run jobs/embed.py."
        )
    return known


def _observations(catalog: Catalog, level: str, vectors: list[pa.Table]) -> pa.Table:
    """Rows of crops with their wells (or wells alone) that every one of the vector tables has, in order of the id."""
    views = {f"vectors_{i}": rows for i, rows in enumerate(vectors)}
    units = labelled_units(catalog)
    wells = table_contract("wells").schema.names
    if level == "crop":
        crops = table_contract("crops").schema.names
        selected = [f"c.{name}" for name in crops] + [f"w.{name}" for name in wells if name not in crops]
        of_crop = f"coalesce(g.{UNIT}, c.well_id)"
        source = f"crops c LEFT JOIN group_of_crop g USING (crop_id) JOIN units w ON w.{UNIT} = {of_crop}"
        key, own = "crop_id", "c.crop_id"
        views["group_of_crop"] = units.group_of_crop
    else:
        selected = [f"w.{name}" for name in wells if name != "well_id"]
        source, key, own = "units w", "well_id", f"w.{UNIT}"
    quoted = ", ".join(f'{name[:2]}"{name[2:]}"' for name in selected)
    if level != "crop":
        quoted = f"w.{UNIT} AS well_id, {quoted}"
    joins = " ".join(f"SEMI JOIN {view} ON {own} = {view}.{key}" for view in views if view.startswith("vectors_"))
    return catalog.sql(f"SELECT {quoted} FROM {source} {joins} ORDER BY {own}", units=units.rows, **views)


def _matrix(keys: pa.ChunkedArray, rows: pa.Table, dim: int, identity: str) -> np.ndarray[Any, Any]:
    """(len(keys), dim) float32: the vectors in the order of the keys."""
    taken = rows.take(pc.index_in(keys, rows.column(0)))
    lists = taken.column("vector").combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if len(values) != len(keys) * dim:
        raise CatalogError(
            f"representation {identity}: found {len(values)} values in {len(keys)} vectors, expected {dim} in each. "
            "The rows were not written by one embedding job: embed the pack again under a new model."
        )
    matrix: np.ndarray[Any, Any] = values.reshape(len(keys), dim)
    return matrix
