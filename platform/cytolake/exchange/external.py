"""Embeddings that other tools made, as a representation of kind `external`: peers' models in the same leaderboard.

A table is read from Parquet, CSV, AnnData or DeepProfiler files, its rows are matched to the catalog's crops or wells,
and they are written to `embeddings`, `profiles` and `representations` like our own.

Shapes: N rows, D features.
"""

from __future__ import annotations

import hashlib
import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.corrections.object_labels import label_crops
from cytolake.catalog.ids import content_id, representation_id
from cytolake.embed.aggregate import append_profiles, checked_id, pinned, vectors_column
from cytolake.embed.alignment.kept import ALIGNED
from cytolake.embed.extract import PIXEL_STATISTICS
from cytolake.exchange.profile_tables import (
    LABELS,
    TABLE_SUFFIXES,
    feature_columns,
    is_list,
    labels_of,
    matrix_of,
    read_profile_table,
    vectors_of_lists,
)
from cytolake.models.config import Architecture
from cytolake.screens.label_vocabulary import label_vocabulary, nfc
from cytolake.screens.object_table import object_labels, says_something
from cytolake.screens.plate import Problem
from cytolake.screens.positions import site_name, well_name
from cytolake.screens.well_labels import WellLabels

EXTERNAL = "external"
POOLING = "all"

_APPEND_BYTES = 128_000_000
_SOME = 5  # rows that an error names
_MOST_METADATA_BYTES = 1_000_000  # a dict of a few labels has 1 kB
_MARK = object()


ObjectLabels: TypeAlias = tuple[tuple[WellLabels, ...], NDArray[np.intp], tuple[Problem, ...]]
NO_LABELS: ObjectLabels = ((), np.zeros(0, np.intp), ())


@dataclass(frozen=True, slots=True, eq=False)
class ExternalTable:
    """Vectors of somebody else's model, and where each belongs.

    Raises:
        ValueError: No rows or features, vectors that are not finite, or labels that do not fit: too few, empty, or
            neither `crop_id` nor `plate` and `well`.
    """

    source: str
    """File and key, for errors."""
    vectors: NDArray[np.float32]
    """(N, D)"""
    labels: Mapping[str, tuple[str, ...]]
    """(N,) of each of `LABELS` that the file has."""
    n_left_out: int = 0
    """Features that the file has and the vectors lack, since values were missing."""
    object_labels: ObjectLabels = NO_LABELS
    """Labels of cells, not of wells: combinations that the file has, (N,) which of them each row has (-1: none), and
    what is wrong with them."""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or 0 in self.vectors.shape:
            raise ValueError(
                f"{self.source}: vectors of shape {self.vectors.shape}, expected (rows, features) with at least one of "
                "each. Name the columns, or the key of obsm, that hold the embedding."
            )
        if "crop_id" not in self.labels and not {"plate", "well"} <= set(self.labels):
            raise ValueError(
                f"{self.source}: found the labels {', '.join(self.labels) or 'none'}, expected crop_id, or plate and "
                "well (also as Metadata_Plate and Metadata_Well). Add these columns."
            )
        for name, values in self.labels.items():
            empty = [i for i, value in enumerate(values) if not value]
            if len(values) != len(self.vectors) or empty:
                raise ValueError(
                    f"{self.source}: {len(values) - len(empty)} values of {name} for {len(self.vectors)} vectors"
                    f"{f', none in {_rows(empty)}' if empty else ''}. Give every row its {name}."
                )
        bad = np.flatnonzero(~np.isfinite(self.vectors).all(axis=1)).tolist()
        if bad:
            raise ValueError(
                f"{self.source}: values that are not finite (NaN, infinite or missing) in {len(bad)} of "
                f"{len(self.vectors)} rows: {', '.join(self.row(i) for i in bad[:_SOME])}. Leave these rows out, or "
                "mend the features, or leave out those that lack values (--leave-out-missing)."
            )

    def row(self, i: int) -> str:
        """A row as an error names it."""
        place = " ".join(f"{name} {values[i]}" for name, values in self.labels.items())
        return f"row {i} ({place})"


