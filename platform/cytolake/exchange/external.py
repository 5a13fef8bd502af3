"""Imports embeddings of other tools as a representation of kind `external`.

Rows of a table are matched to the catalog's crops or wells and written to `embeddings`, `profiles` and
`representations`, so that other encoders are in the same leaderboard as cytolake's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.corrections.object_labels import label_crops
from cytolake.catalog.ids import content_id, representation_id, whole_id
from cytolake.catalog.representations import (
    ALIGNED,
    EXTERNAL,
    PIXEL_STATISTICS,
    VectorReader,
    stored_representation,
    vectors_column,
)
from cytolake.embed.well_sums import append_profiles
from cytolake.exchange.deepprofiler import read_deepprofiler
from cytolake.exchange.profile_tables import TABLE_SUFFIXES
from cytolake.exchange.vector_tables import ExternalTable, listed, read_anndata_table, read_profiles
from cytolake.models.config import Architecture
from cytolake.screens.label_vocabulary import nfc
from cytolake.screens.positions import site_name, well_name

POOLING = "all"

_APPEND_BYTES = 128_000_000
_SOME = 5  # rows that an error names


def read_external(
    paths: Sequence[Path], key: str = "", *, leave_out_missing: bool = False, label_objects: bool = False
) -> ExternalTable:
    """Read one table of profiles or .h5ad file, or DeepProfiler's .npz files; `key` is of obsm.

    Raises:
        ValueError: Files of other kinds, and what their readers refuse.
    """
    names = [path.name.lower() for path in paths]
    if names and all(name.endswith(".npz") for name in names):
        if label_objects:
            raise ValueError(
                "DeepProfiler's files have no labels of cells, expected a table or .h5ad file that does. Leave "
                "--label-objects out, and label the cells with `cytolake plates label-objects`."
            )
        return read_deepprofiler(paths)
    if len(names) == 1 and names[0].endswith(".h5ad"):
        return read_anndata_table(paths[0], key, leave_out_missing=leave_out_missing, label_objects=label_objects)
    if len(names) == 1 and names[0].endswith(TABLE_SUFFIXES):
        return read_profiles(paths[0], leave_out_missing=leave_out_missing, label_objects=label_objects)
    kinds = sorted({path.suffix for path in paths})
    raise ValueError(
        f"{len(paths)} files of {', '.join(kinds)}: expected one file named {', '.join((*TABLE_SUFFIXES, '.h5ad'))}, "
        "or .npz files."
    )


def wells_matched(catalog: Catalog, representation_id: str) -> list[tuple[str, int, int]]:
    """For each screen of a representation: plates in words, wells with a vector, and wells that those plates have."""
    rows = catalog.sql(
        """
        with vectors as (
            select distinct well_id from profiles where representation_id = $representation_id
        )
        select screen, count(distinct plate) as plates, count(v.well_id) as matched, count(*) as wells
        from wells left join vectors v using (well_id)
        where plate_id in (select plate_id from wells join vectors using (well_id)) group by screen order by screen
        """,
        parameters={"representation_id": representation_id},
    ).to_pylist()
    return [
        (
            f"screen {row['screen']}, {row['plates']} plate{'s' if row['plates'] > 1 else ''}",
            row["matched"],
            row["wells"],
        )
        for row in rows
    ]


def import_embeddings(catalog: Catalog, table: ExternalTable, name: str, *, screen: str = "", pack_id: str = "") -> str:
    """Write an external table as a representation, with the means of its wells.

    Rows with crop ids are vectors of the catalog's crops. Rows with plate and well alone are given crop ids made of the
    well, the site and their number in it, so that tables of as many rows of the same wells can be compared with each
    other. The same content under the same name is stored once, from whatever file.

    Args:
        catalog: Where the wells are and the rows go.
        table: What was read. Labels that its rows have become labels of the crops (table `objects`).
        name: Of the model: becomes the architecture in `representations`.
        screen: Of all rows, where the table has no column for it and plates of several screens share a name.
        pack_id: Rows with crop ids only: the table has exactly the crops that were embedded of this pack, and is
            compared with its representations.

    Returns:
        The representation's id; its kind is `external`, its block -1, its pooling `all`.

    Raises:
        ValueError: A name of our own models or an empty one, crops or wells that the catalog does not have, a plate
            name of several screens, a crop twice, or crops that are not those of the pack.
    """
    if not name.strip() or name in (*get_args(Architecture), PIXEL_STATISTICS):
        raise ValueError(
            f"name {name!r}: expected one that names the model, and not one of cytolake's own architectures "
            f"({', '.join((*get_args(Architecture), PIXEL_STATISTICS))}). Choose another, such as efficientnet_b0."
        )
    source = catalog.snapshot()
    crops = _known_crops(source, table) if "crop_id" in table.labels else _crops_of_wells(source, table, screen)
    labels, label_of_row, _ = table.object_labels
    if labels:
        label_crops(catalog, crops, labels, label_of_row.tolist())
    curation_id = ""
    if pack_id:
        packs = source.table("representations", columns=["pack_id"])["pack_id"].to_pylist()
        pack_id = whole_id(pack_id, packs, "pack") or pack_id
        curation_id = _check_pack(source, table, crops["crop_id"], pack_id)
    else:
        pack_id = content_id("crops", *sorted(crops["crop_id"].to_pylist()))
    order = pc.sort_indices(crops["crop_id"])  # the order of a file's rows is no content
    crops, vectors = crops.take(order), np.asarray(table.vectors, dtype="<f4")[order.to_numpy()]
    digest = hashlib.blake2b(vectors.tobytes(), digest_size=16).hexdigest()
    model_id = content_id(EXTERNAL, name, vectors.shape[1], *crops["crop_id"].to_pylist(), digest)
    identity = representation_id(model_id, -1, POOLING, pack_id)
    if stored_representation(source, identity):
        return identity
    contract = table_contract("embeddings")
    at_once = max(1, _APPEND_BYTES // (4 * vectors.shape[1]))
    for start in range(0, len(vectors), at_once):
        part = crops.slice(start, at_once)
        rows = {
            "representation_id": pa.repeat(identity, part.num_rows),
            **{column: part[column] for column in ("crop_id", "well_id", "plate_id")},
            "embedding": vectors_column(vectors[start : start + at_once]),
        }
        catalog.append("embeddings", contract.conform(pa.table(rows)), transaction=f"embeddings/{identity}/{start}")
    append_profiles(catalog, [identity])
    row = dict.fromkeys(table_contract("representations").schema.names) | {
        "representation_id": identity,
        "kind": EXTERNAL,
        "model_id": model_id,
        "architecture": name,
        "block": -1,
        "pooling": POOLING,
        "dim": vectors.shape[1],
        "pack_id": pack_id,
        "curation_id": curation_id,
        "checkpoint": "",
        "run_id": "",
        "created_at": datetime.now(UTC),
    }
    new = table_contract("representations").rows([row])
    catalog.append("representations", new, transaction=f"representations/{identity}")
    return identity


def _known_crops(catalog: Catalog, table: ExternalTable) -> pa.Table:
    """`crop_id`, `well_id` and `plate_id` of each row, by its crop id."""
    ids = pa.array(table.labels["crop_id"], pa.string())
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        twice = [each["values"] for each in counts.to_pylist() if each["counts"] > 1]
        raise ValueError(
            f"{table.source}: {len(twice)} crop ids are there more than once, such as {', '.join(twice[:3])}. Give one "
            "row for each crop."
        )
    there = catalog.table("crops", columns=["crop_id", "well_id", "plate_id"])
    place = pc.index_in(ids, value_set=there["crop_id"].combine_chunks())
    _all_found(table, place, "crops", "Ingest their plates, or give plate and well instead of crop_id.")
    return there.take(place)


def _crops_of_wells(catalog: Catalog, table: ExternalTable, screen: str) -> pa.Table:
    """The same by plate and well; crop ids are made of the well, the site and the row's number there."""
    names = ["well_id", "plate_id", "screen", "plate", "well"]
    there = catalog.table("wells", columns=names).sort_by("well_id").to_pylist()
    screens = table.labels.get("screen", (screen,) * len(table.vectors))
    by_place: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for well in there:
        for known_as in {"", well["screen"]}:
            by_place.setdefault((nfc(known_as), nfc(well["plate"]), well["well"]), []).append(well)
    found: list[dict[str, Any] | None] = []
    for row_screen, plate, text in zip(screens, table.labels["plate"], table.labels["well"], strict=True):
        matches = by_place.get((nfc(row_screen), nfc(plate), well_name(text) or text), [])
        if len(matches) > 1:
            raise ValueError(
                f"{table.source}: {table.row(len(found))} is of one of the screens "
                f"{', '.join(sorted(str(match['screen']) for match in matches))}, which all have a plate of this name. "
                "Add a column screen, or give `screen`."
            )
        found.append(matches[0] if matches else None)
    place = pa.array([None if well is None else 0 for well in found], pa.int32())
    _all_found(table, place, "wells", "Ingest their plates, or correct the names of plates and wells.")
    sites = table.labels.get("site", ("",) * len(found))
    counts: dict[tuple[str, str], int] = {}
    crop_ids = []
    for well, site in zip(found, sites, strict=True):
        assert well is not None
        key = (well["well_id"], site_name(site) if site else "")
        number = counts[key] = counts.get(key, -1) + 1
        crop_ids.append(content_id(EXTERNAL, *key, number))
    return pa.table(
        {
            "crop_id": pa.array(crop_ids, pa.string()),
            **{column: pa.array([well[column] for well in found if well]) for column in ("well_id", "plate_id")},
        }
    )


