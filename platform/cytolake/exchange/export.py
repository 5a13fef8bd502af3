"""Exports embeddings for other tools: AnnData (.h5ad) and profiling tables (Parquet, CSV).

It is one file because all formats write the same rows and labels.

Shapes: N crops or wells, D features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.annotated import observations, plain_row, with_annotations
from cytolake.catalog.ids import whole_id
from cytolake.catalog.labelled_units import UNIT, LabelledUnits, labelled_units
from cytolake.catalog.representations import (
    ALIGNED,
    Level,
    VectorReader,
    checked,
    find_representation,
    no_vectors,
    vectors_of,
)
from cytolake.embed.aggregate import COLUMNS, aggregate
from cytolake.storage.atomic_write import atomic_file

TableLevel = Level | Literal["guide", "perturbation"]

_WELL_COLUMNS = (
    "screen", "batch", "plate", "well", "perturbation", "gene", "pathway", "guide", "compound", "dose", "replicate",
    "control", "is_negative_control",
)  # fmt: skip
_METADATA = {
    "screen": "Metadata_Screen", "batch": "Metadata_Batch", "plate": "Metadata_Plate", "well": "Metadata_Well",
    "perturbation": "Metadata_Perturbation", "gene": "Metadata_Gene", "pathway": "Metadata_Pathway",
    "guide": "Metadata_Guide", "compound": "Metadata_Compound", "dose": "Metadata_Dose",
    "replicate": "Metadata_Replicate", "control": "Metadata_Control",
    "is_negative_control": "Metadata_IsNegativeControl", "site": "Metadata_Site", "y": "Metadata_y", "x": "Metadata_x",
}  # fmt: skip
"""Names that profiling tools know a table's labels by: they take every other column for a feature."""
_RESERVED = frozenset(
    {*_METADATA.values(), "Metadata_crop_id", "Metadata_n_crops", "Metadata_well_id", "Metadata_representation_id"}
)
_OF_CROP = ("site", "y", "x")
_ROW_GROUP_BYTES = 64_000_000


def representations_of(
    catalog: Catalog, model_id: str, *, pack_id: str = "", poolings: Sequence[str] = (), blocks: Sequence[int] = ()
) -> list[str]:
    """Ids of the blocks and poolings of one model over one pack, in the order of pooling and block.

    Args:
        model_id: As in `representations`, or its beginning.
        pack_id: Or its beginning. Needed where several packs were embedded with the model.
        poolings: Only these; all by default.
        blocks: Only these, 0 = first; all by default.

    Raises:
        ValueError: The model has none (of these), or has them of several packs and `pack_id` does not say which.
    """
    known = catalog.table("representations").to_pylist()
    model = whole_id(model_id, (row["model_id"] for row in known), "model")
    if not model:
        models = sorted({f"{row['model_id']} ({row['architecture']}, {row['kind']})" for row in known})
        raise ValueError(
            f"model {model_id}: none in the table representations has this id. There are: "
            f"{', '.join(models) or 'none'}. Embed a pack with `cytolake embed`."
        )
    rows = [row for row in known if row["model_id"] == model]
    packs = sorted({row["pack_id"] for row in rows})
    pack_id = whole_id(pack_id, packs, "pack") or pack_id
    if len(packs) > 1 and not pack_id:
        raise ValueError(
            f"model {model_id}: embeddings of {len(packs)} packs, {', '.join(packs)}. Name one: --pack-id, or pack_id."
        )
    wanted = [
        row
        for row in rows
        if (not pack_id or row["pack_id"] == pack_id)
        and (not poolings or row["pooling"] in poolings)
        and (not blocks or row["block"] in blocks)
    ]
    if not wanted:
        there = sorted({f"block {row['block']} {row['pooling']} of pack {row['pack_id']}" for row in rows})
        raise ValueError(
            f"model {model_id}: no representation of these. There are: {', '.join(there[:8]) or 'none'}. "
            "Run `cytolake embed`."
        )
    return [row["representation_id"] for row in sorted(wanted, key=lambda row: (row["pooling"], row["block"]))]


