"""An inspection promises what an ingest delivers: plates, wells, sites, crops, problems by kind, on every layout."""

from __future__ import annotations

from collections import Counter

import imagecodecs
import numpy as np
import pytest
import tifffile
import zarr
from ngio import ImageInWellPath, create_empty_plate, create_ome_zarr_from_array
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import CONFIG, commit
from tests.fast_cases import fast_cases

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.catalog.ingest.screen_problems import quarantine_of_screens
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates, list_screen

RNG = np.random.default_rng(0)
CAMERA = RNG.integers(100, 4000, (70, 100), dtype=np.uint16)
EIGHT_BIT = CAMERA.astype(np.uint8)
REGEX = {"layout": "regex", "pattern": r"(?P<well>[A-H][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif"}


def write(folder, *names, pixels=CAMERA, **options):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            path.write_bytes(imagecodecs.png_encode(pixels))
        else:
            tifffile.imwrite(path, pixels, **{"metadata": None, **options})


def index_csv(folder):
    """Two plates, one of them with a plate map that names a well more; a file is lost, another is not listed."""
    rows = [(f"{p}_{w}_{c}.tif", p, w, "1", c) for p in ("P1", "P2") for w in ("A01", "A02") for c in ("DAPI", "ER")]
    write(folder, *(row[0] for row in rows if row[0] != "P1_A02_ER.tif"), "other.tif")
    lines = ["path,plate,well,site,channel", *(",".join(row) for row in rows)]
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    (folder / "platemap.csv").write_text("plate,well,gene\nP1,A01,TP53\nP1,A02,KRAS\nP1,C07,MYC\n")


def load_data(folder):
    lines = [
        "FileName_OrigDNA,PathName_OrigDNA,FileName_OrigER,PathName_OrigER,Metadata_Plate,Metadata_Well,Metadata_Site"
    ]
    for well in ("A01", "A02"):
        for site in (1, 2):
            names = [f"{well}_{site}_{stain}.tif" for stain in ("DNA", "ER")]
            lines.append(f"{names[0]},images,{names[1]},images,P1,{well},{site}")
            write(folder / "images", *(name for name in names if name != "A02_2_ER.tif"))
    (folder / "load_data.csv").write_text("\n".join(lines) + "\n")


def phenix(folder):
    images = []
    for column in (1, 2):
        for field in (1, 2):
            for channel in (1, 2):
                name = f"r01c{column:02d}f{field:02d}p01-ch{channel}sk1fk1fl1.tiff"
                images.append(
                    f"<Image><URL>{name}</URL><Row>1</Row><Col>{column}</Col><FieldID>{field}</FieldID>"
                    f"<ChannelID>{channel}</ChannelID><ChannelName>stain {channel}</ChannelName></Image>"
                )
                if column == 1:
                    write(folder / "P1__1/Images", name)
    text = f"<EvaluationInputData><Images>{''.join(images)}</Images></EvaluationInputData>"
    (folder / "P1__1/Images/Index.idx.xml").write_text(text)


def imagexpress(folder):
    names = [f"P1_{well}_s{site}_w{wave}.tif" for well in ("A01", "A02") for site in (1, 2) for wave in (1, 2)]
    write(folder / "P1/TimePoint_1", *names)
    (folder / "P1/TimePoint_1" / names[3]).write_bytes(b"")


def rxrx(folder):
    write(folder / "images/H-1/Plate1", *(f"B02_s1_w{channel}.png" for channel in range(1, 7)))
    lines = [f"H-1,1,{well},{site}" for well in ("B02", "B03") for site in (1, 2)]
    (folder / "metadata.csv").write_text("\n".join(["experiment,plate,well,site", *lines]) + "\n")


def cellvoyager(folder):
    record = (
        '<bts:MeasurementRecord bts:Column="{c}" bts:Row="2" bts:TimePoint="1" bts:FieldIndex="1" bts:ZIndex="1" '
        'bts:Type="IMG" bts:Ch="1">{name}</bts:MeasurementRecord>'
    )
    write(folder / "P1", "a.tif", "stray.tif")
    records = "".join(record.format(c=column, name=name) for column, name in ((3, "a.tif"), (4, "b.tif")))
    (folder / "P1/MeasurementData.mlf").write_text(
        f'<bts:MeasurementData xmlns:bts="b">{records}</bts:MeasurementData>'
    )


