from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from tests.packs.small_pack import ROWS_PER_SHARD, make_pixels, write_array
from zarr.codecs import ZstdCodec

from cytolake.packs import shards
from cytolake.packs.shards import PackError, ShardedCrops, array_path, create_array, shard_path, write_shard

COMPRESSIONS = ("none", "lz4", "zstd")


@pytest.fixture(params=COMPRESSIONS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A folder with one array of 50 crops in four shards, the last one short; and its pixels."""
    pixels = make_pixels()
    write_array(tmp_path, pixels, request.param)
    return tmp_path, pixels


def opened(folder: Path) -> ShardedCrops:
    return ShardedCrops(folder, 2, {})


def shard(folder: Path, number: int = 1) -> Path:
    return shard_path(array_path(folder, 2), number)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def test_scattered_rows_come_in_the_given_order_and_may_repeat(written):
    folder, pixels = written
    rows = np.random.default_rng(1).integers(0, 50, 70)
    crops = opened(folder)
    np.testing.assert_array_equal(crops.read(rows), pixels[rows])
    np.testing.assert_array_equal(crops.read(np.arange(50)), pixels)
    assert crops.read(rows[:0]).shape == (0, *pixels.shape[1:])


def test_plain_zarr_reads_what_is_written_here(written):
    folder, pixels = written
    array = zarr.open_array(str(array_path(folder, 2)), mode="r")
    assert array.shards == (ROWS_PER_SHARD, *pixels.shape[1:])
    assert array.chunks == (1, *pixels.shape[1:])
    np.testing.assert_array_equal(array[:], pixels)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
@pytest.mark.parametrize("compressors", [None, ZstdCodec(level=1)])
def test_what_zarr_writes_is_read_here_with_the_crops_of_zeros_that_it_leaves_out(tmp_path, dtype, compressors):
    pixels = make_pixels(dtype=dtype)
    pixels[[3, 4, 17, 49]] = 0
    array = zarr.create_array(
        str(array_path(tmp_path, 2)),
        shape=pixels.shape,
        dtype=dtype,
        chunks=(1, 2, 8, 8),
        shards=(16, 2, 8, 8),
        compressors=compressors,
    )
    array[:] = pixels
    rows = np.random.default_rng(1).permutation(50)
    np.testing.assert_array_equal(opened(tmp_path).read(rows), pixels[rows])


def test_rows_go_where_they_are_put(written):
    folder, pixels = written
    crops, out = opened(folder), np.full((3, 2, 8, 8), 7, np.uint16)
    assert crops.read(np.array([40, 0, 20]), out) is out
    np.testing.assert_array_equal(out, pixels[[40, 0, 20]])
    for wrong in (out[:2], out.astype(np.uint8), np.empty((2, 8, 8, 3), np.uint16).T):
        with pytest.raises(ValueError, match=r"expected uint16 \(3, 2, 8, 8\), contiguous"):
            crops.read(np.array([40, 0, 20]), wrong)


def test_crops_that_the_system_does_not_hold_in_memory_are_read_from_the_disk(written):
    folder, pixels = written
    for number in range(4):
        with shard(folder, number).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows = np.random.default_rng(2).permutation(50)
    np.testing.assert_array_equal(opened(folder).read(rows), pixels[rows])


def test_a_system_that_cannot_read_without_waiting_gives_the_same(written, monkeypatch):
    monkeypatch.setattr(shards, "read_cached", lambda descriptors, *_: np.full(len(descriptors), -1))
    folder, pixels = written
    rows = np.random.default_rng(3).permutation(50)
    np.testing.assert_array_equal(opened(folder).read(rows), pixels[rows])
    np.testing.assert_array_equal(opened(folder).read(np.arange(50)), pixels)


def test_a_run_longer_than_one_call_may_have_parts_is_read_whole(tmp_path):
    pixels = make_pixels(2500, size=2)
    create_array(tmp_path, (2500, 2, 2, 2), "uint16", 2500)
    write_shard(tmp_path, 2, 0, pixels)
    np.testing.assert_array_equal(opened(tmp_path).read(np.arange(2500)), pixels)


def test_threads_that_share_an_array_read_what_one_alone_reads(written, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS_MAX", 2)
    folder, pixels = written
    crops = opened(folder)
    orders = [np.random.default_rng(seed).permutation(50) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        for rows, found in zip(orders, threads.map(crops.read, orders), strict=True):
            np.testing.assert_array_equal(found, pixels[rows])


def test_few_shards_are_open_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "OPEN_SHARDS_MAX", 2)
    write_array(tmp_path, make_pixels())
    crops = opened(tmp_path)
    for row in (0, 20, 40, 49, 5):
        crops.read(np.array([row]))
    files = [os.fstat(n).st_ino for n in range(3, 1000) if _is_open(n)]
    of_shards = {shard(tmp_path, number).stat().st_ino for number in range(4)}
    assert sum(inode in of_shards for inode in files) == 2


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("row", [16, 31])
def test_a_missing_shard_is_an_error_and_never_zeros(written, row):
    folder, _ = written
    shard(folder).unlink()
    with pytest.raises(PackError, match=r"c/1/0/0/0: .*is missing.*rows 16 to 31 of .* 2 channels.*`cytolake curate`"):
        opened(folder).read(np.array([0, row]))


@pytest.mark.parametrize("left", [0, 3, 200, -1])
def test_a_shard_that_is_cut_short_is_named_with_its_rows(written, left):
    folder, _ = written
    content = shard(folder, 3).read_bytes()
    shard(folder, 3).write_bytes(content[:left])
    with pytest.raises(PackError, match=r"c/3/0/0/0: .*cut short or damaged.*rows 48 to 49"):
        opened(folder).read(np.array([48]))


def test_a_shard_of_another_size_than_its_checksum_says_is_named(written):
    folder, _ = written
    name = shard(folder).relative_to(folder).as_posix()
    size = shard(folder).stat().st_size
    with pytest.raises(PackError, match=rf"c/1/0/0/0: .*has {size} bytes, expected {size + 1}"):
        ShardedCrops(folder, 2, {name: size + 1}).read(np.array([20]))


def test_a_damaged_index_is_named(written):
    folder, _ = written
    flip(shard(folder), -10)
    with pytest.raises(PackError, match=r"c/1/0/0/0: .*damaged.*rows 16 to 31"):
        opened(folder).read(np.array([20]))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_any_flipped_bit_of_a_compressed_crop_is_found_when_it_is_read(tmp_path, compression):
    write_array(tmp_path, make_pixels(), compression)
    whole = shard(tmp_path).read_bytes()
    for position in range(0, 200, 9):
        shard(tmp_path).write_bytes(whole)
        flip(shard(tmp_path), position)
        with pytest.raises(PackError, match=r"c/1/0/0/0: .*damaged.*rows 16 to 31"):
            opened(tmp_path).read(np.arange(16, 32))


def test_a_shard_that_is_cut_while_it_is_open_is_named(tmp_path):
    write_array(tmp_path, make_pixels())
    crops = opened(tmp_path)
    crops.read(np.array([16]))
    os.truncate(shard(tmp_path), 300)
    with pytest.raises(PackError, match=r"c/1/0/0/0: .*cannot be read.*rows 16 to 31"):
        crops.read(np.array([0, 20]))


def test_a_missing_array_and_one_laid_out_otherwise_are_refused(tmp_path):
    with pytest.raises(PackError, match=r"crops_c2\.zarr: the pack's array is missing"):
        opened(tmp_path)
    write_array(tmp_path, make_pixels())
    file = array_path(tmp_path, 2) / "zarr.json"
    described = json.loads(file.read_text())
    described["codecs"][0]["configuration"]["codecs"].append({"name": "gzip", "configuration": {"level": 1}})
    file.write_text(json.dumps(described))
    with pytest.raises(PackError, match=r"found codecs bytes, gzip.*expected one crop a chunk"):
        opened(tmp_path)
    file.write_text("{}")
    with pytest.raises(PackError, match=r"zarr\.json does not describe an array of a pack"):
        opened(tmp_path)
