"""Decodes npy and npz arrays, without unpickling.

Shapes: B crops, C channels, H and W pixels.
"""

from __future__ import annotations

import io
import math
import threading
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.serving.decoding.crops import DecodedCrops, DecodingBudget, crops_of_array
from cytolake.serving.problems import ServingError

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
MAX_HEADER_BYTES = 10_000
"""Longest npy header that is parsed, characters; numpy's own limit, because Python parses it."""


_HEADER_LOCK = threading.Lock()
"""Numpy parses headers with ast.literal_eval, of which two at once in threads can raise SystemError (Python 3.11)."""


def decode_npy(body: bytes, budget: DecodingBudget) -> DecodedCrops:
    """Crops of an npy array, (B, C, H, W) or (C, H, W).

    Raises:
        ServingError: 422, a type, shape or value that is no crop; 413, more than the budget.
    """
    return crops_of_array(_read_npy(body, "the array", budget), (), budget)


def decode_npz(body: bytes, budget: DecodingBudget) -> DecodedCrops:
    """Crops of an npz archive with an array `crops` and optionally one `channels`.

    Raises:
        ServingError: As `decode_npy`.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if "crops" not in members or set(members) - {"crops", "channels"} or len(archive.infolist()) > 2:
                found = ", ".join(sorted(members)[:8]) or "nothing"
                raise ServingError(
                    status=422, detail=f"the npz holds {found}; expected an array `crops` and optionally `channels`."
                )
            crops = _read_npy(_member(archive, members["crops"], budget.max_decoded_bytes), "crops", budget)
            channels: tuple[str, ...] = ()
            if "channels" in members:
                channels = _channel_names(_member(archive, members["channels"], 2**20), budget)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ServingError(status=422, detail=f"the npz cannot be read ({error}). Use numpy.savez.") from error
    return crops_of_array(crops, channels, budget)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ServingError(status=422, detail=f"{info.filename} has a compression that numpy.savez does not use.")
    max_bytes += MAX_HEADER_BYTES
    with archive.open(info) as member:
        content = member.read(max_bytes + 1)  # the declared size may be wrong, so read to the limit
    if len(content) > max_bytes:
        raise ServingError(status=413, detail=f"{info.filename} is larger than the limit of {max_bytes:,} bytes.")
    return content


def _channel_names(content: bytes, budget: DecodingBudget) -> tuple[str, ...]:
    array = _read_npy(content, "channels", budget, kinds="U")
    if array.ndim != 1:
        raise ServingError(status=422, detail=f"channels has shape {array.shape}, expected one name for each channel.")
    return tuple(str(name) for name in array)


def _read_npy(content: bytes, name: str, budget: DecodingBudget, *, kinds: str = "uif") -> NDArray[Any]:
    """An array of plain values. The header is checked before the data, and object arrays, which numpy would unpickle,
    are refused."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        with _HEADER_LOCK:
            if version == (1, 0):
                header = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_HEADER_BYTES)
            elif version == (2, 0):
                header = np.lib.format.read_array_header_2_0(stream, max_header_size=MAX_HEADER_BYTES)
            else:
                raise ValueError(f"npy version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    except Exception as error:  # numpy parses the header with Python's own parser, which raises many kinds of errors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ServingError(status=422, detail=f"{name}: no readable npy header ({reason}). Use numpy.save.") from error
    shape, is_fortran, dtype = header
    if dtype.hasobject:
        raise ServingError(
            status=422, detail=f"{name} is an object array, which could run code and is never read. Send plain numbers."
        )
    if dtype.kind not in kinds or dtype.itemsize == 0 or (kinds == "uif" and dtype.itemsize > 8):
        raise ServingError(
            status=422, detail=f"{name} has type {dtype}, expected {'text' if kinds == 'U' else 'real numbers'}."
        )
    n_values = math.prod(shape)
    if any(edge < 0 for edge in shape) or len(shape) > 8:
        raise ServingError(status=422, detail=f"{name} declares the shape {shape[:8]}.")
    if kinds == "uif":
        budget.check_values(n_values, name, shape)
    data = memoryview(content)[stream.tell() :]
    if len(data) != n_values * dtype.itemsize:
        raise ServingError(
            status=422,
            detail=f"{name} declares shape {shape} of {dtype}, {n_values * dtype.itemsize:,} bytes, but {len(data):,} "
            "follow. The upload was cut or the header is wrong.",
        )
    flat = np.frombuffer(data, dtype=dtype)
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
