from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.processes import ingest_on_full_disk, run_at_once
from tests.catalog.small_plate import CONFIG, commit, commit_plate, contents, stage, write_plate

from cytolake.catalog import CatalogError
from cytolake.catalog.ingest.plate_content import content_hash
from cytolake.catalog.ingest.plates import ingest_plates, stage_well, staging_of
from cytolake.catalog.ingest.staging import Staging
from cytolake.storage import files as storage


def part(value: int) -> pa.Table:
    return pa.table({"sites": pa.array([[{"n": value}, {"n": value + 1}], []], pa.list_(pa.struct({"n": pa.int64()})))})


def test_what_is_staged_is_read_back_well_by_well(tmp_path):
    staging = Staging(str(tmp_path / "plate"))
    assert staging.wells() == frozenset()
    staging.write("A01", part(1))
    staging.write("B02", part(5))
    staging.write("A01", part(3))
    assert staging.wells() == {"A01", "B02"}
    assert [table.column("n").to_pylist() for table in staging.read(["B02", "A01"], "sites")] == [[5, 6], [3, 4]]
    staging.remove()
    staging.remove()
    assert not (tmp_path / "plate").exists()


def test_wells_are_staged_on_s3_too(s3_bucket):
    staging = Staging(f"{s3_bucket}/lake/staging/plate")
    assert staging.wells() == frozenset()
    staging.write("A01", part(1))
    assert staging.wells() == {"A01"}
    assert [table.num_rows for table in staging.read(["A01"], "sites")] == [2]
    staging.remove()
    assert staging.wells() == frozenset()


def test_a_half_written_file_is_no_well(tmp_path):
    staging = Staging(str(tmp_path))
    staging.write("A01", part(1))
    (tmp_path / ".A02.arrow-123").write_bytes(b"half")
    assert staging.wells() == {"A01"}


def test_damaged_rows_are_removed_so_that_the_next_run_reads_the_well_again(tmp_path):
    staging = Staging(str(tmp_path))
    staging.write("A01", part(1))
    file = tmp_path / "A01.arrow"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(CatalogError, match=r"well A01 are damaged .* Run the job again"):
        list(staging.read(["A01"], "sites"))
    assert staging.wells() == frozenset()


@pytest.mark.usefixtures("local_ray")
def test_an_ingest_goes_on_with_the_wells_that_a_killed_one_had_not_staged(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    plate = write_plate(tmp_path / "source")
    staging = stage(catalog, plate)
    (Path(staging.folder) / "B01.arrow").unlink()
    for site in plate.sites:
        if site.well != "B01":  # their pixels are never needed again, but their names and sizes are the plate's content
            for path in site.image_paths:
                Path(path).write_bytes(bytes(Path(path).stat().st_size))
    seen: list[int] = []
    report = ingest_plates(catalog, [plate], CONFIG, lambda _what, done, _total: seen.append(done))
    assert (report.n_sites, report.n_quarantined) == (6, 2)
    assert seen == [6]
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, write_plate(tmp_path / "again"))
    assert [row["crop_id"] for row in contents(catalog)["crops"]] == [
        row["crop_id"] for row in contents(whole)["crops"]
    ]
    assert not Path(staging.folder).exists()


def test_a_plate_with_a_well_too_few_is_not_committed(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    plate = write_plate(tmp_path / "source")
    staging = stage(catalog, plate)
    (Path(staging.folder) / "A02.arrow").unlink()
    with pytest.raises(FileNotFoundError):
        commit_plate(catalog, plate, content_hash(plate), CONFIG)
    assert all(not rows for rows in contents(catalog).values())


def test_a_storage_that_fails_while_pixels_are_read_quarantines_nothing(tmp_path, s3_bucket, monkeypatch):
    catalog = empty_catalog(tmp_path / "catalog")
    local = write_plate(tmp_path / "source")
    files = storage.file_system(s3_bucket)
    files.put(f"{local.source}/", f"{s3_bucket}/P1/", recursive=True)
    sites = [
        replace(site, image_paths=tuple(f"{s3_bucket}/P1/{Path(path).name}" for path in site.image_paths))
        for site in local.sites
    ]
    plate = replace(local, source=f"{s3_bucket}/P1", sites=tuple(sites))
    staging = staging_of(catalog, plate, content_hash(plate), CONFIG)
    stage_well(staging, sites[:2], plate.batch, CONFIG.crop_size)
    with monkeypatch.context() as there:
        there.setattr(storage, "ATTEMPTS_MAX", 1)
        there.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the discard port: nobody listens
        with pytest.raises(CatalogError, match=r"well A02, site 1, .*does not answer.*run the job again"):
            stage_well(staging, sites[2:4], plate.batch, CONFIG.crop_size)
    assert staging.wells() == {"A01"}
    commit(catalog, plate)
    assert catalog.table("sites").num_rows == 6
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, local)
    assert contents(catalog)["quarantine"] == contents(whole)["quarantine"]


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of file sizes here")
@pytest.mark.parametrize(("moment", "limit"), [("stage", 2000), ("commit", 3000)])
def test_a_disk_that_fills_up_is_reported_and_nothing_shows_until_a_later_run_completes(tmp_path, moment, limit):
    catalog = empty_catalog(tmp_path / "catalog")
    plate = write_plate(tmp_path / "source")
    codes, said = run_at_once(ingest_on_full_disk, [(catalog.root, tmp_path / "source", moment, limit)])
    assert codes == [0]
    assert "CatalogError" in said[0]
    assert "Make " in said[0]
    assert all(not rows for name, rows in contents(catalog).items() if name != "quarantine")
    commit(catalog, plate)
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, plate)
    assert contents(catalog) == contents(whole)