def _check_pack(catalog: Catalog, table: ExternalTable, crop_ids: pa.ChunkedArray, pack_id: str) -> str:
    """The pack's curation, where the table has exactly the pack's crops."""
    where = "pack_id = ? AND kind <> ?"  # aligned ones may have no crops
    rows = catalog.table("representations", where=where, parameters=[pack_id, ALIGNED]).sort_by("representation_id")
    if rows.num_rows == 0:
        embedded = catalog.table("representations", where="kind <> ?", parameters=[ALIGNED])
        packs = sorted(set(embedded["pack_id"].to_pylist()))
        raise ValueError(
            f"pack {pack_id}: nothing of it was embedded. There are: {', '.join(packs) or 'none'}. Run "
            "`cytolake embed` first, or leave pack_id out."
        )
    first = rows.slice(0, 1).to_pylist()[0]
    packed = VectorReader(catalog).columns(first["representation_id"], ["crop_id"])["crop_id"]
    ours, theirs = set(packed.to_pylist()), set(crop_ids.to_pylist())
    if ours != theirs:
        missing, more = sorted(ours - theirs), sorted(theirs - ours)
        raise ValueError(
            f"{table.source}: {len(missing)} of {len(ours)} crops of pack {pack_id} have no row"
            f"{f' ({listed(missing)})' if missing else ''}, and {len(more)} rows are of other crops"
            f"{f' ({listed(more)})' if more else ''}. Scores of different crops cannot be compared: embed exactly the "
            "pack's crops, or leave pack_id out."
        )
    return str(first["curation_id"] or "")


def _all_found(table: ExternalTable, place: pa.Array, where: str, remedy: str) -> None:
    missing = np.flatnonzero(~np.asarray(place.is_valid().to_numpy(zero_copy_only=False), dtype=bool)).tolist()
    if missing:
        raise ValueError(
            f"{table.source}: {len(missing)} of {len(place)} rows are not in the catalog's {where}: "
            f"{', '.join(table.row(i) for i in missing[:_SOME])}. {remedy}"
        )
