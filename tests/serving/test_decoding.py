from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from cytolake.serving.decoding import DecodingBudget, decode_crops
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
    np.testing.assert_array_equal(decoded.pixels, np.load(io.BytesIO(npy(crops))))
    assert decoded.pixels.dtype == crops.dtype.newbyteorder("=")
    assert decoded.pixels.flags.c_contiguous
    assert decoded.channels == ()


def test_one_crop_needs_no_crop_axis():
    crop = np.ones((3, 4, 4), np.uint16)
    np.testing.assert_array_equal(decode_crops(npy(crop), BUDGET).pixels, crop[None])


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_carries_its_channel_names(compressed):
    crops = np.random.default_rng(0).integers(0, 999, (2, 2, 8, 8)).astype(np.uint16)
    decoded = decode_crops(npz(compressed, crops=crops, channels=np.array(["DNA", "ER"])), BUDGET)
    np.testing.assert_array_equal(decoded.pixels, crops)
    assert decoded.channels == ("DNA", "ER")


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
    ("body", "status", "told"),
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
def test_what_is_no_crop_is_refused_with_the_reason(body, status, told):
    error = refused(body)
    assert (error.status, told in error.detail) == (status, True), error.detail


def test_a_zip_bomb_ends_at_the_budget():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("crops.npy", b"\0" * 64 * 2**20)
    assert len(stream.getvalue()) < 100_000
    assert refused(stream.getvalue()).status == 413


def test_a_damaged_archive_is_told():
    body = bytearray(npz(True, crops=np.random.default_rng(0).integers(0, 9, (4, 2, 16, 16)).astype(np.uint8)))
    body[len(body) // 3] ^= 0xFF
    assert refused(bytes(body)).status == 422
