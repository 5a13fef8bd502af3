from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr

import cytolake
import cytolake.catalog
from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.curation import CurateConfig, Curation, curate
from cytolake.catalog.ingest import IngestConfig, PlateRows, commit_plate
from cytolake.catalog.plate_content import content_hash
from cytolake.catalog.site_rows import read_site_rows
from cytolake.packs import build
from cytolake.packs.build import PackConfig, build_pack
from cytolake.packs.pack import Pack, PackError, array_path, open_array, read_rows
from cytolake.screens.plate import Plate, SiteImage

SIZE = 16
CONFIG = PackConfig(sites_per_task=2)
PLATES = {  # dtype, channels
    "counts16": ("uint16", ("DNA", "ER")),
    "counts8": ("uint8", ("DNA", "Mito")),
    "fractions": ("float32", ("DNA",)),
    "wide": ("uint16", ("DNA", "ER", "RNA", "AGP", "Mito")),
}


def write_plate(folder: Path, name: str) -> Plate:
    """Two wells of two sites of 40 x 56 pixels, one TIFF for each channel."""
    dtype, channels = PLATES[name]
    rng = np.random.default_rng(len(name))
    sites = []
    for well in ("A01", "B02"):
        for site in ("1", "2"):
            paths = []
            for channel in channels:
                path = folder / name / f"{well}_{site}_{channel}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                top = 1.0 if dtype == "float32" else np.iinfo(dtype).max
                tifffile.imwrite(path, (top * rng.random((40, 56))).astype(dtype))
                paths.append(str(path))
            sites.append(
                SiteImage(
                    screen="S",
                    plate=name,
                    well=well,
                    site=site,
                    channels=channels,
                    reader="files",
                    image_paths=tuple(paths),
                )
            )
    return Plate(
        screen="S",
        plate=name,
        batch="B",
        source=str(folder / name),
        reader="files",
        channels=channels,
        sites=tuple(sites),
    )


def ingest(catalog: Catalog, plate: Plate, crop_size: int = SIZE) -> None:
    """Ingest without Ray."""
    config = IngestConfig(crop_size=crop_size)
    gathered = PlateRows()
    for site in plate.sites:
        rows = read_site_rows(site, plate.batch, config.crop_size)
        for name in ("sites", "crops", "qc_metrics"):
            struct = pa.array(getattr(rows, name), pa.struct(list(table_contract(name).schema)))
            getattr(gathered, name).append(pa.Table.from_struct_array(struct))
    commit_plate(catalog, plate, gathered, content_hash(plate), config)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = cytolake.catalog.open(tmp_path / "catalog", create=True)
    for name in PLATES:
        ingest(catalog, write_plate(tmp_path / "screens", name))
    return catalog


@pytest.fixture
def curation(catalog: Catalog, tmp_path: Path) -> Curation:
    """Every crop but those in the first column of each site."""
    (tmp_path / "some.yaml").write_text("qc:\nwhere: x > 8\n")
    return curate(catalog, CurateConfig(name="some", folder=str(tmp_path)))


@pytest.fixture
def pack(catalog: Catalog, curation: Curation, local_ray: None) -> Pack:
    return build_pack(catalog, curation.curation_id, CONFIG)


def kept_ids(catalog: Catalog, curation: Curation) -> list[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    ids: list[str] = rows.column("crop_id").to_pylist()
    return ids


def test_a_pack_has_each_kept_crop_once_with_exactly_its_sources_pixels(catalog, curation, pack):
    ids = pack.index.column("crop_id").to_pylist()
    assert 0 < len(ids) < curation.n_considered
    assert sorted(ids) == sorted(kept_ids(catalog, curation))
    found, expected = pack.read(np.arange(pack.n_crops)), catalog.crop_pixels(ids)
    channels = catalog.channels_of(ids)
    for row in range(pack.n_crops):
        assert found[row].shape == (len(channels[row]), SIZE, SIZE)
        np.testing.assert_array_equal(found[row], expected[row])
        assert pack.channels(row) == channels[row]
    assert pack.crop_size == SIZE
    assert pack.curation_id == curation.curation_id


def test_a_group_has_the_smallest_type_that_loses_nothing(pack):
    groups = json.loads((pack.path / "pack.json").read_text())["groups"]
    assert {group["n_channels"]: group["dtype"] for group in groups} == {1: "float32", 2: "uint16", 5: "uint16"}


def test_arrays_are_sharded_zarr_v3_that_plain_zarr_reads_alike(pack):
    for group in (1, 2, 5):
        array = zarr.open_array(str(array_path(pack.path, group)), mode="r")
        assert array.metadata.zarr_format == 3
        assert array.shards is not None
        of_group = pack.index.filter(pa.compute.equal(pack.index.column("group"), group))
        rows = np.flatnonzero(pack.index.column("group").to_numpy() == group)
        assert of_group.column("row").to_pylist() == list(range(len(rows)))
        np.testing.assert_array_equal(array[:], np.stack(pack.read(rows)))


def test_rows_come_in_the_order_asked_for_and_may_repeat(pack):
    rows = np.random.default_rng(0).integers(0, pack.n_crops, 50)
    whole = pack.read(range(pack.n_crops))
    for row, crop in zip(rows, pack.read(rows), strict=True):
        np.testing.assert_array_equal(crop, whole[row])
    assert pack.read([]) == []


@pytest.mark.parametrize("rows", [[-1], [0, 10**6]])
def test_a_row_that_is_not_there_is_refused(pack, rows):
    with pytest.raises(PackError, match=f"expected 0 to {pack.n_crops - 1}"):
        pack.read(rows)


def test_scattered_rows_of_several_shards_are_what_zarr_itself_reads(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65535, (50, 2, 8, 8)).astype(np.uint16)
    array = zarr.create_array(
        str(array_path(tmp_path, 2)), shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 2, 8, 8), shards=(16, 2, 8, 8)
    )
    array[:] = pixels
    rows = np.random.default_rng(1).integers(0, 50, 70)
    np.testing.assert_array_equal(read_rows(open_array(tmp_path, 2), rows), pixels[rows])


