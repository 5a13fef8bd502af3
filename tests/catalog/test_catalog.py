from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.older_catalog import as_first_release
from tests.catalog.processes import commit_one, run_at_once
from tests.catalog.small_plate import commit, contents, write_plate

import cytolake.catalog
from cytolake.catalog import CatalogError, ids, table_contract
from cytolake.screens.images.pixels import read_site
from cytolake.storage.files import list_objects


def test_a_tag_reads_as_the_catalog_was_and_is_never_moved(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, write_plate(tmp_path / "source"))
    versions = catalog.tag("first", "one plate")
    assert catalog.tag("first") == versions  # the same again changes nothing
    commit(catalog, write_plate(tmp_path / "source", "P2"))
    assert catalog.table("crops").num_rows == 72
    assert catalog.at("first").table("crops").num_rows == 36
    assert catalog.at("first").find_crops(plates=["P2"]).num_rows == 0
    with pytest.raises(CatalogError, match="tag first: it names other versions"):
        catalog.tag("first")
    with pytest.raises(CatalogError, match=r"no such tag\. There are: first"):
        catalog.at("second")
    with pytest.raises(CatalogError, match="empty name"):
        catalog.tag(" ")


def test_a_folder_remembers_where_its_tables_lie(tmp_path):
    root, tables = tmp_path / "root", tmp_path / "tables here"
    catalog = cytolake.catalog.open(root, tables=str(tables), create=True)
    commit(catalog, write_plate(tmp_path / "source"))
    assert (tables / "tables" / "crops" / "_delta_log").is_dir()
    assert not (root / "tables").exists()
    assert cytolake.catalog.open(root).table("crops").num_rows == 36
    assert cytolake.catalog.open(root).root == root
    with pytest.raises(CatalogError, match="its tables are in"):
        cytolake.catalog.open(root, tables=str(tmp_path / "elsewhere"), create=True)


def test_a_catalog_on_s3_takes_a_plate_once_and_answers_like_a_local_one(s3_bucket, tmp_path):
    plate = write_plate(tmp_path / "source")
    here = empty_catalog(tmp_path / "here")
    commit(here, plate)
    there = cytolake.catalog.open(tmp_path / "root", tables=f"{s3_bucket}/lake", create=True)
    assert commit(there, plate) == commit(there, plate)
    assert contents(there) == contents(here)
    for root in (tmp_path / "root", f"{s3_bucket}/lake"):
        again = cytolake.catalog.open(root)
        assert again.sql("SELECT count(*) AS n FROM crops").to_pylist() == [{"n": 36}]
    assert again.find_crops(wells=["B01"]).num_rows == 12
    with pytest.raises(CatalogError, match="a catalog without a folder"):
        _ = again.root
    with pytest.raises(CatalogError, match="no catalog there"):
        cytolake.catalog.open(f"{s3_bucket}/nothing")


INGEST_WITH_A_RAY_OF_ITS_OWN = """
import sys
from pathlib import Path
from tests.catalog.processes import commit_one, run_at_once
from tests.catalog.older_catalog import as_first_release
from tests.catalog.small_plate import CONFIG, write_plate
import cytolake.catalog
from cytolake.catalog.ingest.plates import ingest_plates
from cytolake.pipeline.session import RayConfig, ray_session
catalog = cytolake.catalog.open(sys.argv[1])
with ray_session(RayConfig(cpus=1, object_store_mb=100)):
    print(len(ingest_plates(catalog, [write_plate(Path(sys.argv[2]))], CONFIG).ingested))
"""


@pytest.mark.slow  # half a minute for a Ray whose processes find the S3 server in their environment
def test_ray_workers_stage_on_s3_and_the_driver_commits_there(s3_bucket, tmp_path):
    there = cytolake.catalog.open(tmp_path / "root", tables=f"{s3_bucket}/lake", create=True)
    here = empty_catalog(tmp_path / "here")
    commit(here, write_plate(tmp_path / "source"))
    run = subprocess.run(
        [
            sys.executable, "-c", INGEST_WITH_A_RAY_OF_ITS_OWN, str(there.root),
            str(tmp_path / "source"),
        ],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.stdout.strip() == "1", run.stderr
    assert contents(there) == contents(here)
    assert not list_objects(f"{s3_bucket}/lake/staging")


def test_an_older_catalog_opens_reads_and_takes_more_plates(tmp_path):
    root = tmp_path / "catalog"
    plate = write_plate(tmp_path / "source")
    commit(empty_catalog(root), plate)
    as_first_release(root)
    catalog = cytolake.catalog.open(root)
    old = catalog.table("sites")
    assert old.schema.equals(table_contract("sites").schema)
    assert set(old.column("planes").to_pylist()) == {None}
    crop = catalog.table("crops", where="well = 'B01' AND site = '1'").to_pylist()[0]
    site = next(site for site in plate.sites if (site.well, site.site) == ("B01", "1"))
    window = read_site(site)[:, crop["y"] : crop["y"] + crop["size"], crop["x"] : crop["x"] + crop["size"]]
    np.testing.assert_array_equal(catalog.crop_pixels([crop["crop_id"]])[0], window)
    assert catalog.table("tags").num_rows == 0

    commit(catalog, write_plate(tmp_path / "source", "P2"))  # without create: the columns are added on the way
    planes = catalog.table("sites").column("planes").to_pylist()
    assert (planes.count(None), planes.count([])) == (6, 6)
    assert catalog.tag("now")["crops"] == catalog.versions()["crops"]


def test_four_processes_that_ingest_four_plates_all_land(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    names = [f"P{number}" for number in range(4)]
    each = [(catalog.root, tmp_path / "source", name) for name in names]
    assert run_at_once(commit_one, each)[0] == [0, 0, 0, 0]
    assert sorted(catalog.table("plates").column("plate").to_pylist()) == names
    counts = catalog.sql("SELECT plate, count(*) AS n FROM crops GROUP BY plate").to_pylist()
    assert {row["plate"]: row["n"] for row in counts} == dict.fromkeys(names, 36)


def test_a_query_for_one_plate_reads_one_file_of_each_table(tmp_path, monkeypatch):
    catalog = empty_catalog(tmp_path / "catalog")
    for number in range(4):
        commit(catalog, write_plate(tmp_path / "source", f"P{number}"))
    plate_id = ids.plate_id("S", "P2")
    dataset = catalog.dataset("crops")
    files = list(dataset.get_fragments(filter=pc.field("plate_id") == plate_id))
    assert len(list(dataset.get_fragments())) == 4
    assert len(files) == 1
    # gone files cannot be read: the query is answered from what is left
    for fragment in dataset.get_fragments():
        if fragment.path != files[0].path:
            (catalog.root / "tables" / "crops" / Path(fragment.path).name).unlink()
    assert catalog.find_crops(plates=["P2"]).num_rows == 36
    assert catalog.sql("SELECT count(*) AS n FROM crops WHERE plate = 'P2'").to_pylist() == [{"n": 36}]


def test_the_note_in_a_folder_is_plain_json(tmp_path):
    cytolake.catalog.open(tmp_path / "root", tables=str(tmp_path / "t"), create=True)
    assert json.loads((tmp_path / "root" / "catalog.json").read_text()) == {"tables": str(tmp_path / "t")}
