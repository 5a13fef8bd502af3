"""Reader of OME-Zarr images, on disk or in a bucket, which trusts no size that the image declares.

zarr-python decodes. It receives the array's metadata checked (`zarr_metadata`), with each compressor replaced by a
bounded one (`zarr_codecs`), and chunks through `storage`, each up to the largest size of such a chunk.

Letters: C channels, H height and W width in pixels.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from cytolake.screens.images.image_errors import ImageFileError, Window, one_line
from cytolake.screens.images.missing_chunks import ChunksRead, fill_value_text
from cytolake.screens.images.ome_metadata import image_facts, level_of, read_arrays, read_groups
from cytolake.screens.images.zarr_codecs import register_codecs
from cytolake.screens.images.zarr_metadata import CHUNKS_MAX, SafeArray, safe_array
from cytolake.storage.files import is_uri, read_part

STACK_BYTES_MAX = 2**28
"""Planes that lie in one chunk are decoded together up to this size, so that the chunk is decoded once."""

_ZARR_CONCURRENCY = 10  # chunks that zarr decodes side by side
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
        """Largest number of bytes decoded at a time to read a window of these focal planes, without the result.

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
        safe = safe_array(document)
        fill_value = fill_value_text(safe.document.get("fill_value"))
        chunks_read = ChunksRead(axes=facts.axes, shape=safe.shards, fill_value=fill_value)
        store = _CheckedStore(f"{path}/{level}", safe, chunks_read)
        register_codecs()
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


def _zcyx(pixels: np.ndarray, axes: str) -> np.ndarray:
    """(z, C, height, width) of an array read with one timepoint."""
    if "t" in axes:
        pixels = pixels.take(0, axis=axes.index("t"))
        axes = axes.replace("t", "")
    for axis in "cz":
        if axis not in axes:
            pixels, axes = pixels[None], axis + axes
    return np.ascontiguousarray(pixels.transpose([axes.index(axis) for axis in "zcyx"]))


class _CheckedStore(Store):
    """One array, for zarr: its checked metadata, and chunks as `storage` reads them."""

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    def __init__(self, path: str, safe: SafeArray, chunks_read: ChunksRead) -> None:
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
