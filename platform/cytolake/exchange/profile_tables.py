"""Distinguishes labels and features in profile tables of CellProfiler, pycytominer and DeepProfiler.

Shapes: N rows, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytolake.screens.label_vocabulary import fold_column, label_vocabulary, nfc

LABELS = ("crop_id", "screen", "plate", "well", "site")
"""What says which crop or well a row is of: columns of these names, or such as `Metadata_Plate`, in any case."""
TABLE_SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")

_COMPARTMENTS = ("cells_", "cytoplasm_", "nuclei_")
_METADATA = ("metadata_", "image_metadata_", "__index_level_")  # pandas writes an index so
_BOOKKEEPING = ("imagenumber", "objectnumber", "tablenumber", "number_object_number", "_parent_", "_children_")
_SOME = 5


def read_profile_table(path: Path) -> pa.Table:
    """A table of profiles: Parquet, or CSV with commas, semicolons or tabs, packed or not.

    Raises:
        ValueError: A file of another kind, or one that cannot be read.
    """
    name = path.name.lower()
    if not name.endswith(TABLE_SUFFIXES):
        raise ValueError(f"{path}: expected a file named {', '.join(TABLE_SUFFIXES)}. Rename or convert it.")
    try:
        if name.endswith(".parquet"):
            return pq.read_table(path)
        with pa.input_stream(str(path), compression="gzip" if name.endswith(".gz") else None) as stream:
            header = stream.read(1 << 20).decode("utf-8-sig", "replace").partition("\n")[0]
        delimiter = max(",;\t", key="".join(header.split('"')[::2]).count)
        names = [name.strip().strip('"') for name in header.rstrip("\r").split(delimiter)]
        texts = {name: pa.string() for name in names if not _is_feature_name(name)}
        return pyarrow.csv.read_csv(
            path,
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(column_types=texts),  # plate 00123 keeps its zeros
        )
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a table: {error}. Save it again.") from error


def labels_of(columns: Mapping[str, pa.ChunkedArray], source: str) -> dict[str, tuple[str, ...]]:
    """Columns of LABELS as text, in NFC; of several names for a plate or well the first of catalog/labels.yaml.

    Raises:
        ValueError: Two columns of one name.
    """
    folded: dict[str, str] = {}
    for name in columns:
        key = fold_column(name)
        if key in folded and key in {fold_column(label) for label in LABELS}:
            raise ValueError(f"{source}: two columns for {key}, {folded[key]} and {name}. Leave one out.")
        folded.setdefault(key, name)
    places = label_vocabulary().places
    found: dict[str, tuple[str, ...]] = {}
    for label in LABELS:
        names = places.get(label, (fold_column(label),))
        column = next((folded[name] for name in names if name in folded), None)
        if column is not None:
            found[label] = tuple(_text(value) for value in columns[column].to_pylist())
    if not any(found.get("site", ())):  # as exported of crops that were cut elsewhere
        found.pop("site", None)
    return found


def feature_columns(table: pa.Table) -> list[str]:
    """Columns that hold the vector: of CellProfiler's compartments where there are any, else all numbers.

    Left out are metadata, labels and CellProfiler's numbers of objects and images.
    """
    numbers = [
        name for name in table.column_names if _is_feature_name(name) and holds_numbers(table.schema.field(name).type)
    ]
    measured = [name for name in numbers if name.lower().startswith(_COMPARTMENTS)]
    return measured or numbers


def matrix_of(table: pa.Table, names: Sequence[str], source: str) -> NDArray[np.float32]:
    """(N, D), NaN where a value is missing.

    Raises:
        ValueError: A column that holds no numbers.
    """
    matrix = np.empty((table.num_rows, len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        if not holds_numbers(table[name].type):
            raise ValueError(f"{source}, column {name}: found {table[name].type}, expected numbers.")
        matrix[:, i] = table[name].cast(pa.float64()).fill_null(np.nan).to_numpy()
    return matrix


def holds_numbers(found: pa.DataType) -> bool:
    """Whether a column's type is a number, or a list of numbers."""
    inner = found.value_type if is_list(found) else found
    return bool(pa.types.is_floating(inner) or pa.types.is_integer(inner))


def is_list(found: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found))


def vectors_of_lists(column: pa.ChunkedArray, source: str) -> NDArray[np.float32]:
    """(N, D) from a column of lists of one length.

    Raises:
        ValueError: Lists of several lengths.
    """
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(-1).to_numpy()
    usual = int(np.bincount(lengths[lengths >= 0]).argmax()) if (lengths >= 0).any() else 0
    wrong = np.flatnonzero(lengths != usual)
    if len(wrong):
        found = ", ".join("null" if length < 0 else str(length) for length in np.unique(lengths[wrong])[:_SOME])
        rows = f"rows {', '.join(map(str, wrong.tolist()[:_SOME]))}{' and more' if len(wrong) > _SOME else ''}"
        raise ValueError(
            f"{source}: vectors of {found} values in {rows}, {usual} in the other {len(lengths) - len(wrong)}. "
            "Give all vectors one length."
        )
    values = lists.flatten().cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return np.asarray(values, dtype=np.float32).reshape(len(lists), usual)


def _is_feature_name(name: str) -> bool:
    lower = name.lower()
    if lower.startswith(_METADATA) or any(part in lower for part in _BOOKKEEPING):
        return False
    folded, places = fold_column(name), label_vocabulary().places
    known = {*(fold_column(label) for label in LABELS), *places["plate"], *places["well"]}
    return folded not in known


def _text(value: object) -> str:
    if value is None or value != value:
        return ""
    return nfc(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
