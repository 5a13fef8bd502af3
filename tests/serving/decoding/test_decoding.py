from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
import tifffile

from cytolake.serving.decoding import DecodingBudget, decode_crops
from cytolake.serving.decoding.arrays import _read_npy
from cytolake.serving.problems import ServingError

BUDGET = DecodingBudget(max_crops=16, max_decoded_bytes=2**20, max_channels=8)


def npy(array, **how) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


def npz(compressed=False, **arrays) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def npy_with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def refused(body: bytes) -> ServingError:
    with pytest.raises(ServingError) as error:
        decode_crops(body, BUDGET)
    return error.value


class Bomb:
    """Ends the test when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("an object was unpickled",)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "float16", "<f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_crops_come_back_as_numpy_would_load_them(dtype, order):
    crops = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(dtype, order=order)
    decoded = decode_crops(npy(crops), BUDGET)
    assert len(decoded.images) == 2
    for image, expected in zip(decoded.images, np.load(io.BytesIO(npy(crops))), strict=True):
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == crops.dtype.newbyteorder("=")
        assert image.flags.c_contiguous
    assert decoded.channels == ((), ())


def test_one_crop_needs_no_crop_axis():
    crop = np.ones((3, 4, 4), np.uint16)
    (image,) = decode_crops(npy(crop), BUDGET).images
    np.testing.assert_array_equal(image, crop)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_carries_its_channel_names(compressed):
    crops = np.random.default_rng(0).integers(0, 999, (2, 2, 8, 8)).astype(np.uint16)
    decoded = decode_crops(npz(compressed, crops=crops, channels=np.array(["DNA", "ER"])), BUDGET)
    np.testing.assert_array_equal(decoded.images, crops)
    assert decoded.channels == (("DNA", "ER"),) * 2


@pytest.mark.parametrize(
    "body",
    [
        npy(np.array([[[Bomb()]]], dtype=object), allow_pickle=True),
        npz(crops=np.array([[[Bomb()]]], dtype=object)),
        npz(crops=np.ones((1, 2, 2)), channels=np.array([Bomb()], dtype=object)),
    ],
)
def test_an_object_array_is_refused_before_it_is_unpickled(body):
    error = refused(body)
    assert error.status == 422
    assert "object array" in error.detail


def test_a_pickle_is_not_an_array():
    assert refused(pickle.dumps(Bomb())).status == 415


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 415, "numpy array"),
        (b"\x89PNG\r\n", 415, "numpy array"),
        (npy(np.ones((4, 4))), 422, "(B, C, H, W)"),
        (npy(np.ones((1, 1, 1, 4, 4))), 422, "(B, C, H, W)"),
        (npy(np.ones((0, 3, 4, 4))), 422, "no crop"),
        (npy(np.ones((17, 1, 2, 2), np.uint8)), 413, "17 crops, at most 16"),
        (npy(np.ones((9, 2, 2), np.uint8)), 422, "9 channels"),
        (npy(np.ones((1, 2, 2), complex)), 422, "complex128"),
        (npy(np.array([[["a"]]])), 422, "<U1"),
        (npy(np.array([[["2020-01-01"]]], "datetime64[D]")), 422, "datetime64"),
        (npy(np.ones((1, 2, 2), [("a", "u2")])), 422, "real numbers"),
        (npy(np.ones((1, 2, 2), bool)), 422, "bool"),
        (npy(np.full((2, 1, 2, 2), np.nan)), 422, "crop 0 holds NaN"),
        (npy(np.array([[[1.0, np.inf]]])), 422, "infinite"),
        (npy(np.ones((3, 4, 4)))[:-8], 422, "384 bytes, but 376 follow"),
        (npy(np.ones((3, 4, 4))) + b"x", 422, "but 385 follow"),
        (npy(np.ones((3, 4, 4)))[:20], 422, "header"),
        (npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000, 9)}"), 413, "bytes"),
        (npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 4)}"), 422, "shape"),
        (npy_with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,) * 9}"), 422, "header"),
        (npy_with_header("{'descr': '|V0', 'fortran_order': False, 'shape': (1, 4, 4)}"), 422, "type"),
        (npy_with_header("__import__('os').system('true')"), 422, "header"),
        (npy_with_header("(" * 9000), 422, "header"),
        (b"\x93NUMPY\x03\x00" + b"\x00" * 32, 422, "npy version 3.0"),
        (b"PK\x03\x04" + b"\x00" * 64, 422, "npz"),
        (npz(a=np.ones((1, 2, 2))), 422, "`crops`"),
        (npz(crops=np.ones((1, 2, 2)), more=np.ones(3)), 422, "`channels`"),
        (npz(crops=np.ones((1, 2, 2)), channels=np.ones(1)), 422, "expected text"),
        (npz(crops=np.ones((1, 2, 2)), channels=np.array([["DNA"]])), 422, "one name for each"),
    ],
)  # fmt: skip
def test_what_is_no_crop_is_refused_with_the_reason(body, status, reason):
    error = refused(body)
    assert (error.status, reason in error.detail) == (status, True), error.detail


def test_a_zip_bomb_ends_at_the_budget():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("crops.npy", b"\0" * 64 * 2**20)
    assert len(stream.getvalue()) < 100_000
    assert refused(stream.getvalue()).status == 413


def test_a_damaged_archive_is_refused():
    body = bytearray(npz(True, crops=np.random.default_rng(0).integers(0, 9, (4, 2, 16, 16)).astype(np.uint8)))
    body[len(body) // 3] ^= 0xFF
    assert refused(bytes(body)).status == 422


def tiff(array, **how) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **({"photometric": "minisblack"} | how))
    return stream.getvalue()


def random_crops(*shape, dtype="uint16"):
    return np.random.default_rng(0).integers(0, 250, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd", "packbits"])
def test_the_pages_of_a_tiff_are_the_channels_of_one_crop(dtype, compression):
    crop = random_crops(3, 20, 17, dtype=dtype)
    body = tiff(crop, compression=compression, byteorder=">" if dtype == ">u2" else "<", metadata=None)
    (image,) = decode_crops(body, BUDGET).images
    np.testing.assert_array_equal(image, crop)
    assert image.dtype == crop.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    "how",
    [
        {"rowsperstrip": 3},
        {"tile": (16, 16)},
        {"predictor": True, "compression": "lzw"},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
)
def test_strips_tiles_predictors_and_large_headers_are_read(how):
    crop = random_crops(2, 40, 33)
    np.testing.assert_array_equal(decode_crops(tiff(crop, **how), BUDGET).images[0], crop)


@pytest.mark.parametrize(
    ("how", "n_crops"),
    [
        ({}, 5),
        ({"metadata": {"axes": "TCYX"}}, 5),
        ({"imagej": True, "metadata": {"axes": "TCYX"}}, 5),
        ({"imagej": True, "metadata": {"axes": "ZCYX"}}, 5),
        ({"ome": True, "metadata": {"axes": "TCYX"}}, 5),
        ({"ome": True, "metadata": {"axes": "ZCYX", "Channel": {"Name": ["DNA", "ER", "RNA"]}}}, 5),
        ({"metadata": None}, 1),
    ],
)
def test_the_axes_of_a_tiff_say_which_pages_are_crops(how, n_crops):
    crops = random_crops(5, 3, 8, 9)
    decoded = decode_crops(tiff(crops, **how), DecodingBudget(max_crops=5, max_channels=15))
    np.testing.assert_array_equal(decoded.images, crops.reshape(n_crops, -1, 8, 9))
    names = ("DNA", "ER", "RNA") if "Channel" in (how.get("metadata") or {}) else ()
    assert decoded.channels == (names,) * n_crops


def test_an_ome_tiff_with_the_channels_outermost_is_read_in_its_own_order():
    crops = random_crops(3, 4, 8, 9)
    decoded = decode_crops(tiff(crops, ome=True, metadata={"axes": "CTYX"}), BUDGET)
    np.testing.assert_array_equal(decoded.images, crops.swapaxes(0, 1))


def shortened(body: bytes, share: float) -> bytes:
    return body[: int(len(body) * share)]


def with_tag(body: bytes, code: int, value: int) -> bytes:
    """The first page's tag set to another value, as a hostile sender would."""
    with tifffile.TiffFile(io.BytesIO(body)) as file:
        tag = file.pages[0].tags[code]
        at, size = tag.valueoffset, tag.valuebytecount
    return body[:at] + value.to_bytes(size, "little") + body[at + size :]


