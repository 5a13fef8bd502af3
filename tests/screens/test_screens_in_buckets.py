"""Screens in an S3 bucket list as they do on a disk, with few requests."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import inspect_screen
from cytolake.screens.images.ome_metadata import read_groups
from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import ScreenError
from cytolake.screens.sources import ScreenSource, list_plates
from cytolake.storage import files as storage


def listed(path, **fields):
    source = ScreenSource(screen="s", path=str(path), **fields)
    return list_plates(source, channel_vocabulary().aliases, layout_presets())


@pytest.fixture
def uploaded(s3_bucket, tmp_path):
    """Puts a local folder's files under s3://bucket/screen, and gives that."""

    def upload(folder: Path) -> str:
        files = storage.file_system(s3_bucket)
        for path in folder.rglob("*"):
            if path.is_file():
                files.pipe_file(f"{s3_bucket}/screen/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{s3_bucket}/screen"

    return upload


def image(value):
    data = io.BytesIO()
    tifffile.imwrite(data, np.full((6, 8), value, np.uint16), photometric="minisblack")
    return data.getvalue()


def write(folder, files):
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())


def screens():
    """Name of a layout -> files of a small screen in it."""
    names = [f"r0{r}c0{c}f01p01-ch{ch}sk1fk1fl1.tiff" for r in (1, 2) for c in (1, 2) for ch in (1, 2)]
    rows = [f"images/{well}_{c}.tif,P1,{well},1,{c}" for well in ("B02", "B03") for c in ("DNA", "ER")]
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["FileName_OrigDNA", "PathName_OrigDNA", "Metadata_Plate", "Metadata_Well", "Metadata_Site"])
    writer.writerows([f"{well}.tif", "images", "P1", well, "1"] for well in ("B02", "B03"))
    return {
        "phenix": {f"P1/Images/{name}": image(i) for i, name in enumerate(names)},
        "index-csv": {
            "index.csv": "\n".join(["path,plate,well,site,channel", *rows]),
            "platemap.csv": "plate,well,gene\nP1,B02,TP53\nP1,B03,KRAS\n",
            **{row.partition(",")[0]: image(i) for i, row in enumerate(rows)},
        },
        "load-data": {
            "load_data/load_data.csv": table.getvalue(),
            **{f"images/{well}.tif": image(i) for i, well in enumerate(("B02", "B03"))},
        },
        "imagexpress": {f"TimePoint_{t}/P1_B03_s{s}_w1.tif": image(t + s) for t in (1, 2) for s in (1, 2)},
        "cellvoyager": {
            "P1/MeasurementData.mlf": '<m><MeasurementRecord Type="IMG" Row="2" Column="3" FieldIndex="1" Ch="1">a.tif'
            "</MeasurementRecord></m>",
            "P1/a.tif": image(1),
        },
    }


@pytest.mark.parametrize("layout", screens())
def test_a_screen_lists_and_reads_from_a_bucket_as_from_a_disk(tmp_path, uploaded, layout):
    write(tmp_path / "screen", screens()[layout])
    local, remote = listed(tmp_path / "screen"), listed(uploaded(tmp_path / "screen"))
    assert [(plate.plate, plate.channels, plate.wells) for plate in remote] == [
        (plate.plate, plate.channels, plate.wells) for plate in local
    ]
    assert all(plate.problems == () for plate in remote)
    for here, there in zip(
        (site for plate in local for site in plate.sites),
        (site for plate in remote for site in plate.sites),
        strict=True,
    ):
        assert (there.well, there.site, there.timepoint) == (here.well, here.site, here.timepoint)
        assert all(path.startswith("s3://") for path in there.image_paths)
        np.testing.assert_array_equal(read_site(there), read_site(here))


def test_a_bucket_is_inspected_as_a_folder_is(tmp_path, uploaded):
    write(tmp_path / "screen", screens()["phenix"])
    source = ScreenSource(screen="s", path=uploaded(tmp_path / "screen"))
    inspection = inspect_screen(source, channel_vocabulary().aliases, layout_presets(), 4)
    assert (inspection.layout, inspection.total("n_sites"), inspection.total("n_crops")) == ("phenix", 4, 4 * 2)


def test_names_are_listed_once_for_a_folder_of_images_not_for_each_site(tmp_path, uploaded, monkeypatch):
    write(tmp_path / "screen", screens()["phenix"])
    uri = uploaded(tmp_path / "screen")
    uris = []
    for name in ("list_objects", "list_one_level"):
        list_names = getattr(storage, name)
        monkeypatch.setattr(storage, name, lambda uri, list_names=list_names: (uris.append(uri), list_names(uri))[1])
    (plate,) = listed(uri)
    assert len(plate.sites) == 4
    assert len(uris) == len(set(uris)) <= 4


@pytest.mark.parametrize(
    ("path", "problem"),
    [("s3://no-such-bucket-of-these-tests/screen", "missing_folder"), ("{bucket}/nothing", "empty_folder")],
)
def test_a_bucket_or_prefix_that_is_not_there_is_reported(s3_bucket, path, problem):
    with pytest.raises(ScreenError) as caught:
        listed(path.format(bucket=s3_bucket))
    assert [each.problem for each in caught.value.problems] == [problem]
    assert "s3://" in str(caught.value)


def test_a_storage_that_does_not_answer_is_reported_as_such(s3_bucket, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS_MAX", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(ScreenError, match="AWS_ENDPOINT_URL") as caught:
        listed(f"{s3_bucket}/screen")
    assert caught.value.problems[0].problem == "unreadable_folder"


def test_paths_of_the_bucket_itself_need_no_prefix_and_other_buckets_are_refused(tmp_path, uploaded, s3_bucket):
    rows = [f"{s3_bucket}/screen/a.tif,P1,B02,1,DNA", "s3://other/screen/a.tif,P1,B03,1,DNA"]
    write(tmp_path / "screen", {"index.csv": "\n".join(["path,plate,well,site,channel", *rows]), "a.tif": image(3)})
    (plate,) = listed(uploaded(tmp_path / "screen"))
    assert [site.image_paths for site in plate.sites] == [(f"{s3_bucket}/screen/a.tif",)]
    assert [(problem.problem, problem.well) for problem in plate.problems] == [("path_outside_screen", "B03")]


def test_a_storage_that_fails_under_the_metadata_is_no_damaged_image(s3_bucket, monkeypatch):
    monkeypatch.setattr(storage, "ATTEMPTS_MAX", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(storage.UnreachableError, match="does not answer"):
        read_groups([f"{s3_bucket}/P1.zarr/B/03/0", f"{s3_bucket}/P1.zarr/B/04/0"])
