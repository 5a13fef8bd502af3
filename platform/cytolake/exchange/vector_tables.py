"""Reads tables of other tools' embeddings: Parquet, CSV and AnnData files.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.exchange.profile_tables import (
    feature_columns,
    is_list,
    labels_of,
    matrix_of,
    read_profile_table,
    vectors_of_lists,
)
from cytolake.screens.label_vocabulary import label_vocabulary
from cytolake.screens.object_table import object_labels, says_something
from cytolake.screens.plate import Problem
from cytolake.screens.well_labels import WellLabels

_SOME = 5  # rows that an error names

ObjectLabels: TypeAlias = tuple[tuple[WellLabels, ...], NDArray[np.intp], tuple[Problem, ...]]
NO_LABELS: ObjectLabels = ((), np.zeros(0, np.intp), ())


@dataclass(frozen=True, slots=True, eq=False)
class ExternalTable:
    """Vectors of another tool's model, and the crop or well of each.

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
                "correct the features, or leave out those that lack values (--leave-out-missing)."
            )

    def row(self, i: int) -> str:
        """A row as an error names it."""
        place = " ".join(f"{name} {values[i]}" for name, values in self.labels.items())
        return f"row {i} ({place})"


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
        raise ValueError(f"{path}: no column {', '.join(missing[:_SOME])}. There are: {listed(table.column_names)}.")
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
            f"{source}: found the columns {listed(table.column_names)}, expected a label of each row, such as guide or "
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
            raise ValueError(f"{source}: not there. Name one of obsm: {listed(keys) or 'none'}.")
        found = anndata.io.read_elem(file["obsm"][key] if key else file["X"])
        obs = anndata.io.read_elem(file["obs"])
    matrix = np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=np.float32)
    columns = {str(name): pa.chunked_array([pa.array(obs[name].astype(object))]) for name in obs}
    if obs.index.name == "crop_id":
        columns["crop_id"] = pa.chunked_array([pa.array(obs.index.to_numpy(dtype=object))])
    of_rows = _object_labels(pa.table(columns), str(path)) if label_objects else NO_LABELS
    return _without_missing(source, matrix, labels_of(columns, source), leave_out_missing, of_rows)


def listed(names: Sequence[str]) -> str:
    """The first names, for an error."""
    return f"{', '.join(names[:_SOME])}{' and more' if len(names) > _SOME else ''}"


def _rows(numbers: Sequence[int]) -> str:
    return f"rows {', '.join(map(str, numbers[:_SOME]))}{' and more' if len(numbers) > _SOME else ''}"
