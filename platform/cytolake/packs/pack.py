"""A pack: the pixels that a curation kept, shuffled once, ready for random reads at training speed.

A pack is a folder: `pack.json`, `crops.parquet` (one row for each crop, in the pack's order) and, for each number of
channels C among the crops, `crops_c{C}.zarr`: a sharded Zarr v3 array (N, C, S, S), one crop a chunk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

PACK_FILE = "pack.json"
INDEX_FILE = "crops.parquet"
FORMAT = 1
"""Version of the folder's layout."""
PIPELINE = "zarrs.ZarrsCodecPipeline"

Pixels = NDArray[Any]

INDEX_SCHEMA = pa.schema(
    [
        ("crop_id", pa.string()),
        ("well_id", pa.string()),
        ("plate_id", pa.string()),
        ("group", pa.int32()),
        ("row", pa.int64()),
        ("channels", pa.list_(pa.string())),
    ]
)
"""`group` is the number of channels, `row` the position in that group's array."""


class PackError(ValueError):
    """A pack that is not there, not whole, or asked for rows it does not have."""


class Pack:
    """An open pack. Cheap to open and to send to another process; arrays are opened on first use."""

    def __init__(self, path: Path, described: dict[str, Any], index: pa.Table) -> None:
        self.path = path
        self.pack_id: str = described["pack_id"]
        self.curation_id: str = described["curation_id"]
        self.crop_size: int = described["crop_size"]
        self.table_versions: dict[str, int] = described["table_versions"]
        """Delta version of every table that the curation read."""
        self.index = index
        """One row for each crop, in the pack's order: see INDEX_SCHEMA."""

    @classmethod
    def open(cls, path: str | Path) -> Pack:
        """Open a pack.

        Raises:
            PackError: There is no pack, or one of another layout.
        """
        folder = Path(path)
        if not (folder / PACK_FILE).is_file():
            raise PackError(
                f"{folder}: no pack there (found no {PACK_FILE}). Give the folder of a pack, <root>/packs/<pack_id>, "
                "or make one: jobs/curate.py."
            )
        described = json.loads((folder / PACK_FILE).read_text(encoding="utf-8"))
        if described.get("format") != FORMAT:
            raise PackError(
                f"{folder}: pack of format {described.get('format')}, this cytolake reads format {FORMAT}. "
                "Delete the folder and make the pack again: jobs/curate.py."
            )
        index = pq.read_table(folder / INDEX_FILE).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
        if index.num_rows != described["n_crops"]:
            raise PackError(
                f"{folder}: {index.num_rows} crops in {INDEX_FILE}, {described['n_crops']} in {PACK_FILE}. "
                "The folder was changed by hand: delete it and make the pack again: jobs/curate.py."
            )
        return cls(folder, described, index)

    def __repr__(self) -> str:
        return f"Pack({self.pack_id}, {self.n_crops} crops of {self.crop_size} px, {str(self.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        arrays_and_lists = ("_arrays", "_group_of", "_row_of", "_channels_of")
        return {key: value for key, value in self.__dict__.items() if key not in arrays_and_lists}

    @property
    def n_crops(self) -> int:
        """Crops in the pack."""
        return int(self.index.num_rows)

    def channels(self, row: int) -> tuple[str, ...]:
        """Stain names of one crop, in the order of its pixels' first axis."""
        codes, stains = self._channels_of
        return stains[int(codes[row])]

    def read(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[Pixels]:
        """Pixels of crops as their source has them.

        Args:
            rows: Rows of `index`, in any order; the same one may come twice.

        Returns:
            (C, S, S) for each row, in the order asked for. The dtype is the one that holds every crop of as many
            channels without loss; where they share a dtype, the source's.

        Raises:
            PackError: A row that the pack does not have.
        """
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.n_crops):
            raise PackError(
                f"pack {self.pack_id}: rows {wanted.min()} to {wanted.max()}, expected 0 to {self.n_crops - 1}."
            )
        groups, rows_in_group = self._group_of[wanted], self._row_of[wanted]
        crops: list[Pixels] = [np.empty(0)] * len(wanted)
        for group in np.unique(groups).tolist():
            positions = np.flatnonzero(groups == group)
            found = read_rows(self._arrays[group], rows_in_group[positions])
            for position, crop in zip(positions.tolist(), found, strict=True):
                crops[position] = crop
        return crops

    @cached_property
    def _arrays(self) -> dict[int, zarr.Array[Any]]:
        return {group: open_array(self.path, group) for group in np.unique(self._group_of).tolist()}

    @cached_property
    def _group_of(self) -> NDArray[np.int32]:
        return np.asarray(self.index.column("group").to_numpy())

    @cached_property
    def _row_of(self) -> NDArray[np.int64]:
        return np.asarray(self.index.column("row").to_numpy())

    @cached_property
    def _channels_of(self) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
        """For each crop a code, and the stains that each code stands for: packs have few different sets."""
        codes: dict[tuple[str, ...], int] = {}
        names = self.index.column("channels").to_pylist()
        return np.array([codes.setdefault(tuple(each), len(codes)) for each in names], np.int64), list(codes)


def array_path(folder: Path, group: int) -> Path:
    """Where the crops of `group` channels lie."""
    return folder / f"crops_c{group}.zarr"


def open_array(folder: Path, group: int, mode: str = "r") -> zarr.Array[Any]:
    """The array of the crops of `group` channels, decoded and encoded by zarrs (Rust)."""
    with zarr.config.set({"codec_pipeline.path": PIPELINE}):  # an array keeps the pipeline it was opened with
        return zarr.open_array(str(array_path(folder, group)), mode=mode)


def read_rows(array: zarr.Array[Any], rows: NDArray[np.int64]) -> Pixels:
    """Read scattered rows of a sharded array in one call of its codec pipeline.

    `array.oindex[rows]` is right too, but zarrs takes contiguous slices only and leaves it to Python: 860 rows/s of
    5 x 64 x 64 uint16 on two cores, `array[row]` one by one 2,000, this 13,000 (zarr 3.1.6, zarrs 0.2.3).
    """
    asynchronous = array.async_array
    metadata, prototype = asynchronous.metadata, default_buffer_prototype()
    rows_per_shard = array.shards[0] if array.shards else array.chunks[0]
    rest = tuple(slice(0, n) for n in array.shape[1:])
    out = prototype.nd_buffer.empty(shape=(len(rows), *array.shape[1:]), dtype=array.dtype, order="C")
    shards: dict[int, tuple[Any, Any]] = {}
    items = []
    for position, row in enumerate(rows.tolist()):
        shard, inside = divmod(row, rows_per_shard)
        if shard not in shards:
            at = (shard, *(0 for _ in rest))
            shards[shard] = (
                asynchronous.store_path / metadata.encode_chunk_key(at),
                metadata.get_chunk_spec(at, asynchronous.config, prototype=prototype),
            )
        items.append(
            (*shards[shard], (slice(inside, inside + 1), *rest), (slice(position, position + 1), *rest), False)
        )
    if items:
        sync(asynchronous.codec_pipeline.read(items, out))
    return np.asarray(out.as_ndarray_like())
