"""Bytes of a request to crops: npy and npz arrays, read without ever unpickling, within a size budget.

Shapes: B crops, C channels, H and W pixels.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.serving.problems import ServingError

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
MAX_HEADER_BYTES = 10_000
"""Length of an npy header that is parsed; numpy's own limit, because the parser is Python's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodingBudget:
    """How much one request may ask for. Checked against what a header declares, before anything is allocated."""

    max_crops: int = 1024
    """Crops in one request."""
    max_decoded_bytes: int = 256 * 2**20
    """Bytes of the crops as 32-bit floats, which is what the encoder holds."""
    max_channels: int = 64
    """Channels of one crop."""

    def __post_init__(self) -> None:
        if min(self.max_crops, self.max_decoded_bytes, self.max_channels) < 1:
            raise ValueError("max_crops, max_decoded_bytes and max_channels must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedCrops:
    """Crops as sent, and the channel names that came with them."""

    pixels: NDArray[Any]
    """(B, C, H, W), any unsigned, signed or floating type; intensities on any scale."""
    channels: tuple[str, ...]
    """C names in the order of the pixels; () where the array carried none."""


def decode_crops(body: bytes, budget: DecodingBudget) -> DecodedCrops:
    """Read crops from an npy array, or from an npz archive with an array `crops` and, if wanted, one `channels`.

    Args:
        body: (B, C, H, W) or, for one crop, (C, H, W); plain numbers.
        budget: Limits on what the header may declare.

    Raises:
        ServingError: 415 not npy or npz; 422 a type, shape or value that is no crop; 413 more than the budget.
    """
    if body.startswith(NPY_MAGIC):
        return DecodedCrops(pixels=_as_crops(_read_npy(body, "the array", budget), budget), channels=())
    if body.startswith(ZIP_MAGIC):
        return _decode_npz(body, budget)
    raise ServingError(
        status=415,
        detail=f"the body starts with {body[:6]!r}, expected a numpy array: numpy.save (npy) or numpy.savez (npz).",
    )


def _decode_npz(body: bytes, budget: DecodingBudget) -> DecodedCrops:
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
    return DecodedCrops(pixels=_as_crops(crops, budget), channels=channels)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ServingError(status=422, detail=f"{info.filename} is compressed in a way that numpy.savez does not use.")
    max_bytes += MAX_HEADER_BYTES
    with archive.open(info) as member:
        content = member.read(max_bytes + 1)  # the size in the directory is the sender's claim, so read to the limit
    if len(content) > max_bytes:
        raise ServingError(status=413, detail=f"{info.filename} is larger than the {max_bytes:,} bytes that are taken.")
    return content


def _channel_names(content: bytes, budget: DecodingBudget) -> tuple[str, ...]:
    array = _read_npy(content, "channels", budget, kinds="U")
    if array.ndim != 1:
        raise ServingError(status=422, detail=f"channels has shape {array.shape}, expected one name for each channel.")
    return tuple(str(name) for name in array)


def _read_npy(content: bytes, name: str, budget: DecodingBudget, *, kinds: str = "uif") -> NDArray[Any]:
    """An array of plain values. The header is checked before the data: object arrays, which numpy would unpickle, end
    there."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(stream, max_header_size=MAX_HEADER_BYTES)
        elif version == (2, 0):
            header = np.lib.format.read_array_header_2_0(stream, max_header_size=MAX_HEADER_BYTES)
        else:
            raise ValueError(f"npy version {version[0]}.{version[1]}, expected 1.0 or 2.0")
    except Exception as error:  # numpy parses the header with Python's own parser, which has many ways to fail
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ServingError(status=422, detail=f"{name}: no readable npy header ({reason}). Use numpy.save.") from error
    shape, is_fortran, dtype = header
    if dtype.hasobject:
        raise ServingError(
            status=422, detail=f"{name} is an object array, which is never read: it could run code. Send plain numbers."
        )
    if dtype.kind not in kinds or dtype.itemsize == 0 or (kinds == "uif" and dtype.itemsize > 8):
        raise ServingError(
            status=422, detail=f"{name} has type {dtype}, expected {'text' if kinds == 'U' else 'real numbers'}."
        )
    n_values = math.prod(shape)
    if any(edge < 0 for edge in shape) or len(shape) > 8:
        raise ServingError(status=422, detail=f"{name} declares the shape {shape[:8]}.")
    if kinds == "uif" and n_values * 4 > budget.max_decoded_bytes:
        raise ServingError(
            status=413,
            detail=f"{name} of shape {shape} takes {n_values * 4:,} bytes as 32-bit floats, at most "
            f"{budget.max_decoded_bytes:,} are taken. Send fewer crops in each request.",
        )
    data = memoryview(content)[stream.tell() :]
    if len(data) != n_values * dtype.itemsize:
        raise ServingError(
            status=422,
            detail=f"{name} declares shape {shape} of {dtype}, {n_values * dtype.itemsize:,} bytes, but {len(data):,} "
            "follow. The upload was cut or the header is wrong.",
        )
    flat = np.frombuffer(data, dtype=dtype)
    return flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)


def _as_crops(array: NDArray[Any], budget: DecodingBudget) -> NDArray[Any]:
    if array.ndim not in (3, 4):
        raise ServingError(
            status=422, detail=f"the array has shape {array.shape}, expected (B, C, H, W), or (C, H, W) for one crop."
        )
    pixels_BCHW = array[None] if array.ndim == 3 else array
    if min(pixels_BCHW.shape) < 1:
        raise ServingError(status=422, detail=f"the array has shape {array.shape}: there is no crop in it.")
    n_crops, n_channels = pixels_BCHW.shape[:2]
    if n_crops > budget.max_crops:
        raise ServingError(status=413, detail=f"{n_crops:,} crops, at most {budget.max_crops:,} in each request.")
    if n_channels > budget.max_channels:
        raise ServingError(status=422, detail=f"{n_channels:,} channels in each crop, at most {budget.max_channels}.")
    if pixels_BCHW.dtype.kind == "f" and not np.isfinite(pixels_BCHW).all():
        crop = int(np.flatnonzero(~np.isfinite(pixels_BCHW).all(axis=(1, 2, 3)))[0])
        raise ServingError(status=422, detail=f"crop {crop} holds NaN or infinite pixels. Send finite intensities.")
    return np.ascontiguousarray(pixels_BCHW, dtype=pixels_BCHW.dtype.newbyteorder("="))