WHOLE = tiff(random_crops(2, 40, 40), metadata=None)
OME = tiff(random_crops(2, 2, 8, 8), ome=True, metadata={"axes": "TCYX"})


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (shortened(WHOLE, 0.9), 422, "cut"),
        (shortened(WHOLE, 0.3), 422, "cut"),
        (WHOLE[:7], 422, "TIFF"),
        (b"II*\0" + b"\xff" * 60, 422, "TIFF"),
        (with_tag(with_tag(WHOLE, 256, 60_000), 257, 60_000), 413, "bytes"),
        (with_tag(tiff(random_crops(1, 8, 8), compression="zlib", metadata=None), 257, 100), 422, "TIFF"),
        (tiff(random_crops(3, 8, 8, dtype="uint8"), compression="jpeg"), 422, "compression 7"),
        (tiff(random_crops(8, 8, 3, dtype="uint8"), photometric="rgb"), 422, "grey plane"),
        (tiff(random_crops(1, 8, 8) > 100), 422, "type"),
        (tiff(random_crops(1, 8, 8, dtype="complex64")), 422, "complex64"),
        (tiff(random_crops(1, 8, 8), photometric="miniswhite"), 422, "inverted"),
        (tiff(np.full((2, 8, 8), np.nan, np.float32)), 422, "crop 0 holds NaN"),
        (tiff(random_crops(17, 1, 4, 4)), 413, "17 crops, at most 16"),
        (tiff(random_crops(9, 4, 4), metadata=None), 422, "9 channels"),
        (OME.replace(b'SizeT="2"', b'SizeT="3"'), 422, "4 pages, its metadata declares"),
        (OME.replace(b'IFD="0"', b'IFD="1"'), 422, "another order"),
    ],
)  # fmt: skip
def test_a_tiff_that_is_no_crop_is_refused_with_the_reason(body, status, reason):
    error = refused(body)
    assert (error.status, reason in error.detail) == (status, True), error.detail