def ome_zarr(folder, version="0.4"):
    images = [ImageInWellPath(row="B", column=column, path=site) for column in ("03", "04") for site in ("0", "1")]
    plate = create_empty_plate(str(folder / "P1.zarr"), name="P1", images=images, ngff_version=version)
    for image in images:
        create_ome_zarr_from_array(
            plate.get_image_store(row=image.row, column=image.column, image_path=image.path),
            np.stack([CAMERA, CAMERA + 1]),
            axes_names=["c", "y", "x"],
            pixelsize=0.65,
            levels=1,
            channels_meta=["DAPI", "GFP"],
            ngff_version=version,
        )
    array = folder / "P1.zarr/B/03/1/0"
    pixels = zarr.open_array(array, mode="r")[...]
    zarr.create_array(
        store=str(array), shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 35, 50), overwrite=True,
        zarr_format=2 if version == "0.4" else 3,
    )[...] = pixels  # fmt: skip
    chunks = sorted(path for path in array.rglob("*") if path.is_file() and path.name.strip("0123456789.") == "")
    chunks[0].unlink()


def ome_zarr_05(folder):
    ome_zarr(folder, "0.5")


def class_folders(folder):
    for label in ("cat", "dog"):
        write(folder / label, "1.png", "2.png", pixels=np.dstack([EIGHT_BIT] * 3))
    (folder / "dog/2.png").write_bytes(b"no image")


def mixed_types(folder):
    write(folder, "A01_s1_DAPI.tif", "A02_s1_DAPI.tif")
    write(folder, "A01_s1_BF.tif", "A02_s1_BF.tif", pixels=EIGHT_BIT)


def colour(folder):
    write(folder, "A01_s1_DAPI.tif", "A02_s1_DAPI.tif", pixels=np.dstack([EIGHT_BIT] * 3), photometric="rgb")
    write(folder, "A03_s1_DAPI.tif")


def pages(folder):
    write(folder, "A01_s1_DAPI.tif")
    for name, small in (("A02_s1_DAPI.tif", {"subfiletype": 1}), ("A03_s1_DAPI.tif", {})):
        with tifffile.TiffWriter(folder / name) as tif:
            tif.write(CAMERA[::2, ::2].copy(), metadata=None, **small)
            tif.write(CAMERA, metadata=None)


def other_sizes(folder):
    write(folder, "A01_s1_DAPI.tif", "A01_s1_BF.tif", "A02_s1_DAPI.tif", "A03_s1_BF.tif")
    write(folder, "A02_s1_BF.tif", pixels=CAMERA[:60])
    write(folder, "A04_s1_DAPI.tif", "A04_s1_BF.tif", pixels=CAMERA[:20, :20])


def no_numbers(folder):
    floats = CAMERA.astype(np.float32)
    floats[40, 50] = np.nan
    write(folder, "A01_s1_DAPI.tif", pixels=floats)
    write(folder, "A01_s1_BF.tif", "A02_s1_DAPI.tif", pixels=CAMERA.astype(np.float32))


