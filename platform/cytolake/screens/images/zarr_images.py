"""Pixels of OME-Zarr images, on a disk or in a bucket, with nothing in them believed before it is checked.

zarr-python decodes; what it is given is made safe first. It gets an array's metadata from here, checked, with each
compressor replaced by `BoundedCodec`, which decodes into no more bytes than the chunk has, and chunks through
`storage`, each up to the bytes that such a chunk can need.

Letters: C channels, H height and W width in pixels.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import imagecodecs
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import zarr
from numcodecs.abc import Codec  # type: ignore[import-untyped]
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.registry import register_codec

from cytolake.screens.images.image_files import ImageFileError, Window, one_line
from cytolake.screens.images.missing_chunks import ChunksRead, fill_value_text
from cytolake.screens.images.ome_metadata import image_facts, lengths, level_of, read_arrays, read_groups
from cytolake.storage.files import is_uri, read_part

CODEC = "cytolake-bounded"
COMPRESSORS = ("blosc", "zstd", "gzip", "zlib", "lz4")
CHUNKS_MAX = 2**18  # of one read; 5 channels of 20,000 x 20,000 pixels in chunks of 128 x 128 are 123,245
STACK_BYTES_MAX = 2**28
"""Planes that lie in one chunk are decoded together up to this size, so that the chunk is decoded once."""

_ZARR_CONCURRENCY = 10  # chunks that zarr decodes side by side
_V2_TYPE = re.compile(r"[<>|]([uif])([1248])")
_V3_TYPE = re.compile(r"(u|)(int|float)(8|16|32|64)")
_DAMAGED = "A chunk is cut or damaged; copy the image again from its source."


@dataclass(frozen=True, kw_only=True, slots=True)
class ZarrImage:
    """The full resolution of one image group."""

    path: str
    axes: str
    """Letters of t, c, z, y, x in the order of the array's axes."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    """Shape of what is decoded at once: a chunk, or one inside a shard."""
    shards: tuple[int, ...]
    """Shape of what is stored as one file or object."""
    array: zarr.Array[Any]
    chunks_read: ChunksRead
    """Which of the chunks that were read are stored."""

    def n(self, axis: str) -> int:
        """Length of an axis; 1 where the image has no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1

    def chunk(self, axis: str) -> int:
        """Length of a chunk along an axis."""
        return self.chunks[self.axes.index(axis)] if axis in self.axes else 1

    def bytes_in_work(self, planes: range, window: Window) -> int:
        """Most bytes that reading a window of these focal planes decodes at a time, beside the pixels it gives.

        Raises:
            ImageFileError: The window lies in more chunks than can be looked for.
        """
        touched = math.prod(
            (stop - 1) // chunk - start // chunk + 1
            for (start, stop), chunk in zip(self._spans(0, planes, window), self.chunks, strict=True)
        )
        if touched > CHUNKS_MAX:
            raise ImageFileError(
                "too_large", f"{touched} chunks", f"at most {CHUNKS_MAX}", "Write the image again in larger chunks."
            )
        return min(touched, _ZARR_CONCURRENCY) * math.prod(self.chunks) * self.dtype.itemsize

    def _spans(self, timepoint: int, planes: range, window: Window) -> list[tuple[int, int]]:
        y, x, height, width = window
        whole = {
            "t": (timepoint, timepoint + 1),
            "c": (0, self.n("c")),
            "z": (planes.start, planes.stop),
            "y": (y, y + height),
            "x": (x, x + width),
        }
        return [whole[axis] for axis in self.axes]


def open_image(path: str) -> ZarrImage:
    """The full resolution of an image group; reads metadata only.

    Raises:
        ImageFileError: It is missing, or its metadata are damaged or ask for what is not read here.
        OSError: The storage says why.
    """
    (ome,) = read_groups([path])
    if isinstance(ome, dict) and not ome:
        raise ImageFileError(
            "missing_file",
            "no OME-Zarr image group",
            "the image that was listed",
            "Restore or rewrite the image, then ingest the plate again.",
        )
    try:
        if isinstance(ome, Exception):
            raise ome
        level = level_of(ome)
        (document,) = read_arrays([f"{path}/{level}"])
        if isinstance(document, Exception):
            raise document
        facts = image_facts(ome, document)
        safe = _safe_array(document)
        fill_value = fill_value_text(safe.document.get("fill_value"))
        chunks_read = ChunksRead(axes=facts.axes, shape=safe.shards, fill_value=fill_value)
        store = _CheckedStore(f"{path}/{level}", safe, chunks_read)
        _register_codecs()
        array = zarr.open_array(store, mode="r", zarr_format=safe.zarr_format)
        dtype = np.dtype(array.dtype)
        if dtype.hasobject or array.shape != facts.shape or dtype.itemsize != safe.itemsize:
            raise ValueError(f"pixels of type {dtype} and shape {array.shape}")
    except (ImageFileError, OSError, MemoryError):
        raise
    except Exception as error:  # zarr raises its own for damaged metadata
        raise ImageFileError(
            "unreadable_file",
            one_line(error),
            "an OME-Zarr image",
            "Restore or rewrite the image, then ingest the plate again.",
        ) from error
    return ZarrImage(
        path=path,
        axes=facts.axes,
        shape=facts.shape,
        dtype=dtype,
        chunks=safe.chunks,
        shards=safe.shards,
        array=array,
        chunks_read=chunks_read,
    )


def read_planes(image: ZarrImage, timepoint: int, planes: range, window: Window) -> Iterator[np.ndarray]:
    """(C, height, width) of each focal plane, in order; window is (y, x, height, width) in pixels.

    Raises:
        ImageFileError: A chunk is cut or damaged.
        OSError: The storage says why a chunk cannot be read.
    """
    together = min(image.chunk("z"), len(planes))
    if image.n("c") * window[2] * window[3] * image.dtype.itemsize * together > STACK_BYTES_MAX:
        together = 1
    start = planes.start
    while start < planes.stop:
        # up to the end of the chunk that this plane lies in
        stop = min(planes.stop, start + together, (start // image.chunk("z") + 1) * image.chunk("z"))
        spans = image._spans(timepoint, range(start, stop), window)
        try:
            read = image.array[tuple(slice(*span) for span in spans)]
        except (ImageFileError, OSError, MemoryError):
            raise
        except Exception as error:  # a damaged chunk: each codec raises its own
            raise ImageFileError(
                "unreadable_file", one_line(error), "chunks that decode to the declared shape", _DAMAGED
            ) from error
        yield from _zcyx(np.asarray(read), image.axes)
        start = stop


class BoundedCodec(BytesBytesCodec):
    """One of `COMPRESSORS` that decodes a chunk into the bytes it has room for, or not at all. For Zarr v3."""

    is_fixed_size = False

    def __init__(self, *, compressor: str) -> None:
        self.compressor = compressor

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """As zarr makes a codec of the metadata."""
        return cls(compressor=str(data["configuration"]["compressor"]))

    def to_dict(self) -> dict[str, Any]:
        """As zarr writes a codec into metadata."""
        return {"name": CODEC, "configuration": {"compressor": self.compressor}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Not known before."""
        raise NotImplementedError

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        limit = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        data = await asyncio.to_thread(decode_bounded, self.compressor, chunk_bytes.to_bytes(), limit)
        return chunk_spec.prototype.buffer.from_bytes(data)


