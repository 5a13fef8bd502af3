from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.packs.small_pack import STAINS, make_pixels

from cytolake.packs.checksums import write_checksums
from cytolake.packs.pack import INDEX_FILE, INDEX_SCHEMA, Pack, PackError

GROUPS = np.array([2, 2, 3, 2, 3] * 10)
PIXELS = {2: make_pixels(30, 2), 3: make_pixels(20, 3)}
EXPECTED = [PIXELS[group][int((GROUPS[:i] == group).sum())] for i, group in enumerate(GROUPS.tolist())]


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
def test_rows_of_several_channel_counts_come_in_the_given_order(pack_folder, compression):
    pack = Pack.open(pack_folder(compression))
    rows = np.random.default_rng(0).integers(0, 50, 80)
    for row, crop in zip(rows.tolist(), pack.read(rows), strict=True):
        np.testing.assert_array_equal(crop, EXPECTED[row])
        assert pack.channels(row) == STAINS[: len(crop)]
    assert pack.read([]) == []


def test_a_stack_is_what_read_gives_in_one_array(pack_folder):
    pack = Pack.open(pack_folder())
    rows = np.flatnonzero(GROUPS == 3)[::-1]
    out = np.empty((20, 3, 8, 8), np.uint16)
    assert pack.stack(rows, out) is out
    np.testing.assert_array_equal(out, np.stack(pack.read(rows)))
    with pytest.raises(PackError, match="3 crops with 2 and 3 channels"):
        pack.stack([0, 1, 2])
    with pytest.raises(PackError, match="0 crops with no channels"):
        pack.stack([])


def test_crops_are_found_by_their_ids_without_reading_a_pixel(pack_folder):
    pack = Pack.open(pack_folder())
    for array in pack.path.glob("crops_c*.zarr"):
        shutil.rmtree(array)
    wanted = np.random.default_rng(0).integers(0, 50, 200)
    np.testing.assert_array_equal(pack.rows_of([f"crop{i}" for i in wanted]), wanted)
    assert pack.rows_of([]).tolist() == []


def test_one_crop_by_its_id(pack_folder):
    pack = Pack.open(pack_folder())
    for row in (0, 17, 49):
        np.testing.assert_array_equal(pack.crop(f"crop{row}"), EXPECTED[row])


@pytest.mark.parametrize("unknown", ["crop50", "", "crop", "xcrop1", "crop1 "])
def test_a_crop_that_was_left_out_is_named(pack_folder, unknown):
    with pytest.raises(PackError, match=f"no crop {unknown} among its 50"):
        Pack.open(pack_folder()).rows_of(["crop3", unknown])


def test_ids_that_end_alike_are_distinguished(pack_folder):
    folder = pack_folder()
    index = pq.read_table(folder / INDEX_FILE)
    ids = [f"{i:04d}-the-same-end" for i in np.random.default_rng(0).permutation(50)]
    pq.write_table(index.set_column(0, INDEX_SCHEMA.field(0), pa.array(ids)), folder / INDEX_FILE)
    pack = Pack.open(folder)
    assert pack.rows_of(ids[::-1]).tolist() == list(range(49, -1, -1))
    with pytest.raises(PackError, match="no crop 0099-the-same-end"):
        pack.rows_of(["0099-the-same-end"])


def test_a_pack_in_use_travels_to_another_process_without_its_open_files(pack_folder):
    pack = Pack.open(pack_folder())
    before = pickle.dumps(pack)
    pack.read([0])
    pack.rows_of(["crop0"])
    pack.verify()
    after = pickle.dumps(pack)
    assert len(after) == len(before)
    np.testing.assert_array_equal(pickle.loads(after).crop("crop7"), EXPECTED[7])


def test_a_pack_of_8_bits_gives_counts_by_plate_and_stain(pack_folder):
    scales = [
        {"plate_id": f"plate{p}", "channel": stain, "offset": 100.0 * p, "step": 2.0 + c}
        for p in range(2)
        for c, stain in enumerate(STAINS)
    ]
    pack = Pack.open(pack_folder(pixels="uint8", scales=scales))
    for row in (2, 30):
        steps = np.array([2.0, 3.0, 4.0])[: GROUPS[row]].reshape(-1, 1, 1)
        found = pack.counts([row])[0]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, EXPECTED[row] * steps + 100 * (row // 25))
    assert pack.scale("plate1", "ER").step == 3
    with pytest.raises(PackError, match="no scale for plate plate2, channel ER"):
        pack.scale("plate2", "ER")


def test_a_native_pack_gives_its_pixels_as_counts(pack_folder):
    pack = Pack.open(pack_folder())
    np.testing.assert_array_equal(pack.counts([4])[0], EXPECTED[4])
    assert (pack.pixels, pack.scale("any", "stain").step) == ("native", 1.0)


def test_a_pack_of_format_1_is_read_and_says_that_it_has_no_checksums(pack_folder):
    folder = pack_folder("zstd", format=1)
    (folder / "checksums.json").unlink()
    pack = Pack.open(folder)
    np.testing.assert_array_equal(pack.crop("crop11"), EXPECTED[11])
    (problem,) = pack.verify()
    assert "no checksums.json" in problem
    assert "`cytolake curate`" in problem


def test_a_format_that_is_not_known_is_refused_with_what_to_do(pack_folder):
    with pytest.raises(PackError, match=r"pack of format 9, this cytolake reads formats 1 and 2.*`cytolake curate`"):
        Pack.open(pack_folder(format=9))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("pack.json", b"{", "not JSON"),
        ("pack.json", b'{"format": 2}', "lacks pack_id"),
        ("crops.parquet", b"PAR1 no", "cannot be read"),
        ("crops.parquet", None, "index is missing"),
        ("pack.json", None, r"found no pack\.json"),
    ],
)
def test_a_folder_that_is_damaged_is_refused_with_the_file_that_is(pack_folder, file, damage, said):
    folder = pack_folder()
    if damage is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(damage)
    with pytest.raises(PackError, match=said):
        Pack.open(folder)


def test_checksums_that_are_none_are_refused(pack_folder):
    folder = pack_folder()
    (folder / "checksums.json").write_text("{}")
    with pytest.raises(PackError, match=r"checksums\.json: these are no checksums"):
        Pack.open(folder).read([0])
    write_checksums(folder)
    assert json.loads((folder / "checksums.json").read_text())["files"]
    assert Pack.open(folder).verify() == []