def export_anndata(
    catalog: Catalog, representation_ids: Sequence[str], path: str | Path, *, level: Level = "well"
) -> Path:
    """Write representations of the same crops or wells as one .h5ad; one representation is in memory at a time.

    `obs` holds what is known of the crops or wells, in the order of screen, plate, well and id; annotations of the
    plate map are columns `Metadata_<name>`. `obsm` holds one
    float32 matrix for each representation: `block_3_mean` for a block and pooling of an encoder, the name of the
    architecture for what has no blocks (`pixel_statistics`, an external table), `block_3_mean_tvn_vcb` for what was
    aligned. There is no `X`. `uns["cytolake"]` holds the level, the versions of the tables, and for each key of `obsm`
    its row of `representations`: model, pack, curation and run.

    Args:
        catalog: Where the rows are.
        representation_ids: At least one; see `representations_of`.
        path: Replaced if it is there, in one step.
        level: `crop` writes embeddings, `well` profiles.

    Returns:
        The path.

    Raises:
        ValueError: Blocks of two encoders, two representations of one key, or of different crops or wells; and what
            `vectors_of` refuses.
    """
    import anndata
    import h5py  # type: ignore[import-untyped]

    catalog = catalog.snapshot()
    known = _keyed(catalog, representation_ids)
    first = next(iter(known.values()))
    units = labelled_units(catalog)
    reader = VectorReader(catalog, level)
    obs = _observations(catalog, reader, first, units)
    ids = obs[reader.key].combine_chunks()
    frame = obs.to_pandas().set_index(reader.key, drop=True)
    for column in obs.column_names:
        if pa.types.is_string(obs[column].type) and column not in (reader.key, "well_id"):
            frame[column] = frame[column].fillna("").astype("category")
    about = {key: plain_row(row) for key, row in known.items()}
    uns = {"level": level, "table_versions": dict(catalog.versions()), "representations": about}
    with atomic_file(path) as part:
        anndata.AnnData(obs=frame, uns={"cytolake": uns}).write_h5ad(part)
        with h5py.File(part, "r+") as file:
            for key, row in known.items():
                matrix = _matrix(reader, row, ids, str(first["representation_id"]), units)
                anndata.io.write_elem(file["obsm"], key, matrix)
    return Path(path)


def export_parquet(catalog: Catalog, representation_id: str, path: str | Path, *, level: TableLevel = "well") -> Path:
    """Write one representation as a profiling table: `Metadata_*` columns and one float32 column for each feature.

    pycytominer, copairs and their kind read it unchanged. Annotations of the plate map are `Metadata_<name>`; crops
    have `Metadata_Site`, `Metadata_y` and `Metadata_x`, their top left corner in pixels. Rows are streamed in the order
    in which they are stored, so memory does not grow with their number. `Metadata_representation_id` in each row, and
    the row of `representations` as JSON under `cytolake` in the file's metadata, say whose vectors they are. Features
    are named as matrices are by `export_anndata`: `block_3_mean_0000`, or by the architecture without blocks.

    Args:
        catalog: Where the rows are.
        representation_id: Whose vectors.
        path: Replaced if it is there, in one step.
        level: `crop` writes embeddings, `well` profiles, `guide` and `perturbation` the means of their wells, which are
            computed (see `cytolake.embed.aggregate`): screen, label and counts are their only metadata.

    Returns:
        The path.

    Raises:
        ValueError: No such representation or no rows of it, wells that are not in `wells`; and what `vectors_of`
            refuses.
    """

    def writer(part: Path, schema: pa.Schema) -> _TableWriter:
        opened: _TableWriter = pq.ParquetWriter(part, schema, compression="zstd")
        return opened

    return _export_table(catalog, representation_id, Path(path), level, writer)


def export_csv(catalog: Catalog, representation_id: str, path: str | Path, *, level: TableLevel = "well") -> Path:
    """Write the same table as `export_parquet` as CSV, packed where the path ends in `.gz`.

    Raises:
        ValueError: As `export_parquet`.
    """
    compression = "gzip" if str(path).lower().endswith(".gz") else None
    return _export_table(
        catalog, representation_id, Path(path), level, lambda part, schema: _CsvWriter(part, schema, compression)
    )


def _export_table(
    catalog: Catalog,
    name: str,
    path: Path,
    level: TableLevel,
    open_writer: Callable[[Path, pa.Schema], _TableWriter],
) -> Path:
    catalog = catalog.snapshot()
    ((key, row),) = _keyed(catalog, [name]).items()
    features = [f"{key}_{i:04d}" for i in range(int(row["dim"]))]
    described = {b"cytolake": json.dumps(plain_row(row)).encode()}
    if level == "crop" or level == "well":
        chunks = _stored_rows(catalog, row, level, features)
    else:
        chunks = iter([_mean_rows(catalog, str(row["representation_id"]), level, features)])
    writer: _TableWriter | None = None
    with atomic_file(path) as part:
        try:
            for chunk in chunks:
                if writer is None:
                    writer = open_writer(part, chunk.schema.with_metadata(described))
                writer.write_table(chunk, chunk.num_rows)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise no_vectors(row, "crop" if level == "crop" else "well")
    return path