def test_the_order_is_shuffled_by_the_seed(catalog, curation, pack):
    other = build_pack(catalog, curation.curation_id, PackConfig(shuffle_seed=1))
    ours, theirs = (each.index.column("crop_id").to_pylist() for each in (pack, other))
    assert ours != theirs
    assert sorted(ours) == sorted(theirs)
    assert ours != sorted(ours)
    assert other.pack_id != pack.pack_id


def test_shards_and_tasks_do_not_change_what_is_in_a_pack(catalog, curation, pack, monkeypatch):
    first = pack.read(range(pack.n_crops))
    index = pack.index
    shutil.rmtree(pack.path)
    group = build._Group
    monkeypatch.setattr(build, "_Group", lambda **how: group(**how | {"rows_per_shard": 3}))
    again = build_pack(catalog, curation.curation_id, PackConfig(sites_per_task=1))
    assert again.pack_id == pack.pack_id
    assert again.index.equals(index)
    assert len(list(array_path(again.path, 2).rglob("c/*/0/0/0"))) > 1
    for ours, theirs in zip(again.read(range(again.n_crops)), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_pack_that_is_there_is_opened_without_its_sources(catalog, curation, pack, tmp_path):
    shutil.rmtree(tmp_path / "screens")
    assert build_pack(catalog, curation.curation_id, CONFIG).index.equals(pack.index)


def test_a_pack_travels_to_other_processes(pack):
    pack.read([0])
    travelled = pickle.loads(pickle.dumps(pack))
    np.testing.assert_array_equal(travelled.read([3])[0], pack.read([3])[0])


def test_a_folder_that_is_no_pack_says_so(pack, tmp_path):
    with pytest.raises(PackError, match=r"found no pack\.json"):
        Pack.open(tmp_path)
    pq.write_table(pack.index.slice(1), pack.path / "crops.parquet")
    with pytest.raises(PackError, match="changed by hand"):
        Pack.open(pack.path)


def test_an_unknown_curation_is_told_with_those_that_are_there(catalog, curation):
    with pytest.raises(PackError, match=f"curation nothing: keeps no crop .* There are: {curation.curation_id}"):
        build_pack(catalog, "nothing", CONFIG)


def test_crops_of_several_sizes_are_refused(tmp_path):
    catalog = cytolake.catalog.open(tmp_path / "catalog", create=True)
    ingest(catalog, write_plate(tmp_path / "screens", "counts8"))
    ingest(catalog, write_plate(tmp_path / "screens", "counts16"), crop_size=SIZE + 1)
    (tmp_path / "all.yaml").write_text("qc:\n")
    curation = curate(catalog, CurateConfig(name="all", folder=str(tmp_path)))
    with pytest.raises(PackError, match=r"crops of 16, 17 px; expected one size.*where: size = 16"):
        build_pack(catalog, curation.curation_id, CONFIG)


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("damage", ["truncated", "other type"])
def test_a_source_that_changed_since_the_ingest_is_named_and_leaves_no_pack(catalog, curation, tmp_path, damage):
    victim = tmp_path / "screens" / "counts16" / "B02_2_ER.tif"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:900])
    else:
        for path in victim.parent.glob("B02_2_*.tif"):
            tifffile.imwrite(path, np.zeros((40, 56), np.uint8))
    with pytest.raises(PackError, match=r"(?s)plate counts16.*well B02.*found.*expected.*ingest") as caught:
        build_pack(catalog, curation.curation_id, CONFIG)
    assert "Traceback" not in str(caught.value)
    assert list((catalog.root / "packs").iterdir()) == []


@pytest.mark.usefixtures("local_ray")
def test_a_build_that_fails_at_its_end_leaves_no_pack(catalog, curation, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(build.pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        build_pack(catalog, curation.curation_id, CONFIG)
    assert list((catalog.root / "packs").iterdir()) == []


KILLED = """
import sys, time
import cytolake.catalog
from cytolake.line.session import RayConfig, ray_session
from cytolake.packs.build import PackConfig, build_pack

def wait(what, done, total):
    print(what, flush=True)
    if what == "shards written":
        time.sleep(600)

with ray_session(RayConfig(cpus=1, object_store_mb=128)):
    build_pack(cytolake.catalog.open(sys.argv[1]), sys.argv[2], PackConfig(), wait)
"""


@pytest.mark.slow
def test_a_killed_build_shows_no_pack_and_the_next_one_clears_up(catalog, curation, local_ray):
    source_root = str(Path(cytolake.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": source_root}
    builder = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(catalog.root), curation.curation_id],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert builder.stdout is not None
        deadline = time.monotonic() + 120
        while "shards written" not in builder.stdout.readline():
            assert time.monotonic() < deadline
            assert builder.poll() is None
    finally:
        builder.send_signal(signal.SIGKILL)
        builder.wait()
        builder.stdout.close()
    left = list((catalog.root / "packs").iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".building-")
    pack = build_pack(catalog, curation.curation_id, CONFIG)
    assert [path.name for path in (catalog.root / "packs").iterdir()] == [pack.pack_id]


@pytest.mark.parametrize(
    "wrong", [{"shuffle_seed": -1}, {"shard_mb": 0}, {"compression_level": 23}, {"sites_per_task": 0}]
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"PackConfig.{next(iter(wrong))}"):
        PackConfig(**wrong)
