"""Checks of a Zarr array's metadata, in which compressors are replaced by bounded ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cytolake.screens.images.image_errors import ImageFileError
from cytolake.screens.images.ome_metadata import lengths
from cytolake.screens.images.zarr_codecs import CODEC, COMPRESSORS, slack

CHUNKS_MAX = 2**18  # of one read; 5 channels of 20,000 x 20,000 pixels in chunks of 128 x 128 are 123,245

_V2_TYPE = re.compile(r"[<>|]([uif])([1248])")
_V3_TYPE = re.compile(r"(u|)(int|float)(8|16|32|64)")


@dataclass(frozen=True, slots=True)
class SafeArray:
    """Checked metadata of one array."""

    zarr_format: Any  # 2 or 3
    document: dict[str, Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    itemsize: int

    @property
    def stored_bytes_max(self) -> int:
        """Most bytes of one file or object."""
        inner = math.prod(a // b for a, b in zip(self.shards, self.chunks, strict=True))
        return slack(math.prod(self.shards) * self.itemsize) + inner * 1024  # 16 in the index, and what codecs add


def safe_array(document: Mapping[str, Any]) -> SafeArray:
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
    return SafeArray(3, safe, inner, chunks, int(found[3]) // 8)


def _safe_v2(document: Mapping[str, Any], shape: tuple[int, ...]) -> SafeArray:
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
    return SafeArray(2, safe, chunks, chunks, int(found[2]))


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