class BoundedCompressor(Codec):  # type: ignore[misc]  # numcodecs has no types
    """As `BoundedCodec`, for Zarr v2."""

    codec_id = CODEC

    def __init__(self, *, compressor: str, limit: int) -> None:
        self.compressor, self.limit = compressor, limit

    def encode(self, buf: Any) -> Any:
        """Never: arrays are read only."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The decoded chunk."""
        return decode_bounded(self.compressor, bytes(buf), self.limit)


def decode_bounded(compressor: str, data: bytes, limit: int) -> bytes:
    """A chunk, decoded; never more than `limit` bytes are taken for it.

    Raises:
        ImageFileError: `truncated_file`, a Blosc chunk shorter than its header says; `too_large`, more than the limit.
        Exception: Each codec's own for a damaged chunk.
    """
    limit = _slack(limit)
    decoded: bytes | bytearray
    if compressor == "blosc":
        # Blosc takes the length in a chunk's header on trust and reads on behind a chunk that was cut (numcodecs 0.16)
        n_bytes = int.from_bytes(data[12:16], "little") if len(data) >= 16 else 16
        if len(data) < n_bytes:
            raise ImageFileError("truncated_file", f"a chunk of {len(data)} bytes", f"{n_bytes} bytes", _DAMAGED)
        if n_bytes < 16:
            raise ValueError(f"a Blosc chunk of {n_bytes} bytes")
        _check_decoded(int.from_bytes(data[4:8], "little"), limit)
        decoded = bytes(numcodecs.Blosc().decode(data[:n_bytes]))
    elif compressor in ("gzip", "zlib"):
        decompressor = zlib.decompressobj(31 if compressor == "gzip" else 15)
        decoded = decompressor.decompress(data, limit + 1)
        if len(decoded) <= limit and not decompressor.eof:
            raise ImageFileError("unreadable_file", f"a cut {compressor} chunk", "a whole chunk", _DAMAGED)
    elif compressor == "zstd":
        decoded = imagecodecs.zstd_decode(data, out=limit)  # a frame need not say how long it is
    else:
        _check_decoded(int.from_bytes(data[:4], "little"), limit)
        decoded = bytes(numcodecs.LZ4().decode(data))
    _check_decoded(len(decoded), limit)
    return bytes(decoded)


