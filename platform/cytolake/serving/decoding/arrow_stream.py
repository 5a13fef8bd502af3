"""Decodes an Arrow IPC stream with one row for each crop; crops may differ in channels, size and type.

Columns: `pixels` binary (also large or of fixed size), the values of a (C, H, W) array in C order, little-endian;
`shape` list<int32>, its three edges; `dtype` string, the name of its type; optionally `channels` list<string>, the C
stains. Compression, dictionaries and extension types are refused, so a message takes no more memory than its bytes.

Shapes: C channels, H and W pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytolake.serving.decoding.crops import DecodedCrops, DecodingBudget, check_finite, n_values_of
from cytolake.serving.problems import ServingError

STREAM_MAGIC = b"\xff\xff\xff\xff"
"""Continuation mark of the first message; streams of Arrow before 0.15 have none."""
END_MARK = STREAM_MAGIC + b"\0\0\0\0"

DTYPES = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"
    )
}  # fmt: skip

_HOW = (
    "Expected columns pixels (binary), shape (list<int32>), dtype (string) and optionally channels (list<string>), "
    "without compression."
)
_RECORD_BATCH = 3
_COMPRESSION = 3


def decode_arrow_stream(body: bytes, budget: DecodingBudget) -> DecodedCrops:
    """Crops of an Arrow stream.

    Raises:
        ServingError: 422, a stream that is cut or damaged, other columns, or a row that is no crop; 413, more than the
            budget.
    """
    if not body.endswith(END_MARK):
        raise ServingError(status=422, detail="the Arrow stream has no end mark: it was cut, or its writer not closed.")
    images: list[NDArray[Any]] = []
    channels: list[tuple[str, ...]] = []
    n_bytes = 0
    try:
        _check_messages(body)
        for row in _rows(body, budget):
            where = f"row {len(images)} of the Arrow stream"
            image_CHW = _image(where, row, budget)
            n_bytes += image_CHW.size * max(4, image_CHW.itemsize)
            if n_bytes > budget.max_decoded_bytes:
                raise ServingError(
                    status=413,
                    detail=f"the first {len(images) + 1} rows of the Arrow stream take {n_bytes:,} bytes decoded, at "
                    f"most {budget.max_decoded_bytes:,} are allowed. Send fewer crops in each request.",
                )
            images.append(image_CHW)
            channels.append(_names(where, row.get("channels"), budget))
    except (pa.ArrowException, OSError, struct.error, IndexError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ServingError(
            status=422, detail=f"the Arrow stream cannot be read ({reason}). It is cut or damaged."
        ) from error
    if not images:
        raise ServingError(status=422, detail="the Arrow stream has no rows: there is no crop in it.")
    check_finite(images)
    return DecodedCrops(images=tuple(images), channels=tuple(channels))


def _rows(body: bytes, budget: DecodingBudget) -> Iterator[dict[str, Any]]:
    """Scalars of each row, None for a null in `channels`; the batch is checked first."""
    with pa.ipc.open_stream(pa.py_buffer(body)) as stream:
        _check_schema(stream.schema)
        n_rows = 0
        for batch in stream:
            n_rows += batch.num_rows
            budget.check_counts(n_rows, 1)
            batch.validate(full=True)  # offsets and lengths may be wrong
            for place in range(batch.num_rows):
                row = {name: batch.column(name)[place] for name in batch.schema.names}
                for name in ("pixels", "shape", "dtype"):
                    if not row[name].is_valid:
                        raise ServingError(status=422, detail=f"the Arrow stream holds a null {name}. {_HOW}")
                yield {name: value if value.is_valid else None for name, value in row.items()}


def _check_schema(schema: pa.Schema) -> None:
    def is_text(kind: Any) -> bool:
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def is_list(kind: Any) -> bool:
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))

    def is_bytes(kind: Any) -> bool:
        is_variable = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        return bool(is_variable or pa.types.is_fixed_size_binary(kind))

    fits: dict[str, Callable[[Any], bool]] = {
        "pixels": is_bytes,
        "shape": lambda kind: is_list(kind) and pa.types.is_integer(kind.value_type),
        "dtype": is_text,
        "channels": lambda kind: is_list(kind) and is_text(kind.value_type),
    }
    names = schema.names
    is_sound = (
        len(set(names)) == len(names)
        and {"pixels", "shape", "dtype"} <= set(names) <= set(fits)
        and all(fits[field.name](field.type) for field in schema)
        and not any(isinstance(field.type, pa.BaseExtensionType) for field in schema)
        and not any(b"ARROW:extension:name" in (field.metadata or {}) for field in schema)
    )
    if not is_sound:
        found = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:8])[:400] or "no columns"
        raise ServingError(status=422, detail=f"the Arrow stream holds {found}. {_HOW}")


def _image(where: str, row: dict[str, Any], budget: DecodingBudget) -> NDArray[Any]:
    shape, name = row["shape"].values[:8].to_pylist(), row["dtype"].as_py()
    if len(shape) != 3 or None in shape or min(shape) < 1:
        raise ServingError(
            status=422, detail=f"{where} declares the shape {shape}, expected three edges (C, H, W) of 1 or more."
        )
    if name not in DTYPES:
        raise ServingError(
            status=422, detail=f"{where} declares the type {name[:40]!r}, expected one of {', '.join(DTYPES)}."
        )
    dtype = DTYPES[name]
    budget.check_counts(1, shape[0])
    budget.check_values(n_values_of(shape), where, shape, dtype.itemsize)
    content = row["pixels"].as_buffer()
    n_expected = n_values_of(shape) * dtype.itemsize
    if content.size != n_expected:
        raise ServingError(
            status=422,
            detail=f"{where} declares shape {tuple(shape)} of {name}, {n_expected:,} bytes, but holds "
            f"{content.size:,}. Write the array in C order, such as array.tobytes().",
        )
    image_CHW = np.frombuffer(content, dtype).reshape(shape)
    return np.require(image_CHW.astype(dtype.newbyteorder("="), copy=False), requirements=["C", "A"])


def _names(where: str, names: Any, budget: DecodingBudget) -> tuple[str, ...]:
    if names is None:
        return ()
    budget.check_counts(1, len(names.values))
    if names.values.null_count:
        raise ServingError(status=422, detail=f"{where}: a channel without a name. Name all or none.")
    return tuple(names.as_py())


def _check_messages(body: bytes) -> None:
    """Refuse compressed batches and dictionaries, from the header of each message.

    A compressed buffer may declare any size, and Arrow's reader would allocate it. The reader has no option against it,
    so this function reads the header's flatbuffers (Message.fbs and Schema.fbs) up to the field of compression.
    """
    place = 0
    while place + 8 <= len(body):
        mark, n_header = struct.unpack_from("<Ii", body, place)
        if mark != 0xFFFFFFFF or n_header < 0:
            raise ServingError(status=422, detail="the Arrow stream has a message without its mark. It is damaged.")
        if n_header == 0:
            if place + 8 != len(body):
                raise ServingError(status=422, detail="the Arrow stream goes on after its end mark.")
            return
        header = body[place + 8 : place + 8 + n_header]
        (root,) = struct.unpack_from("<I", header, 0)
        kind_at, content_at, n_body_at = (_field(header, root, number) for number in (1, 2, 3))
        kind = header[kind_at] if kind_at else 0
        n_body = struct.unpack_from("<q", header, n_body_at)[0] if n_body_at else 0
        if place == 0 and kind != 1:
            raise ServingError(status=422, detail=f"the Arrow stream does not begin with a schema. {_HOW}")
        if place > 0 and (kind != _RECORD_BATCH or not content_at):
            raise ServingError(status=422, detail=f"the Arrow stream holds a dictionary or another message. {_HOW}")
        if place > 0:
            batch = content_at + struct.unpack_from("<I", header, content_at)[0]
            if _field(header, batch, _COMPRESSION):
                raise ServingError(status=422, detail=f"the Arrow stream is compressed. {_HOW}")
        if n_body < 0:
            raise ServingError(status=422, detail="the Arrow stream has a message of negative length. It is damaged.")
        place += 8 + n_header + n_body
    raise ServingError(status=422, detail="the Arrow stream ends within a message: it was cut.")


def _field(header: bytes, table: int, number: int) -> int:
    """Offset of a field of a flatbuffers table in the header; 0 where the field is absent."""
    (back,) = struct.unpack_from("<i", header, table)
    vtable = table - back
    if vtable < 0:
        raise struct.error("a table outside its message")
    (n_bytes,) = struct.unpack_from("<H", header, vtable)
    if 4 + 2 * number + 2 > n_bytes:
        return 0
    (offset,) = struct.unpack_from("<H", header, vtable + 4 + 2 * number)
    return table + offset if offset else 0