def test_ome_metadata_with_entities_is_refused_before_it_is_parsed():
    text = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><OME><Pixels/>&b;</OME>'
    assert "entities" in refused(tiff(random_crops(1, 8, 8), description=text, metadata=None)).detail


def test_pages_of_different_sizes_are_no_crop():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(random_crops(8, 8), metadata=None)
        writer.write(random_crops(4, 4), metadata=None)
    assert "one size" in refused(stream.getvalue()).detail


@pytest.mark.parametrize("compression", ["zlib", "lzw", "zstd", "packbits"])
def test_a_tiff_bomb_ends_at_its_header(compression):
    body = tiff(np.zeros((1, 3000, 3000), np.uint8), compression=compression, metadata=None)
    tracemalloc.start()
    try:
        assert refused(body).status == 413
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body) + 2_000_000
    finally:
        tracemalloc.stop()


def stream_of(columns, schema=None, options=None, n_batches=1) -> bytes:
    table = pa.table(columns, schema=schema)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        for _ in range(n_batches):
            writer.write_table(table)
    return sink.getvalue()


def columns_of(images, channels=None, pixels_type=None):
    columns = {
        "pixels": pa.array([image.tobytes() for image in images], pixels_type or pa.binary()),
        "shape": pa.array([list(image.shape) for image in images], pa.list_(pa.int32())),
        "dtype": pa.array([image.dtype.name for image in images], pa.string()),
    }
    return columns | ({} if channels is None else {"channels": pa.array(channels, pa.list_(pa.string()))})


def test_the_rows_of_an_arrow_stream_may_differ_in_channels_size_and_type():
    images = [random_crops(2, 8, 8), random_crops(3, 8, 8, dtype="uint8"), random_crops(1, 5, 7, dtype="float32")]
    channels = [["DNA", "ER"], ["DNA", "ER", "RNA"], None]
    decoded = decode_crops(stream_of(columns_of(images, channels)), BUDGET)
    for image, expected in zip(decoded.images, images, strict=True):
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == expected.dtype
        assert image.flags.aligned
    assert decoded.channels == (("DNA", "ER"), ("DNA", "ER", "RNA"), ())


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary(2 * 3 * 8 * 8)])
def test_an_arrow_stream_of_several_batches_and_another_binary_type(kind):
    image = random_crops(3, 8, 8)
    decoded = decode_crops(stream_of(columns_of([image, image + 1], pixels_type=kind), n_batches=3), BUDGET)
    np.testing.assert_array_equal(decoded.images, [image, image + 1] * 3)


IMAGE = random_crops(2, 8, 8)
COLUMNS = columns_of([IMAGE])
STREAM = stream_of(COLUMNS)


