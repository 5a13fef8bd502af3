"""Shape and bit depth of a JPEG-2000 image, and checks that bound the memory of decoding it.

OpenJPEG decodes what is there of a codestream that was cut, and takes memory for each tile, block and packet that the
headers declare; so both are checked here first. Source: ITU-T T.800 annexes A (codestream) and I (boxes).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

FILE_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
CODESTREAM_SIGNATURE = b"\xff\x4f\xff\x51"

TILES_MAX = 4096  # OpenJPEG keeps 5.6 KB for each
PACKETS_MAX = 2**22
MARKERS_MAX = 2**17
_SOT, _SOD, _EOC, _COD, _COC = 0xFF90, 0xFF93, 0xFFD9, 0xFF52, 0xFF53


class CutError(ValueError):
    """The data end before the image does."""


@dataclass(frozen=True, slots=True)
class Jpeg2000Header:
    """Header of a codestream."""

    height: int
    width: int
    bits: int
    is_signed: bool
    n_components: int
    has_palette: bool


def read_header(data: bytes) -> Jpeg2000Header:
    """Header of a whole JP2 file or bare codestream, every tile-part of it followed to the end mark.

    Raises:
        CutError: The data end before the codestream does.
        ValueError: Headers that contradict themselves, or that make the decoder take memory beyond all measure.
    """
    start, end, has_palette = (0, len(data), False) if data.startswith(CODESTREAM_SIGNATURE) else _codestream(data)
    if data[start : start + 4] != CODESTREAM_SIGNATURE:
        raise ValueError("no JPEG-2000 codestream")
    try:
        header = _read_size(data, start + 4, has_palette)
        _follow(data, start + 2, end, header)
    except struct.error:
        raise CutError(f"{len(data)} bytes, which end within a header") from None
    return header


def _codestream(data: bytes) -> tuple[int, int, bool]:
    """Start and end of the codestream in the boxes of a JP2 file, and whether there is a palette."""
    position, has_palette = 0, False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        head = 8
        if length == 1:
            if position + 16 > len(data):
                break
            length, head = struct.unpack_from(">Q", data, position + 8)[0], 16
        elif length == 0:
            length = len(data) - position
        if length < head:
            raise ValueError(f"a box of {length} bytes")
        if kind == b"jp2c":
            if position + length > len(data):
                raise CutError(f"{len(data)} bytes, with a codestream to {position + length}")
            return position + head, position + length, has_palette
        if kind == b"jp2h":
            has_palette = b"pclr" in data[position : position + min(length, 2**16)]
        position += length
    raise CutError(f"{len(data)} bytes without a codestream")


def _read_size(data: bytes, position: int, has_palette: bool) -> Jpeg2000Header:
    _, _, x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, n_components = struct.unpack_from(">HH8IH", data, position)
    bits, step_x, step_y = struct.unpack_from(">BBB", data, position + 38)
    if not (x0 < x1 and y0 < y1 and tile_x and tile_y and tile_x0 <= x0 and tile_y0 <= y0 and n_components):
        raise ValueError("an image without pixels")
    if (step_x, step_y) != (1, 1):
        raise ValueError(f"one value for every {step_x} x {step_y} pixels")
    n_tiles = math.ceil((x1 - tile_x0) / tile_x) * math.ceil((y1 - tile_y0) / tile_y)
    if n_tiles > TILES_MAX:
        raise ValueError(f"{n_tiles} tiles, more than {TILES_MAX}")
    return Jpeg2000Header(
        height=y1 - y0,
        width=x1 - x0,
        bits=(bits & 0x7F) + 1,
        is_signed=bits > 0x7F,
        n_components=n_components,
        has_palette=has_palette,
    )


def _follow(data: bytes, position: int, end: int, header: Jpeg2000Header) -> None:
    """Goes through the main header and every tile-part to the end mark; checks each coding style on the way."""
    layers = 1
    for _ in range(MARKERS_MAX):
        (marker,) = struct.unpack_from(">H", data, position)
        if marker == _EOC:
            return
        if position + 2 > end or marker < 0xFF00:
            raise CutError(f"{end} bytes without an end mark")
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == _COD:
            (layers,) = struct.unpack_from(">H", data, position + 6)
            _check_style(data, position + 9, bool(data[position + 4] & 1), layers, header)
        elif marker == _COC:
            _check_style(data, position + 6, bool(data[position + 5] & 1), layers, header)
        elif marker == _SOT:
            position = _tile_part(data, position, end, header, layers)
            continue
        position += 2 + max(length, 2)
    raise ValueError(f"more than {MARKERS_MAX} headers and tile-parts")


def _tile_part(data: bytes, start: int, end: int, header: Jpeg2000Header, layers: int) -> int:
    """Position behind one tile-part."""
    (length,) = struct.unpack_from(">I", data, start + 6)
    if length == 0:  # the last one may reach to the end mark without saying how far that is
        if data[end - 2 : end] != b"\xff\xd9":
            raise CutError(f"{end} bytes without an end mark")
        return end - 2
    if start + length + 2 > end:
        raise CutError(f"{end} bytes, with a tile to {start + length}")
    position = start + 12
    while position < start + length:
        (marker,) = struct.unpack_from(">H", data, position)
        if marker == _SOD:
            return int(start + length)
        if marker in (_COD, _COC):
            at = position + (9 if marker == _COD else 6)
            has_precincts = bool(data[position + (4 if marker == _COD else 5)] & 1)
            if marker == _COD:
                (layers,) = struct.unpack_from(">H", data, position + 6)
            _check_style(data, at, has_precincts, layers, header)
        position += 2 + max(struct.unpack_from(">H", data, position + 2)[0], 2)
    raise ValueError("a tile without data")


def _check_style(data: bytes, at: int, has_precincts: bool, layers: int, header: Jpeg2000Header) -> None:
    """Refuses more packets (layers x precincts x resolutions) than an image needs; OpenJPEG keeps a state for each."""
    n_levels = data[at] if at < len(data) else 0
    if n_levels > 32:
        raise ValueError(f"{n_levels} resolutions")
    precincts = 0
    for level in range(n_levels + 1):
        size = data[at + 5 + level] if has_precincts and at + 5 + level < len(data) else 0xFF
        shrink = n_levels - level
        precincts += math.ceil(math.ceil(header.width / 2**shrink) / 2 ** (size & 15)) * math.ceil(
            math.ceil(header.height / 2**shrink) / 2 ** (size >> 4)
        )
    if precincts * max(layers, 1) > PACKETS_MAX:
        raise ValueError(f"{layers} layers of {precincts} precincts, more than {PACKETS_MAX} packets")
