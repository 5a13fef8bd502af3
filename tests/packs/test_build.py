from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit

import cytolake
import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.catalog.corrections import annotate, rename, replace_plate
from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.curation.curate import CurateConfig, Curation, curate
from cytolake.packs import build, pack_plan
from cytolake.packs.build import build_pack
from cytolake.packs.pack import Pack, PackError, array_path
from cytolake.packs.pack_plan import PackConfig
from cytolake.screens.plate import Plate, SiteImage

SIZE = 16
CONFIG = PackConfig(sites_per_task=2)
PLATES = {  # dtype, channels
    "counts16": ("uint16", ("DNA", "ER")),
    "counts8": ("uint8", ("DNA", "Mito")),
    "fractions": ("float32", ("DNA",)),
    "wide": ("uint16", ("DNA", "ER", "RNA", "AGP", "Mito")),
}


def write_plate(folder: Path, name: str, *, seed: int = 0) -> Plate:
    """Two wells of two sites of 40 x 56 pixels, one TIFF for each channel."""
    dtype, channels = PLATES[name]
    rng = np.random.default_rng([len(name), seed])
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
            place = {"screen": "S", "plate": name, "well": well, "site": site}
            sites.append(SiteImage(**place, channels=channels, reader="files", image_paths=tuple(paths)))
    return Plate(
        screen="S", plate=name, batch="B", source=str(folder / name), reader="files", channels=channels,
        sites=tuple(sites),
    )  # fmt: skip


def ingest(catalog: Catalog, plate: Plate, crop_size: int = SIZE) -> None:
    """Ingest without Ray."""
    commit(catalog, plate, IngestConfig(crop_size=crop_size))


@dataclass(frozen=True, slots=True)
class Made:
    """Built once: four plates, a catalog of them, a curation of every crop but those in the first column of each
    site, and its pack."""

    sources: Path
    catalog: Path
    curation: Curation
    pack_id: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    catalog = empty_catalog(folder / "catalog")
    for name in PLATES:
        ingest(catalog, write_plate(folder / "screens", name))
    (folder / "some.yaml").write_text("qc:\nwhere: x > 8\n")
    curation = curate(catalog, CurateConfig(name="some", folder=str(folder)))
    pack = build_pack(catalog, curation.curation_id, CONFIG)
    return Made(folder / "screens", folder / "catalog", curation, pack.pack_id)


@pytest.fixture
def catalog(made: Made, tmp_path: Path) -> Catalog:
    """A copy of this test alone, without a pack."""
    shutil.copytree(made.catalog, tmp_path / "catalog", ignore=shutil.ignore_patterns("packs"))
    return cytolake.catalog.open(tmp_path / "catalog")


@pytest.fixture
def curation(made: Made) -> Curation:
    return made.curation


@pytest.fixture
def pack(made: Made, catalog: Catalog) -> Pack:
    """A copy of this test alone."""
    return Pack.open(shutil.copytree(made.catalog / "packs" / made.pack_id, catalog.root / "packs" / made.pack_id))


@pytest.fixture
def built(made: Made) -> Pack:
    """The pack made once; read only."""
    return Pack.open(made.catalog / "packs" / made.pack_id)


@pytest.fixture
def sources(made: Made, tmp_path: Path) -> Iterator[Path]:
    """The plates, to be damaged."""
    shutil.copytree(made.sources, tmp_path / "kept")
    yield made.sources
    shutil.rmtree(made.sources, ignore_errors=True)
    shutil.copytree(tmp_path / "kept", made.sources)


def kept_ids(catalog: Catalog, curation: Curation) -> list[str]:
    rows = catalog.table("curations", where=f"curation_id = '{curation.curation_id}' AND is_kept")
    ids: list[str] = rows.column("crop_id").to_pylist()
    return ids


def test_a_pack_has_each_kept_crop_once_with_exactly_its_sources_pixels(made, curation, built):
    catalog, pack = cytolake.catalog.open(made.catalog), built
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


def test_a_group_has_the_smallest_type_that_loses_nothing(built):
    groups = json.loads((built.path / "pack.json").read_text())["groups"]
    assert {group["n_channels"]: group["dtype"] for group in groups} == {1: "float32", 2: "uint16", 5: "uint16"}