def _stored_rows(
    catalog: Catalog, representation: Mapping[str, Any], level: Level, features: Sequence[str]
) -> Iterator[pa.Table]:
    """Crops or wells in the order in which they are stored, a row group of the file at a time."""
    representation_id = str(representation["representation_id"])
    reader = VectorReader(catalog, level)
    units = labelled_units(catalog)
    wells = with_annotations(units, _WELL_COLUMNS, _RESERVED)
    at_once = max(1, _ROW_GROUP_BYTES // (4 * len(features)))

    def whole(waiting: Sequence[pa.Table]) -> pa.Table:
        chunk = pa.concat_tables(waiting)
        return _with_places(catalog, chunk, len(features)) if level == "crop" else chunk

    waiting: list[pa.Table] = []
    for stored in reader.rows(representation_id):
        rows = _current_rows(stored, units, level)
        if rows.num_rows:
            waiting.append(_profiling_rows(rows, units, wells, reader.key, representation_id, features))
        if sum(each.num_rows for each in waiting) >= at_once:
            yield whole(waiting)
            waiting = []
    if waiting:
        yield whole(waiting)


def _mean_rows(
    catalog: Catalog, representation_id: str, level: Literal["guide", "perturbation"], features: Sequence[str]
) -> pa.Table:
    """Means of the wells of each guide or perturbation."""
    means = aggregate(catalog, representation_id, level)
    by_feature = np.stack(means["vector"].to_numpy()).T
    return pa.table(
        {
            **{_METADATA[name]: means[name] for name in COLUMNS[level]},
            "Metadata_n_crops": means["n_crops"],
            "Metadata_n_wells": means["n_wells"],
            "Metadata_representation_id": pa.repeat(representation_id, means.num_rows),
            **{feature: np.ascontiguousarray(values) for feature, values in zip(features, by_feature, strict=True)},
        }
    )


class _TableWriter(Protocol):
    def write_table(self, table: pa.Table, row_group_size: int) -> None: ...

    def close(self) -> None: ...


class _CsvWriter:
    def __init__(self, path: Path, schema: pa.Schema, compression: str | None) -> None:
        self._sink = pa.output_stream(str(path), compression=compression)
        self._writer = pa.csv.CSVWriter(self._sink, schema)

    def write_table(self, table: pa.Table, row_group_size: int) -> None:
        self._writer.write_table(table, row_group_size)

    def close(self) -> None:
        self._writer.close()
        self._sink.close()


def _current_rows(rows: pa.Table, units: LabelledUnits, level: Level) -> pa.Table:
    """Rows without profiles of groups whose labels changed since."""
    if level == "crop" or not units.plates_with_objects:
        return rows
    outdated = units.outdated(rows["well_id"].to_pylist(), rows["plate_id"].to_pylist())
    return rows.filter(pa.array([not each for each in outdated], pa.bool_()))


def _with_places(catalog: Catalog, rows: pa.Table, n_features: int) -> pa.Table:
    """Rows of crops with site, y and x before their features; null for crops that were cut elsewhere."""
    found = catalog.sql(
        f"SELECT c.crop_id, {', '.join(f'c.{name}' for name in _OF_CROP)} FROM these JOIN crops c USING (crop_id)",
        these=rows.select(["Metadata_crop_id"]).rename_columns(["crop_id"]),
    )
    place = pc.index_in(rows["Metadata_crop_id"], value_set=found["crop_id"].combine_chunks())
    at = rows.num_columns - n_features
    for name in reversed(_OF_CROP):
        rows = rows.add_column(at, _METADATA[name], found[name].take(place))
    return rows


def _profiling_rows(
    rows: pa.Table, units: LabelledUnits, wells: pa.Table, key: str, representation_id: str, features: Sequence[str]
) -> pa.Table:
    matrix_ND = vectors_of(rows, representation_id, len(features))
    of_row = units.of_crops(rows["crop_id"], rows["well_id"]) if key == "crop_id" else rows["well_id"]
    known = wells.take(_places(of_row, wells[UNIT].combine_chunks(), "wells", representation_id))
    columns: dict[str, Any] = {_METADATA.get(name, name): known[name] for name in known.column_names[1:]}
    if key == "crop_id":
        columns["Metadata_crop_id"] = rows["crop_id"]
    else:
        columns["Metadata_n_crops"] = rows["n_crops"]
    columns["Metadata_well_id"] = rows["well_id"]
    columns["Metadata_representation_id"] = pa.repeat(representation_id, rows.num_rows)
    by_feature = np.ascontiguousarray(matrix_ND.T)
    return pa.table({**columns, **{feature: by_feature[i] for i, feature in enumerate(features)}})


def _keyed(catalog: Catalog, representation_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of `representations` by the name of their matrix."""
    if not representation_ids:
        raise ValueError("no representation given, expected one or more ids. See representations_of.")
    keyed: dict[str, dict[str, Any]] = {}
    encoder = ""
    rows = {
        row["representation_id"]: row for row in (find_representation(catalog, each) for each in representation_ids)
    }
    for each, row in rows.items():
        has_blocks = row["block"] is not None and row["block"] >= 0
        model_id = _encoder(catalog, row)
        if has_blocks and encoder not in ("", model_id):
            raise ValueError(
                f"representations of the models {encoder} and {model_id} in one file: block_0_mean would be "
                "ambiguous. Export each model to a file of its own."
            )
        encoder = model_id if has_blocks else encoder
        form = "" if row["pooling"] == "all" else f"_{row['pooling']}"
        own = f"block_{row['block']}_{row['pooling']}" if has_blocks else f"{row['architecture']}{form}"
        own += f"_{row['alignment_variant']}" if row["kind"] == ALIGNED else ""
        key = re.sub(r"[^A-Za-z0-9_.-]", "_", own)
        if key in keyed:
            raise ValueError(
                f"representations {keyed[key]['representation_id']} and {each} are both {key}, of packs "
                f"{keyed[key]['pack_id']} and {row['pack_id']}. Export them to different files."
            )
        keyed[key] = row
    return keyed


def _encoder(catalog: Catalog, row: Mapping[str, Any]) -> str:
    """Model id of the encoder, also of an aligned representation."""
    while row["kind"] == ALIGNED:
        row = find_representation(catalog, row["parent_id"])
    return str(row["model_id"])


def _observations(
    catalog: Catalog, reader: VectorReader, representation: Mapping[str, Any], units: LabelledUnits
) -> pa.Table:
    """Labels of the crops or wells of a representation, by its row of `representations`."""
    representation_id, level = representation["representation_id"], reader.level
    own = ["n_crops"] if level == "well" else []
    columns = list(dict.fromkeys([reader.key, "well_id", "plate_id", *own]))
    rows = _current_rows(reader.columns(representation_id, columns), units, level)
    if rows.num_rows == 0:
        raise no_vectors(representation, level)
    n_ids = pc.count_distinct(rows[reader.key]).as_py()
    if n_ids != rows.num_rows:
        raise ValueError(
            f"representation {representation_id}: {rows.num_rows} rows in the table {reader.table}, but {n_ids} "
            f"{reader.key}s. Two jobs wrote it at once: embed again under a new root."
        )
    of_row = units.of_crops(rows["crop_id"], rows["well_id"]) if level == "crop" else rows["well_id"]
    _places(of_row, units.rows[UNIT].combine_chunks(), "wells", representation_id)
    of_crop = [f"c.{name}" for name in _OF_CROP] if level == "crop" else [f"r.{name}" for name in own]
    ids = list(dict.fromkeys([f"r.{reader.key}", "r.well_id"]))
    selected = [*ids, *(f"w.{name}" for name in _WELL_COLUMNS), *of_crop]
    order = ["w.screen", "w.plate", "w.well", f"r.{reader.key}"]
    return observations(catalog, rows, units, selected, order=order, reserved=_RESERVED)


def _matrix(
    reader: VectorReader, representation: Mapping[str, Any], ids: pa.Array, first: str, units: LabelledUnits
) -> NDArray[np.float32]:
    """(N, D) in the order of the ids of crops or wells, which are those of the representation `first`."""
    representation_id, level = str(representation["representation_id"]), reader.level
    columns = list(dict.fromkeys([reader.key, "well_id", "plate_id"]))
    own = _current_rows(reader.columns(representation_id, columns), units, level)
    _places(own[reader.key], ids, f"representation {first}", representation_id)
    if own.num_rows != len(ids):
        raise ValueError(
            f"representation {representation_id}: {own.num_rows} {level}s, but {len(ids)} in representation {first}. "
            "Only representations of the same pack fit into one file."
        )
    matrix = reader.take(representation_id, reader.places(representation_id, ids).to_numpy())
    return checked(matrix, representation_id, reader.key, ids, int(representation["dim"]))


def _places(values: pa.ChunkedArray, among: Any, where: str, representation_id: str) -> pa.Array:
    place = pc.index_in(values, value_set=among)
    place = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
    if place.null_count:
        some = values.filter(pc.is_null(place)).to_pylist()[:3]
        raise ValueError(
            f"representation {representation_id}: {place.null_count} of {len(values)} rows have no counterpart in "
            f"{where}, such as {', '.join(map(str, some))}. Ingest their plates, or export representations of one pack."
        )
    return place
