"""No file name and no table makes a listing fail but with a ScreenError, which can be shown and stored."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.positions import well_name
from cytolake.screens.sources import ScreenSource, list_plates

LAYOUTS = ("auto", *(preset.name for preset in layout_presets() if preset.name != "ome-zarr"))  # no names, no tables
QUICK = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

CELLS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        [
            *("", "P1", "B02", "B2", "AF48", "Z99", "1", "2.0", "-1", "1e9", "9" * 30, "٣", "nan", "DNA", "a.tif"),
            *("../a.tif", "/etc/passwd", "C:\\x.tif", "s3://b/x.tif", "\0", "a\nb", '"', "'", ";", "\t", "é", "\ufeff"),
        ]
    ),
)
COLUMNS = (
    "path,plate,well,site,channel,z,timepoint,illumination,pixel_size_um,batch",
    "FileName_OrigDNA,PathName_OrigDNA,FileName_IllumDNA,PathName_IllumDNA,Metadata_Plate,Metadata_Well,Metadata_Site",
    "Image_FileName_DAPI,Image_PathName_DAPI,Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI,Replicate",
    "well_id,experiment,plate,well,site,treatment",
    "plate,well,gene,batch",
    "Assay_Plate_Barcode,Plate_Map_Name,Batch_Number",
)
FILES = ("index.csv", "load_data.csv", "BBBC021_v1_image.csv", "BBBC022_v1_image.csv", "metadata.csv", "platemap.csv")
XML = st.sampled_from(["P1/MeasurementData.mlf", "P1/x.mes", "P1/x.mrf", "P1/Images/Index.idx.xml"])
PARTS = st.one_of(
    st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=8),
    st.sampled_from(
        [
            *("Images", "Plate1", "HUVEC-1", "TimePoint_1", "ZStep_2", "TimePoint_" + "9" * 40, "A:", " ", "a\\b"),
            *("r01c01f01p01-ch1sk1fk1fl1.tiff", "r00c00f00p00-ch0sk0fk1fl1.tiff", "r99c99f9999p9999-ch99t9.tif"),
            *("B02_s1_w1.png", "ZZ99_s1_1.jp2", "P1_B03_s1_w1.tif", "P_ZZ99_s1_w1.tif", "\udcff\udcfe.tif"),
            "BBBC006_v1_images_z_00",
            "P1_B03_s1_w1AA847666-9AC4-4326-A184-8FC928D4368A.tif",
            "mcf_a01_s1_w1d6a3b8c4-1d5e-4c52-8ae2-6b4c3c0a3b1e.tif",
            *("r١c٢f01p01-ch1sk1fk1fl1.tiff", "B٠٢_s1_w1.png", "index.csv", "load_data.csv", "MeasurementData.mlf"),
        ]
    ),
)


def check(plates: list[Plate]) -> None:
    assert plates
    for plate in plates:
        assert plate.sites
        for site in plate.sites:
            assert well_name(site.well) == site.well
            assert len(site.image_paths) == (sum(site.planes) or len(site.channels))
            assert site.timepoint >= 0
        stored(plate.problems)
        for text in (
            plate.plate,
            plate.batch,
            *plate.channels,
            *(value for row in plate.wells for value in row.values()),
        ):
            text.encode()


def stored(problems: tuple[Problem, ...]) -> None:
    for problem in problems:
        str(problem).encode()  # as a column of the table keeps it
        assert problem.problem
        assert problem.next_step


def list_all_ways(folder: Path) -> None:
    for layout in LAYOUTS:
        source = ScreenSource(screen="s", path=str(folder), layout=layout, z="max", path_prefix=("/mnt",))
        try:
            check(list_plates(source, channel_vocabulary().aliases, layout_presets()))
        except ScreenError as error:
            stored(error.problems)
    inspect_screen(ScreenSource(screen="s", path=str(folder)), channel_vocabulary().aliases, layout_presets())


@pytest.fixture(scope="module")
def in_a_folder() -> Callable[[Callable[[Path], None]], None]:
    """Runs a function on a new folder that holds one small image."""

    def run(act: Callable[[Path], None]) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "screen"
            folder.mkdir()
            tifffile.imwrite(folder / "a.tif", np.ones((4, 4), np.uint8), photometric="minisblack")
            act(folder)

    return run


@QUICK
@given(
    file=st.sampled_from(FILES),
    columns=st.sampled_from(COLUMNS),
    rows=st.lists(st.lists(CELLS, max_size=10), max_size=6),
)
def test_any_cells_of_a_table_are_listed_or_reported(in_a_folder, file, columns, rows):
    def act(folder: Path) -> None:
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
        (folder / file).write_text("\n".join([columns, *quoted]), encoding="utf-8", errors="replace")
        if file not in ("index.csv", "load_data.csv"):
            (folder / "index.csv").write_text("path,plate,well,site,channel\na.tif,P1,B02,1,DNA\n")
        list_all_ways(folder)

    in_a_folder(act)


@QUICK
@given(file=st.one_of(st.sampled_from(FILES), XML), content=st.binary(max_size=300))
def test_any_bytes_of_a_table_or_an_index_are_listed_or_reported(in_a_folder, file, content):
    def act(folder: Path) -> None:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
        list_all_ways(folder)

    in_a_folder(act)


@QUICK
@given(paths=st.lists(st.lists(PARTS, min_size=1, max_size=4), min_size=1, max_size=6))
def test_any_file_names_are_listed_or_reported(in_a_folder, paths):
    def act(folder: Path) -> None:
        for parts in paths:
            path = os.path.join(os.fsencode(folder), *(os.fsencode(part) for part in parts))  # noqa: PTH118 - bytes
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
                with open(path, "ab"):  # noqa: PTH123
                    pass
            except OSError:  # "..", a name that is too long, or a file where a folder should be
                continue
        list_all_ways(folder)

    in_a_folder(act)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_that_the_screen_may_not_reach_is_in_no_site(tmp_path, layout):
    """One secret file outside, under every name by which a screen could try to have it."""
    secret = tmp_path / "secret.tif"
    tifffile.imwrite(secret, np.ones((4, 4), np.uint8), photometric="minisblack")
    folder = tmp_path / "screen"
    for link in (
        "P1/Images/r01c01f01p01-ch1sk1fk1fl1.tiff",
        "HUVEC-1/Plate1/B02_s1_w1.png",
        "TimePoint_1/P1_B03_s1_w1.tif",
    ):
        (folder / link).parent.mkdir(parents=True, exist_ok=True)
        (folder / link).symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    ways = ["../secret.tif", str(secret), f"file://{secret}", "linked/secret.tif", "images/../../secret.tif"]
    rows = "".join(f"{way},P1,A{n:02d},1,DNA\n" for n, way in enumerate(ways, 1))
    (folder / "index.csv").write_text("path,plate,well,site,channel\n" + rows)
    wide = "".join(f"{way.rpartition('/')[2]},{way.rpartition('/')[0]},P1,A{n:02d}\n" for n, way in enumerate(ways, 1))
    (folder / "load_data.csv").write_text("FileName_DNA,PathName_DNA,Metadata_Plate,Metadata_Well\n" + wide)
    records = "".join(
        f'<MeasurementRecord Type="IMG" Row="1" Column="{n}" FieldIndex="1" Ch="1">{way}</MeasurementRecord>'
        for n, way in enumerate(ways, 1)
    )
    (folder / "MeasurementData.mlf").write_text(f"<m>{records}</m>")
    source = ScreenSource(screen="s", path=str(folder), layout=layout)
    with pytest.raises(ScreenError):
        list_plates(source, channel_vocabulary().aliases, layout_presets())


def test_a_name_that_is_not_utf_8_is_reported_as_text_that_a_table_can_hold():
    problem = Problem(screen="s", file="\udcff.tif", problem="p", found="a \udcfe", expected="é", next_step="n")
    assert (problem.file, problem.found, problem.expected) == ("\\udcff.tif", "a \\udcfe", "é")
