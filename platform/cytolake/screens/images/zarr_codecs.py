"""Bounded decompression of Zarr chunks: no chunk decodes into more bytes than its array declares."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

import imagecodecs
import numcodecs  # type: ignore[import-untyped]
from numcodecs.abc import Codec  # type: ignore[import-untyped]
from zarr.abc.codec import BytesBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.registry import register_codec

from cytolake.screens.images.image_errors import ImageFileError

CODEC = "cytolake-bounded"
COMPRESSORS = ("blosc", "zstd", "gzip", "zlib", "lz4")

_DAMAGED = "A chunk is cut or damaged; copy the image again from its source."


@lru_cache(maxsize=1)
def register_codecs() -> None:
    """Register the bounded codecs with zarr, under a name of their own."""
    register_codec(CODEC, BoundedCodec)
    numcodecs.register_codec(BoundedCompressor)


class BoundedCodec(BytesBytesCodec):
    """Zarr v3 codec of one of `COMPRESSORS` that decodes no more bytes than the chunk has room for."""

    is_fixed_size = False

    def __init__(self, *, compressor: str) -> None:
        self.compressor = compressor

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The codec of its metadata."""
        return cls(compressor=str(data["configuration"]["compressor"]))

    def to_dict(self) -> dict[str, Any]:
        """Metadata of the codec."""
        return {"name": CODEC, "configuration": {"compressor": self.compressor}}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Unknown before decoding."""
        raise NotImplementedError

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        limit = math.prod(chunk_spec.shape) * chunk_spec.dtype.to_native_dtype().itemsize
        data = await asyncio.to_thread(decode_bounded, self.compressor, chunk_bytes.to_bytes(), limit)
        return chunk_spec.prototype.buffer.from_bytes(data)


class BoundedCompressor(Codec):  # type: ignore[misc]  # numcodecs has no types
    """`BoundedCodec` for Zarr v2."""

    codec_id = CODEC

    def __init__(self, *, compressor: str, limit: int) -> None:
        self.compressor, self.limit = compressor, limit

    def encode(self, buf: Any) -> Any:
        """Not supported: arrays are read-only."""
        raise NotImplementedError

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The decoded chunk."""
        return decode_bounded(self.compressor, bytes(buf), self.limit)


def decode_bounded(compressor: str, data: bytes, limit: int) -> bytes:
    """Decode a chunk into at most `limit` bytes.

    Raises:
        ImageFileError: `truncated_file`, a Blosc chunk shorter than declared; `too_large`, more than the limit.
        Exception: Any error of a codec, for a damaged chunk.
    """
    limit = slack(limit)
    decoded: bytes | bytearray
    if compressor == "blosc":
        # Blosc trusts the length in a chunk's header and reads beyond a chunk that was cut (numcodecs 0.16)
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
        decoded = imagecodecs.zstd_decode(data, out=limit)  # a frame may omit its length
    else:
        _check_decoded(int.from_bytes(data[:4], "little"), limit)
        decoded = bytes(numcodecs.LZ4().decode(data))
    _check_decoded(len(decoded), limit)
    return bytes(decoded)


def slack(n_bytes: int) -> int:
    """Largest size of an encoded chunk, bytes: compressors enlarge incompressible data."""
    return n_bytes + n_bytes // 8 + 65_536


def _check_decoded(n_bytes: int, limit: int) -> None:
    if n_bytes > limit:
        raise ImageFileError(
            "too_large", f"a chunk of more than {limit} bytes, decoded", "the declared chunk shape", _DAMAGED
        )