def _slack(n_bytes: int) -> int:
    """Bytes that an encoded chunk can have: compressors add to what they cannot make smaller."""
    return n_bytes + n_bytes // 8 + 65_536


def _check_decoded(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        raise ImageFileError(
            "too_large", f"a chunk of more than {limit} bytes, decoded", "the declared chunk shape", _DAMAGED
        )


def _zcyx(pixels: np.ndarray, axes: str) -> np.ndarray:
    """(z, C, height, width) of an array read with one timepoint."""
    if "t" in axes:
        pixels = pixels.take(0, axis=axes.index("t"))
        axes = axes.replace("t", "")
    for axis in "cz":
        if axis not in axes:
            pixels, axes = pixels[None], axis + axes
    return np.ascontiguousarray(pixels.transpose([axes.index(axis) for axis in "zcyx"]))


@dataclass(frozen=True, slots=True)
class _SafeArray:
    """Metadata that zarr may be given."""

    zarr_format: Any  # 2 or 3
    document: dict[str, Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    itemsize: int

    @property
    def stored_bytes_max(self) -> int:
        """Most bytes of one file or object."""
        inner = math.prod(a // b for a, b in zip(self.shards, self.chunks, strict=True))
        return _slack(math.prod(self.shards) * self.itemsize) + inner * 1024  # 16 in the index, and what codecs add


def _safe_array(document: Mapping[str, Any]) -> _SafeArray:
    """Checked metadata, with bounded compressors.

    Raises:
        ImageFileError: `unsupported_file`: codecs or types that cannot be read safely.
        ValueError: The metadata are damaged.
    """
    shape = lengths(document.get("shape"), "shape")
    if document.get("zarr_format") == 2:
        return _safe_v2(document, shape)
    if document.get("zarr_format") != 3 or document.get("node_type") != "array":
        raise ValueError(f"Zarr format {str(document.get('zarr_format'))[:20]}, expected an array of format 2 or 3")
    kind = document.get("data_type")
    found = _V3_TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if found is None or (found[2] == "float" and (found[1] or found[3] == "8")):
        raise _unsupported(f"pixels of type {str(kind)[:40]}", "whole numbers or floats")
    grid = document.get("chunk_grid")
    if not isinstance(grid, dict) or grid.get("name") != "regular":
        raise _unsupported("an irregular chunk grid", "chunks of one shape")
    chunks = lengths(grid.get("configuration", {}).get("chunk_shape"), "chunk shape")
    codecs, inner = _safe_codecs(document.get("codecs"), chunks)
    _check_chunks(shape, chunks, inner)
    kept = ("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value")
    safe = {name: document[name] for name in kept if name in document} | {"codecs": codecs, "attributes": {}}
    return _SafeArray(3, safe, inner, chunks, int(found[3]) // 8)


def _safe_v2(document: Mapping[str, Any], shape: tuple[int, ...]) -> _SafeArray:
    kind = document.get("dtype")
    found = _V2_TYPE.fullmatch(kind) if isinstance(kind, str) else None
    if found is None:
        raise _unsupported(f"pixels of type {str(kind)[:40]}", "whole numbers or floats")
    chunks = lengths(document.get("chunks"), "chunk shape")
    _check_chunks(shape, chunks, chunks)
    if document.get("filters"):
        raise _unsupported("chunks with filters", "chunks with a compressor at most")
    compressor = document.get("compressor")
    if compressor is not None:
        name = _compressor(compressor.get("id") if isinstance(compressor, dict) else compressor)
        limit = math.prod(chunks) * int(found[2])
        compressor = {"id": CODEC, "compressor": name, "limit": limit}
    kept = ("zarr_format", "shape", "chunks", "dtype", "fill_value", "order", "dimension_separator")
    safe = {name: document[name] for name in kept if name in document} | {"compressor": compressor, "filters": None}
    return _SafeArray(2, safe, chunks, chunks, int(found[2]))


def _safe_codecs(found: Any, chunks: tuple[int, ...]) -> tuple[list[Any], tuple[int, ...]]:
    """Codecs with bounded compressors, and the shape of what they decode at once."""
    codecs: list[Any] = []
    inner = chunks
    for codec in found if isinstance(found, list) else []:
        name = codec.get("name") if isinstance(codec, dict) else codec
        if name in ("bytes", "transpose", "crc32c"):
            codecs.append(codec)
        elif name == "sharding_indexed" and isinstance(codec, dict) and isinstance(codec.get("configuration"), dict):
            settings = codec["configuration"]
            inner = lengths(settings.get("chunk_shape"), "chunk shape inside a shard")
            if len(inner) != len(chunks) or any(a % b for a, b in zip(chunks, inner, strict=True)):
                raise ValueError(f"chunks of {inner} in shards of {chunks}")
            _check_chunks(chunks, inner, inner)
            index = settings.get("index_codecs", [])
            index_names = [one.get("name") if isinstance(one, dict) else one for one in index]
            inner_codecs = settings.get("codecs")
            if not set(index_names) <= {"bytes", "crc32c"} or "sharding_indexed" in json.dumps(inner_codecs):
                raise _unsupported("shards in shards, or with a compressed index", "shards of plain chunks")
            inner_codecs, _ = _safe_codecs(inner_codecs, inner)
            codecs.append(codec | {"configuration": settings | {"codecs": inner_codecs}})
        else:
            codecs.append({"name": CODEC, "configuration": {"compressor": _compressor(name)}})
    if not codecs:
        raise ValueError("no codecs")
    return codecs, inner


def _compressor(name: Any) -> str:
    if name not in COMPRESSORS:
        raise _unsupported(f"chunks encoded by {str(name)[:40]}", f"one of {', '.join(COMPRESSORS)}, or nothing")
    return str(name)


def _check_chunks(shape: Sequence[int], chunks: Sequence[int], inner: Sequence[int]) -> None:
    if not len(shape) == len(chunks) == len(inner):
        raise ValueError(f"chunks of {tuple(chunks)} for shape {tuple(shape)}")
    if math.prod(-(-a // b) for a, b in zip(chunks, inner, strict=True)) > CHUNKS_MAX:
        raise ImageFileError(
            "too_large", f"shards of more than {CHUNKS_MAX} chunks", "fewer", "Write the image again in larger chunks."
        )


def _unsupported(found: str, expected: str) -> ImageFileError:
    return ImageFileError("unsupported_file", found, expected, "Write the image again, as OME-Zarr 0.5.")


@lru_cache(maxsize=1)
def _register_codecs() -> None:
    """Makes the bounded codecs known to zarr, by a name that no other array uses."""
    register_codec(CODEC, BoundedCodec)
    numcodecs.register_codec(BoundedCompressor)


class _CheckedStore(Store):
    """One array, for zarr: its checked metadata, and chunks as `storage` reads them."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, path: str, safe: _SafeArray, chunks_read: ChunksRead) -> None:
        super().__init__(read_only=True)
        self.path, self._safe, self._chunks_read = path, safe, chunks_read

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CheckedStore) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Metadata, or the bytes of one chunk; None where there are none."""
        if key == ("zarr.json" if self._safe.zarr_format == 3 else ".zarray"):
            return prototype.buffer.from_bytes(json.dumps(self._safe.document).encode())
        if key.endswith(("zarr.json", ".zattrs", ".zarray", ".zgroup", ".zmetadata")):
            return None
        start, stop = 0, None
        if isinstance(byte_range, RangeByteRequest):
            start, stop = byte_range.start, byte_range.end
        elif isinstance(byte_range, OffsetByteRequest):
            start = byte_range.offset
        elif isinstance(byte_range, SuffixByteRequest):
            start = -byte_range.suffix
        path, limit = f"{self.path}/{key}", self._safe.stored_bytes_max
        try:
            if is_uri(path):
                data = await asyncio.to_thread(read_part, path, start, stop, limit)
            else:
                data = read_part(path, start, stop, limit)  # a file takes less time than to hand it to a thread
        except FileNotFoundError:
            self._chunks_read.absent.add(key)
            return None  # by the standard, the fill value
        self._chunks_read.present.add(key)
        return prototype.buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, for several."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Whether `get` gives something."""
        from zarr.core.buffer import default_buffer_prototype

        return await self.get(key, default_buffer_prototype()) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Never: arrays are read only."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Never: arrays are read only."""
        raise NotImplementedError

    def list(self) -> AsyncIterator[str]:
        """Never: chunks are read by name."""
        raise NotImplementedError

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Never: chunks are read by name."""
        raise NotImplementedError

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Never: chunks are read by name."""
        raise NotImplementedError