def test_arrays_are_sharded_zarr_v3_that_plain_zarr_reads_alike(built):
    for group in (1, 2, 5):
        array = zarr.open_array(str(array_path(built.path, group)), mode="r")
        assert array.metadata.zarr_format == 3
        assert array.shards is not None
        of_group = built.index.filter(pa.compute.equal(built.index.column("group"), group))
        rows = np.flatnonzero(built.index.column("group").to_numpy() == group)
        assert of_group.column("row").to_pylist() == list(range(len(rows)))
        np.testing.assert_array_equal(array[:], np.stack(built.read(rows)))


@pytest.mark.parametrize("rows", [[-1], [0, 10**6]])
def test_a_row_out_of_range_is_refused(built, rows):
    with pytest.raises(PackError, match=f"expected 0 to {built.n_crops - 1}"):
        built.read(rows)


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
    group = pack_plan.Group
    monkeypatch.setattr(pack_plan, "Group", lambda **how: group(**how | {"rows_per_shard": 3}))
    again = build_pack(catalog, curation.curation_id, PackConfig(sites_per_task=1))
    assert again.pack_id == pack.pack_id
    assert again.index.equals(index)
    assert len(list(array_path(again.path, 2).rglob("c/*/0/0/0"))) > 1
    for ours, theirs in zip(again.read(range(again.n_crops)), first, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_plates_can_be_left_out_of_a_pack_to_train_on(catalog, curation, pack):
    without = build_pack(
        catalog, curation.curation_id, PackConfig(sites_per_task=2, exclude_plates=("counts8", "S/wide"))
    )
    plates = {row["plate_id"]: row["plate"] for row in catalog.table("plates").to_pylist()}
    assert {plates[each] for each in without.index["plate_id"].to_pylist()} == {"counts16", "fractions"}
    left = [row for row in pack.index.to_pylist() if plates[row["plate_id"]] in ("counts16", "fractions")]
    assert set(without.index["crop_id"].to_pylist()) == {row["crop_id"] for row in left}
    assert without.pack_id != pack.pack_id
    again = build_pack(catalog, curation.curation_id, PackConfig(exclude_plates=("S/wide", "counts8")))
    assert again.pack_id == without.pack_id
    assert build_pack(catalog, curation.curation_id, CONFIG).pack_id == pack.pack_id
    for names, why in ((("P9",), "keeps no crop of them"), (tuple(PLATES), "no other plate is left")):
        with pytest.raises(PackError, match=why):
            build_pack(catalog, curation.curation_id, PackConfig(exclude_plates=names))


def test_a_pack_that_is_there_is_opened_without_its_sources(catalog, curation, pack, sources):
    shutil.rmtree(sources)
    assert build_pack(catalog, curation.curation_id, CONFIG).index.equals(pack.index)


def test_a_folder_that_is_no_pack_says_so(pack, tmp_path):
    with pytest.raises(PackError, match=r"found no pack\.json"):
        Pack.open(tmp_path)
    pq.write_table(pack.index.slice(1), pack.path / "crops.parquet")
    with pytest.raises(PackError, match="changed by hand"):
        Pack.open(pack.path)


def test_an_unknown_curation_is_refused_with_the_existing_ones(catalog, curation):
    with pytest.raises(PackError, match=f"curation nothing: keeps no crop .* There are: {curation.curation_id}"):
        build_pack(catalog, "nothing", CONFIG)


@pytest.mark.slow
def test_crops_of_several_sizes_are_refused(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    ingest(catalog, write_plate(tmp_path / "screens", "counts8"))
    ingest(catalog, write_plate(tmp_path / "screens", "counts16"), crop_size=SIZE + 1)
    (tmp_path / "all.yaml").write_text("qc:\n")
    curation = curate(catalog, CurateConfig(name="all", folder=str(tmp_path)))
    with pytest.raises(PackError, match=r"crops of 16, 17 px; expected one size.*where: size = 16"):
        build_pack(catalog, curation.curation_id, CONFIG)


@pytest.mark.parametrize("damage", ["truncated", "other type"])
def test_a_source_that_changed_since_the_ingest_is_named_and_leaves_no_pack(catalog, curation, sources, damage):
    victim = sources / "counts16" / "B02_2_ER.tif"
    if damage == "truncated":
        victim.write_bytes(victim.read_bytes()[:900])
    else:
        for path in victim.parent.glob("B02_2_*.tif"):
            tifffile.imwrite(path, np.zeros((40, 56), np.uint8))
    with pytest.raises(PackError, match=r"(?s)plate counts16.*well B02.*found.*expected.*ingest") as caught:
        build_pack(catalog, curation.curation_id, CONFIG)
    assert "Traceback" not in str(caught.value)
    assert list((catalog.root / "packs").iterdir()) == []


def test_a_build_that_fails_at_its_end_leaves_no_pack(catalog, curation, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(build.pq, "write_table", fail)
    with pytest.raises(
        PackError, match=r"packs: the pack could not be written \(Input/output error\).*Correct the folder"
    ):
        build_pack(catalog, curation.curation_id, CONFIG)
    assert list((catalog.root / "packs").iterdir()) == []


def test_a_pack_that_cannot_fit_is_refused_before_a_site_is_read(catalog, curation, monkeypatch, sources):
    monkeypatch.setattr(build.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**4))
    shutil.rmtree(sources)
    with pytest.raises(PackError, match=r"packs: 0\.00 GB free, the pack takes .* pack\.pixels=uint8"):
        build_pack(catalog, curation.curation_id, CONFIG)
    assert list((catalog.root / "packs").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 1.2])
def test_a_disk_that_fills_up_during_the_build_is_reported_and_leaves_nothing(catalog, curation, monkeypatch, share):
    """On a real file system too small for the scratch files, and on one too small for scratch files and arrays."""
    pixels = sum(
        group.n_crops * group.n_channels * SIZE**2 * np.dtype(group.dtype).itemsize
        for group in pack_plan.plan_pack(
            pack_plan.kept_crops(catalog, curation.curation_id, ()), CONFIG
        ).groups.values()
    )
    packs = catalog.root / "packs"
    packs.mkdir()
    size = f"size={int(share * pixels)}"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", packs], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        free = shutil.disk_usage(packs)
        monkeypatch.setattr(build, "_check_room", lambda *_: None)  # as if another process had filled it meanwhile
        with pytest.raises(
            PackError, match=r"could not be written \(No space left on device\).*GB are free.*Free space"
        ):
            build_pack(catalog, curation.curation_id, CONFIG)
        assert list(packs.iterdir()) == []
        assert shutil.disk_usage(packs) == free
    finally:
        subprocess.run(["umount", packs], check=True)


def within_the_range(counts: np.ndarray, pack: Pack, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of a crop cut off at the ends of what 8 bits hold of its plate and stains; and the steps, (C, 1, 1)."""
    plate_id = pack.index.column("plate_id")[row].as_py()
    scales = [pack.scale(plate_id, channel) for channel in pack.channels(row)]
    low = np.array([scale.offset for scale in scales]).reshape(-1, 1, 1)
    steps = np.array([scale.step for scale in scales]).reshape(-1, 1, 1)
    return np.clip(counts.astype(float), low, low + 255 * steps), steps


def test_a_pack_of_8_bits_gives_counts_back_to_half_a_step_of_their_plate_and_stain(catalog, curation):
    pack = build_pack(catalog, curation.curation_id, PackConfig(pixels="uint8", sites_per_task=2, compression="lz4"))
    rows = np.arange(pack.n_crops)
    ids = pack.index.column("crop_id").to_pylist()
    assert sorted(ids) == sorted(kept_ids(catalog, curation))
    plates = {row["plate_id"]: row["plate"] for row in catalog.table("plates").to_pylist()}
    n_saturated = n_pixels = 0
    for row, stored, found, source in zip(
        rows, pack.read(rows), pack.counts(rows), catalog.crop_pixels(ids), strict=True
    ):
        assert (stored.dtype, found.dtype) == (np.uint8, np.float32)
        expected, steps = within_the_range(source, pack, row)
        assert (np.abs(found - expected) <= steps / 2 + 1e-6 * np.abs(expected)).all()
        n_saturated, n_pixels = n_saturated + (expected != source).sum(), n_pixels + source.size
        if plates[pack.index.column("plate_id")[row].as_py()] == "counts8":
            np.testing.assert_array_equal(stored, source)
    assert n_saturated / n_pixels < 0.004  # 0.1 % at each end
    assert pack.verify() == []
    native = build_pack(catalog, curation.curation_id, CONFIG)
    assert native.pack_id != pack.pack_id
    assert native.index.column("crop_id").to_pylist() == ids


def test_counts_that_are_not_finite_are_refused_where_8_bits_must_hold_them(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    plate = write_plate(tmp_path / "screens", "fractions")
    ingest(catalog, plate)
    for path in (tmp_path / "screens" / "fractions").glob("B02_1_*.tif"):  # after it: an ingest leaves such crops out
        pixels = tifffile.imread(path)
        pixels[20, 20] = np.nan
        tifffile.imwrite(path, pixels)
    (tmp_path / "all.yaml").write_text("qc:\n")
    curation = curate(catalog, CurateConfig(name="all", folder=str(tmp_path)))
    with pytest.raises(PackError, match=r"plate fractions, well B02, site 1: counts that are not finite"):
        build_pack(catalog, curation.curation_id, PackConfig(pixels="uint8"))


def test_neither_layout_nor_ray_changes_the_content_of_a_pack(catalog, curation, local_ray, monkeypatch):
    found = []
    for compression in ("zstd", "none"):
        config = PackConfig(compression=compression, shard_mb=1, sites_per_task=3)
        pack = build_pack(catalog, curation.curation_id, config)
        assert pack.verify() == []
        found.append((pack.pack_id, pack.index, pack.read(range(pack.n_crops))))
        shutil.rmtree(pack.path)
        monkeypatch.delitem(sys.modules, "ray", raising=False)  # the second is built in this process
    assert found[0][0] == found[1][0]
    assert found[0][1].equals(found[1][1])
    for ours, theirs in zip(found[0][2], found[1][2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


KILLED = """
import sys, time
import cytolake.catalog
from cytolake.pipeline.session import RayConfig, ray_session
from cytolake.packs.build import build_pack
from cytolake.packs.pack_plan import PackConfig

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
    "wrong",
    [
        {"shuffle_seed": -1},
        {"shard_mb": 0},
        {"compression_level": 0},
        {"compression_level": 23, "compression": "zstd"},
        {"compression_level": 10, "compression": "lz4"},
        {"sites_per_task": 0},
        {"pixels": "uint16"},
        {"compression": "gzip"},
    ],
)
def test_a_config_out_of_range_is_refused(wrong):
    with pytest.raises(ValueError, match=f"PackConfig.{next(iter(wrong))}"):
        PackConfig(**wrong)


def test_other_labels_open_the_pack_that_is_there_and_other_pixels_do_not(tmp_path, ray_in_process):
    catalog = empty_catalog(tmp_path / "root")
    plate = write_plate(tmp_path / "source", "counts16")
    ingest(catalog, plate)
    (tmp_path / "all.yaml").write_text("about: all\nmin_foreground_share: 0\n")
    config = CurateConfig(name="all", folder=str(tmp_path))
    first = curate(catalog, config).curation_id
    pack = build_pack(catalog, first, CONFIG)
    (tmp_path / "map.csv").write_text("well,gene,batch\nA01,KRAS,later\n")
    annotate(catalog, "S/counts16", tmp_path / "map.csv")
    rename(catalog, "S/counts16", plate="new name")
    second = curate(catalog, config).curation_id
    assert second != first
    assert build_pack(catalog, second, CONFIG).pack_id == pack.pack_id
    again = write_plate(tmp_path / "source", "counts16", seed=1)
    replace_plate(catalog, "S/new name", again)
    with pytest.raises(PackError, match="0 of them of plates that are visible now"):
        build_pack(catalog, second, PackConfig(sites_per_task=2, shuffle_seed=1))
    third = build_pack(catalog, curate(catalog, config).curation_id, CONFIG)
    assert third.pack_id != pack.pack_id
    assert third.n_crops == pack.n_crops