def find_representation(catalog: Catalog, id_or_name: str) -> dict[str, Any]:
    """Row of `representations`, by its id or by the name of an external one.

    Raises:
        ValueError: No such representation, or several of this name.
    """
    rows = catalog.table("representations").to_pylist()
    external = {row["representation_id"]: row["architecture"] for row in rows if row["kind"] == EXTERNAL}
    matches = [row for row in rows if row["representation_id"] == id_or_name] or [
        row for row in rows if external.get(row["representation_id"]) == id_or_name
    ]
    if len(matches) > 1:
        raise ValueError(
            f"{id_or_name}: found {len(matches)} external representations of this name, expected one: "
            f"{', '.join(row['representation_id'] for row in matches)}. Give one of these ids."
        )
    if not matches:
        raise ValueError(
            f"{id_or_name}: no representation has this id, and no external one this name. There are {len(rows)} in the "
            f"table representations; external ones are {_some(sorted(set(external.values()))) or 'none'}. Give an "
            "id from there, or import the embeddings first: `cytolake import`."
        )
    return dict(matches[0])


def read_profiles(
    path: str | Path, *, features: Sequence[str] = (), leave_out_missing: bool = False, label_objects: bool = False
) -> ExternalTable:
    """Read a table of one row for each crop, cell, site or well.

    Args:
        path: Parquet, CSV or TSV (also `.gz`), as CellProfiler, pycytominer, copairs or `export_parquet` have it.
        features: Columns that hold the vector. By default the only column of lists, or those of `feature_columns`.
        leave_out_missing: Leave out features that lack a value in some row, or are infinite there; else they are an
            error.
        label_objects: Take the labels of each row too, such as the guide of a cell.

    Raises:
        ValueError: No such columns, lists of several lengths, and what `ExternalTable` refuses.
    """
    table = read_profile_table(Path(path))
    if missing := [name for name in features if name not in table.column_names]:
        raise ValueError(f"{path}: no column {', '.join(missing[:_SOME])}. There are: {_some(table.column_names)}.")
    labels = labels_of({name: table[name] for name in table.column_names if name not in features}, str(path))
    candidates = list(features) or feature_columns(table)
    of_rows = _object_labels(table, str(path)) if label_objects else NO_LABELS
    lists = [name for name in candidates if is_list(table[name].type)]
    if len(lists) > 1 or (lists and features and len(candidates) > 1):
        raise ValueError(f"{path}: several columns of vectors, {', '.join(lists)}. Name one in `features`.")
    if lists:
        vectors = vectors_of_lists(table[lists[0]], f"{path}, column {lists[0]}")
        return ExternalTable(str(path), vectors, labels, object_labels=of_rows)
    return _without_missing(str(path), matrix_of(table, candidates, str(path)), labels, leave_out_missing, of_rows)


def _object_labels(table: pa.Table, source: str) -> ObjectLabels:
    names = [name for name in table.column_names if label_vocabulary().is_label(name) and not is_list(table[name].type)]
    if not names:
        raise ValueError(
            f"{source}: found the columns {_some(table.column_names)}, expected a label of each row, such as guide or "
            "gene, of a name that catalog/labels.yaml has. Rename it, or leave --label-objects out."
        )
    labels, of_row, problems = object_labels(table, names, {}, "", Path(source).name)
    is_labelled = np.asarray([says_something(each) for each in labels], dtype=bool)
    return labels, np.where(is_labelled[of_row], of_row, -1), tuple(problems)


def _without_missing(
    source: str,
    matrix: NDArray[np.float32],
    labels: Mapping[str, tuple[str, ...]],
    leave_out: bool,
    of_rows: ObjectLabels,
) -> ExternalTable:
    whole = np.isfinite(matrix).all(axis=0) if leave_out and matrix.ndim == 2 else np.ones(matrix.shape[-1], bool)
    n_left_out = int((~whole).sum())
    return ExternalTable(source, matrix[..., whole], labels, n_left_out=n_left_out, object_labels=of_rows)


