"""A pack: pixels of the crops that a curation keeps, shuffled once, for random reads at training speed.

A pack is a folder: `pack.json`, `crops.parquet` (one row for each crop, in the pack's order), for each number of
channels C among the crops `crops_c{C}.zarr`, a sharded Zarr v3 array (N, C, S, S) with one crop a chunk, and
`checksums.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytolake.packs.checksums import CHECKSUMS_FILE, Progress, check_files, read_checksums
from cytolake.packs.eight_bit import Scale, to_counts
from cytolake.packs.shards import REMEDY, PackError, Pixels, ShardedCrops, WrittenFile, array_path, rows_of_file

__all__ = ["FORMAT", "INDEX_FILE", "INDEX_SCHEMA", "PACK_FILE", "Pack", "PackError", "array_path"]

PACK_FILE = "pack.json"
INDEX_FILE = "crops.parquet"
FORMAT = 2
"""Version of the folder's layout. 1 had no checksums, counts only, and zstd."""
READABLE_FORMATS = (1, FORMAT)

PixelKind = Literal["native", "uint8"]

_REQUIRED = ("pack_id", "curation_id", "crop_size", "n_crops", "table_versions")

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


class Pack:
    """An open pack. Opening it and sending it to another process are cheap; arrays are opened on first use."""

    def __init__(self, path: Path, described: dict[str, Any], index: pa.Table) -> None:
        self.path = path
        self.pack_id: str = described["pack_id"]
        self.curation_id: str = described["curation_id"]
        self.crop_size: int = described["crop_size"]
        self.table_versions: dict[str, int] = described["table_versions"]
        """Delta version of every table that the curation read."""
        self.pixels: PixelKind = described.get("pixels", "native")
        """Values that `read` returns: counts as in the source, or counts scaled to 8 bits."""
        self.index = index
        """One row per crop, in the pack's order; columns of INDEX_SCHEMA."""
        self._source_dtypes: dict[str, str] = described.get("source_dtypes", {})
        """Numpy name of the pixel type of each plate's sources; empty for one of several types, and in packs of earlier
        versions, which did not note it."""
        self._scales = {
            (each["plate_id"], each["channel"]): Scale(each["offset"], each["step"])
            for each in described.get("scales", [])
        }

    @classmethod
    def open(cls, path: str | Path) -> Pack:
        """Open a pack.

        Raises:
            PackError: There is no pack, or its layout is unknown.
        """
        folder = Path(path)
        if not (folder / PACK_FILE).is_file():
            raise PackError(
                f"{folder}: no pack (found no {PACK_FILE}). Give the folder of a pack, <root>/packs/<pack_id>, "
                "or make one: `cytolake curate`."
            )
        try:
            described = json.loads((folder / PACK_FILE).read_text(encoding="utf-8"))
        except ValueError as error:
            raise PackError(f"{folder / PACK_FILE}: not JSON ({error}). {REMEDY}") from None
        if described.get("format") not in READABLE_FORMATS:
            raise PackError(
                f"{folder}: pack of format {described.get('format')}, this cytolake reads formats "
                f"{' and '.join(map(str, READABLE_FORMATS))}. Delete the folder and make the pack again: "
                "`cytolake curate`; or read it with the cytolake that made it."
            )
        if missing := [key for key in _REQUIRED if key not in described]:
            raise PackError(f"{folder / PACK_FILE}: lacks {', '.join(missing)}. {REMEDY}")
        try:
            index = pq.read_table(folder / INDEX_FILE).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
        except FileNotFoundError:
            raise PackError(f"{folder}: the pack's index is missing (found no {INDEX_FILE}). {REMEDY}") from None
        except (pa.ArrowException, OSError) as error:  # Arrow reports some damage as an OSError
            raise PackError(f"{folder / INDEX_FILE}: cannot be read ({error}). {REMEDY}") from None
        if index.num_rows != described["n_crops"]:
            raise PackError(
                f"{folder}: {index.num_rows} crops in {INDEX_FILE}, {described['n_crops']} in {PACK_FILE}. "
                "The folder was changed by hand: delete it and make the pack again: `cytolake curate`."
            )
        return cls(folder, described, index)

    def __repr__(self) -> str:
        return f"Pack({self.pack_id}, {self.n_crops} crops of {self.crop_size} px, {str(self.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_arrays", "_group_of", "_row_of", "_channels_of", "_checksums", "_by_id")
        return {key: value for key, value in self.__dict__.items() if key not in opened}

    @property
    def n_crops(self) -> int:
        """Number of crops."""
        return int(self.index.num_rows)

    def channels(self, row: int) -> tuple[str, ...]:
        """Stain names of one crop, in the order of its pixels' first axis."""
        codes, stains = self._channels_of
        return stains[int(codes[row])]

    def first_of_each_channel_set(self) -> list[int]:
        """The first row of every set of channels in the pack."""
        codes, _ = self._channels_of
        return [int(row) for row in np.unique(codes, return_index=True)[1]]

    def read(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[Pixels]:
        """Pixels of crops as stored in the pack. Thread-safe.

        Args:
            rows: Rows of `index`, in any order, repeats allowed.

        Returns:
            (C, S, S) for each row, in the given order. In a pack of native pixels the dtype is the smallest that holds
            every crop of as many channels without loss, usually the source's; otherwise uint8.

        Raises:
            PackError: A row is out of range, or a shard is missing, cut short or damaged.
        """
        wanted = self._checked(rows)
        groups, rows_in_group = self._group_of[wanted], self._row_of[wanted]
        present = np.unique(groups).tolist()
        if len(present) == 1:
            return list(self._arrays[present[0]].read(rows_in_group))
        crops: list[Pixels] = [np.empty(0)] * len(wanted)
        for group in present:
            positions = np.flatnonzero(groups == group)
            found = self._arrays[group].read(rows_in_group[positions])
            for position, crop in zip(positions.tolist(), found, strict=True):
                crops[position] = crop
        return crops

    def stack(self, rows: Sequence[int] | NDArray[np.integer[Any]], out: Pixels | None = None) -> Pixels:
        """As `read`, for crops with equal numbers of channels: (N, C, S, S) in one array.

        Args:
            rows: As for `read`, at least one.
            out: Contiguous array of that shape and the pack's dtype to fill; None makes a new array.

        Raises:
            PackError: As for `read`, or the crops have different numbers of channels.
        """
        wanted = self._checked(rows)
        present = np.unique(self._group_of[wanted]).tolist()
        if len(present) != 1:
            raise PackError(
                f"pack {self.pack_id}: {len(wanted)} crops with {' and '.join(map(str, present)) or 'no'} channels; "
                "expected crops with equal numbers of channels. Use Pack.read."
            )
        return self._arrays[present[0]].read(self._row_of[wanted], out)

    def counts(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> list[Pixels]:
        """Counts of crops: as `read` for a pack of native pixels, otherwise float32 scaled back.

        A count that is scaled back is within half a step of the source's, or clipped to the plate's 0.1 and 99.9
        percentile: see `scale`.
        """
        crops = self.read(rows)
        if self.pixels == "native":
            return crops
        return [to_counts(crop, *self._offsets_steps(int(row))) for row, crop in zip(rows, crops, strict=True)]

    def full_scale(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> tuple[float, ...]:
        """For each row the largest count of the source's pixel type, 255 or 65,535 for cameras.

        NaN if it is unknown: sources of floats, a plate of several types, or a pack of an earlier version.
        """
        of_plate: dict[str, float] = {}
        plates = self.index.column("plate_id").take(pa.array(self._checked(rows))).to_pylist()
        for plate in set(plates):
            dtype = np.dtype(self._source_dtypes.get(plate) or "float32")
            of_plate[plate] = float(np.iinfo(dtype).max) if dtype.kind in "iu" else math.nan
        return tuple(of_plate[plate] for plate in plates)

    def scale(self, plate_id: str, channel: str) -> Scale:
        """Offset and step of the 8-bit values of one plate and stain; (0, 1) for a pack of native pixels.

        Raises:
            PackError: The pack has no crop of that plate and stain.
        """
        if self.pixels == "native":
            return Scale(0.0, 1.0)
        try:
            return self._scales[plate_id, channel]
        except KeyError:
            raise PackError(
                f"pack {self.pack_id}: no scale for plate {plate_id}, channel {channel}; expected one of "
                f"{len(self._scales)} in {PACK_FILE}. Take plate_id and channels from Pack.index."
            ) from None

    def rows_of(self, crop_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of `index` of these crops, in the given order. Reads no pixels.

        The first call sorts the ids, seconds for 10 million; later an id takes microseconds. The sorted
        index takes 16 bytes a crop.

        Raises:
            PackError: A crop is not in the pack.
        """
        keys, rows = self._by_id
        column = self.index.column("crop_id")
        wanted = _id_keys(pa.array(crop_ids, pa.string()))
        firsts, ends = np.searchsorted(keys, wanted, "left").tolist(), np.searchsorted(keys, wanted, "right").tolist()
        found = np.empty(len(crop_ids), np.int64)
        for i, (crop_id, first, end) in enumerate(zip(crop_ids, firsts, ends, strict=True)):
            row = next((row for row in rows[first:end].tolist() if column[row].as_py() == crop_id), None)
            if row is None:
                raise PackError(
                    f"pack {self.pack_id}: no crop {crop_id} among its {self.n_crops}. Its curation "
                    f"{self.curation_id} left it out; read it from its source: Catalog.crop_pixels."
                )
            found[i] = row
        return found

    def crop(self, crop_id: str) -> Pixels:
        """(C, S, S) pixels of one crop, as `read` returns them.

        Raises:
            PackError: As for `rows_of` and `read`.
        """
        return self.read(self.rows_of([crop_id]))[0]

    def verify(self, progress: Progress | None = None) -> list[str]:
        """Read every file of the pack and compare it with its checksum.

        Args:
            progress: Called with ("files checked", files done, all files).

        Returns:
            One text per damaged file: found, expected, its crops, what to do. Empty if all files are intact.
        """
        checksums = self._checksums
        if not checksums:
            return [
                f"{self.path}: found no {CHECKSUMS_FILE}, expected the checksums of the pack's files; packs of format "
                f"1 have none. To have them, delete the folder and make the pack again: `cytolake curate`."
            ]
        problems = []
        for file, found in check_files(self.path, checksums, progress).items():
            holds = rows_of_file(self.path, file)
            problems.append(f"{self.path / file}: {found}. {f'It holds {holds}. ' if holds else ''}{REMEDY}")
        return problems

    def _checked(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= self.n_crops):
            raise PackError(
                f"pack {self.pack_id}: rows {wanted.min()} to {wanted.max()}, expected 0 to {self.n_crops - 1}."
            )
        return wanted

    def _offsets_steps(self, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        plate_id = self.index.column("plate_id")[row].as_py()
        scales = [self.scale(plate_id, channel) for channel in self.channels(row)]
        return np.array([each.offset for each in scales]), np.array([each.step for each in scales])

    @cached_property
    def _checksums(self) -> dict[str, WrittenFile]:
        return read_checksums(self.path)

    @cached_property
    def _arrays(self) -> dict[int, ShardedCrops]:
        sizes = {file: was.n_bytes for file, was in self._checksums.items()}
        return {group: ShardedCrops(self.path, group, sizes) for group in np.unique(self._group_of).tolist()}

    @cached_property
    def _group_of(self) -> NDArray[np.int32]:
        return np.asarray(self.index.column("group").to_numpy())

    @cached_property
    def _row_of(self) -> NDArray[np.int64]:
        return np.asarray(self.index.column("row").to_numpy())

    @cached_property
    def _by_id(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Sorted keys of the crops' ids, and the row of each."""
        column, at_once = self.index.column("crop_id"), 1_000_000  # bounds what the conversion holds
        parts = [column.slice(i, at_once).combine_chunks() for i in range(0, max(1, self.n_crops), at_once)]
        keys = np.concatenate([_id_keys(part) for part in parts])
        rows = np.argsort(keys, kind="stable")
        return keys[rows], rows

    @cached_property
    def _channels_of(self) -> tuple[NDArray[np.int64], list[tuple[str, ...]]]:
        """For each crop a code, and the stains of each code: packs have few distinct sets of stains."""
        joined = pc.binary_join(self.index.column("channels"), "\0").combine_chunks().dictionary_encode()
        stains = [tuple(names.split("\0")) for names in joined.dictionary.to_pylist()]
        return np.asarray(joined.indices.to_numpy(), np.int64), stains


def _id_keys(ids: pa.Array) -> NDArray[np.uint64]:
    """The last 8 bytes of each id as a number: nearly unique for hexadecimal ids, right for any."""
    last = pc.binary_slice(pc.cast(ids, pa.binary()), -8) if len(ids) else ids
    padded = np.asarray(last.to_numpy(zero_copy_only=False)).astype("S8")
    return np.frombuffer(padded.tobytes(), np.uint64)
