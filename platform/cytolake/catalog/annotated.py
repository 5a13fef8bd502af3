"""Reads representations with all labels of their crops or wells into one AnnData.

`cytolake.exchange.export` writes the same to a file, of representations that need not fit into memory together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.annotation_columns import annotation_columns
from cytolake.catalog.declared import table_contract
from cytolake.catalog.labelled_units import UNIT, LabelledUnits, labelled_units
from cytolake.catalog.representations import (
    Level,
    VectorReader,
    find_representation,
    no_vectors,
    read_vectors,
    wrong_dim,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from pandas import DataFrame

    from cytolake.catalog.tables import Catalog


def to_anndata(catalog: Catalog, names: str | Sequence[str], *, level: Level = "crop") -> AnnData:
    """Put one or several representations of the same crops or wells into an AnnData.

    Args:
        catalog: Where the rows are.
        names: Of representations, as `find_representation` takes them: one, or several. Of several, only the crops
            (wells) that have all of them are there.
        level: `crop` reads `embeddings`, `well` reads `profiles`.

    Returns:
        `obs`: columns of `crops` and `wells`, indexed by crop or well id, in the order of the ids, with the labels of
        objects where these have any (at the level of wells a row for each group of them); each annotation of
        the plate map is a column `Metadata_<name>`. `X`: (N, D) float32 of one representation; of several, `X` is
        absent and each is in `obsm` under its id. `uns["cytolake"]`: rows of `representations` as JSON-like values.

    Raises:
        CatalogError: A representation that is not there, or has no rows at this level.
    """
    import anndata

    catalog = catalog.snapshot()
    wanted = [names] if isinstance(names, str) else list(names) or [""]
    found = [find_representation(catalog, name) for name in wanted]
    known = {str(row["representation_id"]): row for row in found}
    units = labelled_units(catalog)
    reader = VectorReader(catalog, level)
    rows = _ids_of_all(reader, known)
    columns = table_contract("wells").schema.names
    if level == "crop":
        rows = catalog.sql("SELECT * FROM crops SEMI JOIN these USING (crop_id)", these=rows)
        of_crops = [f"r.{name}" for name in rows.column_names]
        selected = [*of_crops, *(f"w.{name}" for name in columns if f"r.{name}" not in of_crops)]
    else:
        selected = ["r.well_id", *(f"w.{name}" for name in columns if name != "well_id")]
    obs = observations(catalog, rows, units, selected, order=[f"r.{reader.key}"])
    matrices = {}
    for identity, row in known.items():
        matrices[identity] = read_vectors(catalog, identity, obs[reader.key], level=level)
        if matrices[identity].shape[1] != row["dim"]:
            raise wrong_dim(identity, matrices[identity].shape[1], int(row["dim"]))
    single = len(known) == 1
    return anndata.AnnData(
        X=next(iter(matrices.values())) if single else None,
        obs=_writable(obs).set_index(reader.key, drop=True),
        obsm={} if single else matrices,
        uns={"cytolake": {identity: plain_row(row) for identity, row in known.items()}},
    )


def observations(
    catalog: Catalog,
    rows: pa.Table,
    units: LabelledUnits,
    selected: Sequence[str],
    *,
    order: Sequence[str],
    reserved: Collection[str] | None = None,
) -> pa.Table:
    """Rows of crops or wells with the labels and annotations of their wells, or of the groups of objects there.

    Args:
        rows: `well_id` of each row (of profiles the id of the well or group), and `crop_id` where it is a crop.
        selected: Columns of the result: `r.NAME` of `rows`, `w.NAME` of the well, `c.NAME` of the ingested crop (null
            for crops that were cut elsewhere). Annotations follow as `Metadata_<name>` after the last of the wells'.
        order: Columns that the result is sorted by, written the same way.
        reserved: Names that no annotation may take; by default those of the selected columns.

    Returns:
        One row for each of `rows` whose well is known.
    """
    is_crop = "crop_id" in rows.column_names
    unit = units.of_crops(rows["crop_id"], rows["well_id"]) if is_crop else rows["well_id"]
    selected = [name for name in selected if name != "w.annotations"]
    taken = [name[2:] for name in selected] if reserved is None else reserved
    wells = with_annotations(units, [name[2:] for name in {*selected, *order} if name.startswith("w.")], taken)
    annotations = [f"w.{name}" for name in wells.column_names if name.startswith("Metadata_")]
    last = max(place for place, name in enumerate(selected) if name.startswith("w.")) + 1
    shown = ", ".join(_quoted(name) for name in [*selected[:last], *annotations, *selected[last:]])
    crops = "LEFT JOIN crops c ON c.crop_id = r.crop_id" if any(name.startswith("c.") for name in selected) else ""
    return catalog.sql(
        f"SELECT {shown} FROM these r JOIN units w ON w.{UNIT} = r.{UNIT} {crops} "
        f"ORDER BY {', '.join(_quoted(name) for name in order)}",
        these=rows.append_column(UNIT, unit),
        units=wells,
    )


def _writable(rows: pa.Table) -> DataFrame:
    """Rows as pandas; columns with nulls for which HDF5 has no type get one of pandas that keeps the nulls."""
    frame = rows.to_pandas()
    for column in rows.schema:
        if pa.types.is_boolean(column.type) and frame[column.name].dtype == object:
            frame[column.name] = frame[column.name].astype("boolean")
        elif frame[column.name].dtype == object and frame[column.name].isna().all():
            frame[column.name] = frame[column.name].astype("category")
    return frame


def with_annotations(units: LabelledUnits, columns: Sequence[str], reserved: Collection[str]) -> pa.Table:
    """`unit_id`, columns of `wells`, and each annotation as a column `Metadata_<name>` that is not a reserved name."""
    wells = units.rows.select([UNIT, *columns])
    for name, column in annotation_columns(units.rows["annotations"].to_pylist(), reserved).items():
        wells = wells.append_column(name, column)
    return wells


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of `representations` as JSON and HDF5 have it: null and NaN are empty, a time is text in UTC."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> int | float | str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, int | float | str) else str(value.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _ids_of_all(reader: VectorReader, known: dict[str, dict[str, Any]]) -> pa.Table:
    """`crop_id` or `well_id` of the rows that every representation has."""
    shared: pa.Table | None = None
    for identity, row in known.items():
        ids = reader.columns(identity, [reader.key])
        if not ids.num_rows:
            raise no_vectors(row, reader.level)
        if shared is not None:
            ids = ids.filter(pc.is_in(ids[reader.key], value_set=shared[reader.key].combine_chunks()))
        shared = ids
    assert shared is not None
    return shared


def _quoted(name: str) -> str:
    """`w.plate` -> `w."plate"`."""
    return f'{name[:2]}"{name[2:].replace(chr(34), chr(34) * 2)}"'