def read_anndata_table(
    path: str | Path, key: str = "", *, leave_out_missing: bool = False, label_objects: bool = False
) -> ExternalTable:
    """Read one embedding of an .h5ad file.

    Args:
        path: With the labels in `obs`; an `obs` index named `crop_id` counts as one.
        key: Of `obsm`; empty means `X`.
        leave_out_missing: As `read_profiles`.
        label_objects: The same.

    Raises:
        ValueError: No such key, not a matrix of numbers, and what `ExternalTable` refuses.
    """
    import anndata
    import h5py  # type: ignore[import-untyped]

    source = f"{path}, {f'obsm[{key!r}]' if key else 'X'}"
    with h5py.File(path, "r") as file:  # this matrix alone: AnnData would read those of all keys
        keys = sorted(file.get("obsm", ()))
        if f"obsm/{key}" not in file if key else "X" not in file:
            raise ValueError(f"{source}: not there. Name one of obsm: {_some(keys) or 'none'}.")
        found = anndata.io.read_elem(file["obsm"][key] if key else file["X"])
        obs = anndata.io.read_elem(file["obs"])
    matrix = np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=np.float32)
    columns = {str(name): pa.chunked_array([pa.array(obs[name].astype(object))]) for name in obs}
    if obs.index.name == "crop_id":
        columns["crop_id"] = pa.chunked_array([pa.array(obs.index.to_numpy(dtype=object))])
    of_rows = _object_labels(pa.table(columns), str(path)) if label_objects else NO_LABELS
    return _without_missing(source, matrix, labels_of(columns, source), leave_out_missing, of_rows)