def cut(folder):
    write(folder, "A01_s1_DAPI.tif", "A02_s1_DAPI.tif")
    whole = (folder / "A02_s1_DAPI.tif").read_bytes()
    (folder / "A02_s1_DAPI.tif").write_bytes(whole[: len(whole) // 2])


SCREENS = {
    **{each.__name__: (each, {}) for each in (index_csv, load_data, phenix, imagexpress, rxrx, cellvoyager)},
    **{each.__name__: (each, {}) for each in (ome_zarr, ome_zarr_05, class_folders)},
    **{each.__name__: (each, REGEX) for each in (mixed_types, colour, pages, other_sizes, no_numbers, cut)},
    "sharpest": (phenix, {"z": "sharpest"}),
    "two times the same problem": (cut, REGEX | {"channels": ("DAPI", "ER")}),
}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return empty_catalog(tmp_path_factory.mktemp("catalog"))


@pytest.mark.parametrize("name", fast_cases(SCREENS, "phenix", "ome_zarr_05", "mixed_types", "cut", "sharpest"))
def test_the_numbers_of_an_inspection_are_those_of_the_ingest(tmp_path, catalog, name):
    write_screen, fields = SCREENS[name]
    write_screen(tmp_path)
    source = ScreenSource(screen=name, path=str(tmp_path), **fields)
    declared = channel_vocabulary().aliases, layout_presets()
    found = inspect_screen(source, *declared, CONFIG.crop_size)
    listing = list_screen(source, *declared)
    for plate in listing.plates:
        commit(catalog, plate)
    quarantine_of_screens(catalog, listing.problems)
    delivered = catalog.table("plates", where="screen = ?", parameters=[name]).to_pylist()
    promised = [(plate.plate, plate.n_wells, plate.n_sites, plate.n_crops) for plate in found.plates]
    assert sorted(promised) == sorted((r["plate"], r["n_wells"], r["n_sites"], r["n_crops"]) for r in delivered)
    # that other screens here have the same pixels is known to the catalog alone
    where = "screen = ? AND problem <> 'copy_of_a_plate'"
    quarantine = catalog.table("quarantine", where=where, parameters=[name])
    assert {each.problem: each.n for each in found.problems} == Counter(quarantine["problem"].to_pylist())
    of_plates = Counter(quarantine["plate"].to_pylist())
    assert all(each.n_problems >= of_plates[each.plate] for each in found.plates)
    if len(found.plates) == 1 and not of_plates[""]:
        assert found.plates[0].n_problems == quarantine.num_rows
    assert found.can_ingest


@pytest.mark.slow
def test_damaged_and_odd_files_cost_their_own_sites(catalog):
    """After the test above: what the layouts lost, and that nothing else is missing."""
    rows = catalog.sql("SELECT screen, problem, count(*) AS n FROM quarantine GROUP BY ALL").to_pylist()
    lost = Counter({(row["screen"], row["problem"]): row["n"] for row in rows})
    assert lost["colour", "shape_mismatch"] == 2
    assert lost["pages", "shape_mismatch"] == 1
    assert lost["other_sizes", "shape_mismatch"] == 1
    assert lost["other_sizes", "site_smaller_than_crop"] == 1
    assert lost["no_numbers", "not_a_number"] == 1
    assert lost["ome_zarr", "missing_chunk"] == lost["ome_zarr_05", "missing_chunk"] == 1
    assert {problem for screen, problem in lost if screen == "mixed_types"} == {"no_perturbation"}


def test_a_screen_of_which_no_site_can_be_read_promises_nothing(tmp_path):
    write(tmp_path, "A01_s1_DAPI.tif", pixels=np.dstack([EIGHT_BIT] * 3), photometric="rgb")
    found = inspect_screen(ScreenSource(screen="s", path=str(tmp_path), **REGEX), {}, layout_presets(), 32)
    assert (found.can_ingest, found.total("n_sites"), found.total("n_crops")) == (False, 0, 0)
    assert {each.problem for each in found.problems} == {"shape_mismatch", "no_perturbation"}


def test_a_reader_that_fails_costs_its_screen_and_not_the_run(tmp_path, monkeypatch):
    write(tmp_path, "A01_s1_DAPI.tif")

    def fail(*_):
        raise TypeError("'<' not supported")

    monkeypatch.setattr("cytolake.screens.sources.list_by_layout", fail)
    source = ScreenSource(screen="s", path=str(tmp_path), **REGEX)
    with pytest.raises(ScreenError) as failed:
        list_plates(source)
    assert [problem.problem for problem in failed.value.problems] == ["reader_failed"]
    assert "TypeError: '<' not supported" in failed.value.problems[0].found
    assert [each.problem for each in inspect_screen(source).problems] == ["reader_failed"]