def changed(**columns) -> bytes:
    return stream_of(COLUMNS | columns)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (STREAM[:-8], 422, "end mark"),
        (shortened(STREAM, 0.5), 422, "end mark"),
        (shortened(STREAM, 0.5) + b"\xff\xff\xff\xff\0\0\0\0", 422, "Arrow stream"),
        (b"\xff\xff\xff\xff" + b"\x40\0\0\0" + b"\xfe" * 64 + b"\xff\xff\xff\xff\0\0\0\0", 422, "Arrow stream"),
        (stream_of(COLUMNS, options=pa.ipc.IpcWriteOptions(compression="zstd")), 422, "compressed"),
        (stream_of(COLUMNS, options=pa.ipc.IpcWriteOptions(compression="lz4")), 422, "compressed"),
        (changed(dtype=pa.array(["uint16"]).dictionary_encode()), 422, "columns pixels"),
        (changed(more=[1]), 422, "more (int64)"),
        (stream_of({"pixels": [b""]}), 422, "pixels (binary)"),
        (changed(pixels=[IMAGE.tolist()]), 422, "columns pixels"),
        (changed(shape=pa.array([[2, 8]])), 422, "three edges"),
        (changed(shape=pa.array([[2, -8, -8]])), 422, "three edges"),
        (changed(shape=pa.array([[2, 0, 8]])), 422, "three edges"),
        (changed(shape=pa.array([[2, 8, None]])), 422, "three edges"),
        (changed(shape=pa.array([None], pa.list_(pa.int32()))), 422, "null shape"),
        (changed(shape=pa.array([[1, 100_000, 100_000]], pa.list_(pa.int32()))), 413, "40,000,000,000 bytes"),
        (changed(shape=pa.array([[2**31 - 1] * 3], pa.list_(pa.int32()))), 422, "channels in each crop"),
        (changed(shape=pa.array([[2, 8, 9]])), 422, "288 bytes, but holds 256"),
        (changed(dtype=["object"]), 422, "declares the type 'object'"),
        (changed(dtype=["complex64"]), 422, "declares the type"),
        (changed(dtype=["u2,O"]), 422, "declares the type"),
        (changed(channels=[["DNA", None]]), 422, "without a name"),
        (changed(channels=[["DNA"] * 9]), 422, "9 channels"),
        (stream_of(columns_of([random_crops(9, 2, 2)])), 422, "9 channels"),
        (stream_of(columns_of([IMAGE] * 17)), 413, "17 crops, at most 16"),
        (stream_of(columns_of([IMAGE] * 6), n_batches=3), 413, "18 crops, at most 16"),
        (stream_of(columns_of([random_crops(2, 256, 256)] * 3)), 413, "first 3 rows"),
        (stream_of(columns_of([])), 422, "no rows"),
        (stream_of(columns_of([IMAGE, np.full((1, 2, 2), np.inf)])), 422, "crop 1 holds NaN"),
    ],
)  # fmt: skip
def test_an_arrow_stream_that_is_no_crop_is_refused_with_the_reason(body, status, reason):
    error = refused(body)
    assert (error.status, reason in error.detail) == (status, True), error.detail


def test_extension_types_of_an_arrow_stream_are_not_honoured():
    kind = pa.opaque(pa.binary(), "pixels", "somebody")
    columns = COLUMNS | {"pixels": pa.ExtensionArray.from_storage(kind, COLUMNS["pixels"])}
    assert "Expected columns pixels" in refused(stream_of(columns)).detail
    fields = [pa.field(name, array.type) for name, array in COLUMNS.items()]
    unknown = pa.schema([fields[0].with_metadata({"ARROW:extension:name": "nobody.knows"}), *fields[1:]])
    assert "Expected columns pixels" in refused(stream_of(COLUMNS, schema=unknown)).detail


def test_no_change_of_one_byte_of_an_arrow_stream_or_a_tiff_does_anything_but_be_read_or_refused():
    rng = np.random.default_rng(0)
    for whole in (STREAM, stream_of(columns_of([IMAGE], [["DNA", "ER"]])), OME, tiff(random_crops(2, 8, 8))):
        for _ in range(300):
            body = bytearray(whole)
            body[rng.integers(4, len(body))] = rng.integers(256)
            with suppress(ServingError):
                decoded = decode_crops(bytes(body), BUDGET)
                assert sum(image.nbytes for image in decoded.images) <= 2 * BUDGET.max_decoded_bytes


@pytest.mark.parametrize(
    "body",
    [npy(np.ones((1, 1, 1, 1))), tiff(np.ones((1, 1, 1), np.uint8)), stream_of(columns_of([np.ones((1, 1, 1))]))],
)
def test_a_crop_of_one_pixel_is_a_crop(body):
    (image,) = decode_crops(body, BUDGET).images
    assert image.shape == (1, 1, 1)


def test_headers_of_requests_in_several_threads_are_parsed_one_at_a_time(monkeypatch):
    """Python 3.11 can fail where two threads are in `ast.literal_eval` at once."""
    parse, within, most = np.lib.format.read_array_header_1_0, [], []

    def watched(*arguments, **options):
        within.append(None)
        most.append(len(within))
        time.sleep(0.002)
        within.pop()
        return parse(*arguments, **options)

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", watched)
    stream = io.BytesIO()
    np.save(stream, np.ones((1, 2, 8, 8), np.uint16))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: _read_npy(stream.getvalue(), "pixels", BUDGET), range(12)))
    assert max(most) == 1