def read_deepprofiler(paths: Sequence[str | Path]) -> ExternalTable:
    """Read single-cell features of DeepProfiler: one .npz for each site, in the order of the files.

    Plate, well and site come from the `metadata` in each file, a pickled dict. It is read as text and never unpickled:
    a pickle can run code. A site that is no plain text or number there is the name of its file.

    Args:
        paths: Files with `features` (cells, D) and `metadata`. A file of a site without cells may have 0 rows.

    Raises:
        ValueError: A file without these or whose metadata lacks plate or well, files of several widths, and what
            `ExternalTable` refuses.

    Source: file format of DeepProfiler, Moshkov et al. 2024, doi:10.1038/s41467-024-45999-1.
    """
    parts: list[NDArray[np.float32]] = []
    labels = {name: list[str]() for name in ("plate", "well", "site")}
    for path in paths:
        features, place = _deepprofiler_site(Path(path))
        if parts and features.shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"{path}: {features.shape[1]} features, {parts[0].shape[1]} in {paths[0]}. Give files of one model."
            )
        parts.append(features)
        for name, values in labels.items():
            values += [place[name]] * len(features)
    if not parts:
        raise ValueError("no DeepProfiler files given, expected one or more .npz. Check the folder's pattern.")
    source = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    return ExternalTable(source, np.concatenate(parts), {name: tuple(values) for name, values in labels.items()})


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
        f"""
        with vectors as (
            select distinct well_id from profiles where representation_id = '{checked_id(representation_id)}'
        )
        select screen, count(distinct plate) as plates, count(v.well_id) as matched, count(*) as wells
        from wells left join vectors v using (well_id)
        where plate_id in (select plate_id from wells join vectors using (well_id)) group by screen order by screen
        """
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
    other. The same content under the same name is there once, whatever file it came from.

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
    source = pinned(catalog)
    crops = _known_crops(source, table) if "crop_id" in table.labels else _crops_of_wells(source, table, screen)
    labels, label_of_row, _ = table.object_labels
    if labels:
        label_crops(catalog, crops, labels, label_of_row.tolist())
    curation_id = ""
    if pack_id:
        curation_id = _check_pack(source, table, crops["crop_id"], pack_id)
    else:
        pack_id = content_id("crops", *sorted(crops["crop_id"].to_pylist()))
    order = pc.sort_indices(crops["crop_id"])  # the order of a file's rows is no content
    crops, vectors = crops.take(order), np.asarray(table.vectors, dtype="<f4")[order.to_numpy()]
    digest = hashlib.blake2b(vectors.tobytes(), digest_size=16).hexdigest()
    model_id = content_id(EXTERNAL, name, vectors.shape[1], *crops["crop_id"].to_pylist(), digest)
    identity = representation_id(model_id, -1, POOLING, pack_id)
    if source.table("representations", columns=["kind"], where=f"representation_id = '{identity}'").num_rows:
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
    where = f"pack_id = '{_quoted(pack_id)}' AND kind <> '{ALIGNED}'"  # aligned ones may have no crops
    rows = catalog.table("representations", where=where).sort_by("representation_id")
    if rows.num_rows == 0:
        raise ValueError(f"pack {pack_id}: nothing of it was embedded. Run jobs/embed.py first, or leave pack_id out.")
    first = rows.slice(0, 1).to_pylist()[0]
    where = f"representation_id = '{checked_id(first['representation_id'])}'"
    packed = catalog.table("embeddings", columns=["crop_id"], where=where)["crop_id"]
    ours, theirs = set(packed.to_pylist()), set(crop_ids.to_pylist())
    if ours != theirs:
        missing, more = sorted(ours - theirs), sorted(theirs - ours)
        raise ValueError(
            f"{table.source}: {len(missing)} of {len(ours)} crops of pack {pack_id} have no row"
            f"{f' ({_some(missing)})' if missing else ''}, and {len(more)} rows are of other crops"
            f"{f' ({_some(more)})' if more else ''}. Scores of different crops cannot be compared: embed exactly the "
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


def _deepprofiler_site(path: Path) -> tuple[NDArray[np.float32], dict[str, str]]:
    """Features (cells, D), and plate, well and site."""
    try:
        with np.load(path, allow_pickle=False) as file, zipfile.ZipFile(path) as archive:
            features = np.asarray(file["features"], dtype=np.float32)
            with archive.open("metadata.npy") as member:
                metadata = member.read(_MOST_METADATA_BYTES)
        found = _pickled_labels(metadata[metadata.index(b"\n") + 1 :])  # after the header of an .npy file
    except (KeyError, IndexError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a DeepProfiler file ({error}). Expected .npz with `features`, numbers of (cells, features), "
            "and `metadata`, a dict with plate and well."
        ) from error
    if features.ndim != 2:
        raise ValueError(f"{path}: features of shape {features.shape}, expected (cells, features).")
    if missing := [name for name in ("plate", "well") if name not in found]:
        raise ValueError(
            f"{path}: metadata without {', '.join(missing)}; found {', '.join(sorted(found)) or 'none'} of "
            f"{', '.join(LABELS)}. Expected plain text as DeepProfiler writes it, such as Metadata_Plate."
        )
    return features, {"site": path.stem, **found}


def _pickled_labels(text: bytes) -> dict[str, str]:
    """The labels in the first dict of a pickle that has any.

    Opcodes are followed as far as dicts of plain values need it. Whatever a pickle would import or call is a blank.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    dicts: list[list[tuple[Any, Any]]] = []
    for opcode, argument, _ in pickletools.genops(text):
        name, before, after = opcode.name, opcode.stack_before, opcode.stack_after
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            dicts.append([])
            stack.append(dicts[-1])
        else:
            taken = _taken(stack, before)
            if name in ("SETITEM", "SETITEMS", "DICT"):
                pairs = taken[-2:] if name == "SETITEM" else taken[taken.index(_MARK) + 1 :]
                whole = taken[0] if name != "DICT" and isinstance(taken[0], list) else []
                dicts += [whole] if name == "DICT" else []
                whole += zip(pairs[::2], pairs[1::2], strict=True)
                stack.append(whole)
            else:
                is_plain = not before and name != "GLOBAL" and isinstance(argument, str | int | float)
                stack += [argument if is_plain else None] * len(after)
    for pairs in dicts:
        labels = {
            str(key).lower().removeprefix("metadata_"): str(value)
            for key, value in pairs
            if isinstance(key, str) and isinstance(value, str | int | float) and value != ""
        }
        if found := {name: value for name, value in labels.items() if name in ("plate", "well", "site")}:
            return found
    return {}


def _taken(stack: list[Any], before: Sequence[Any]) -> list[Any]:
    """What an opcode takes off the stack."""
    n = len(before)
    if pickletools.markobject in before:  # what lies on the mark, the mark, and what is named before it
        mark = len(stack) - 1 - stack[::-1].index(_MARK)
        n = len(stack) - mark + list(before).index(pickletools.markobject)
    if n > len(stack):
        raise ValueError("its metadata is cut short")
    taken = stack[len(stack) - n :]
    del stack[len(stack) - n :]
    return taken


def _rows(numbers: Sequence[int]) -> str:
    return f"rows {', '.join(map(str, numbers[:_SOME]))}{' and more' if len(numbers) > _SOME else ''}"


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_SOME])}{' and more' if len(names) > _SOME else ''}"


def _quoted(text: str) -> str:
    return text.replace("'", "''")
