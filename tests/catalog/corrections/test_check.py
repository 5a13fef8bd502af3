from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from tests.catalog.rows import add_rows, table_rows
from tests.catalog.small_plate import stage, write_plate

import cytolake.catalog
from cytolake.catalog import CatalogError, ids
from cytolake.catalog.corrections import annotate, list_catalog_plates, purge, rename
from cytolake.catalog.corrections.check import check_catalog
from cytolake.catalog.ingest.staging import Staging
from cytolake.catalog.tables import Catalog


def test_a_sound_catalog_has_no_findings(catalog, tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("well,gene\nA01,KRAS\n")
    annotate(catalog, "S/P1", path)
    rename(catalog, "S", screen="T")
    assert check_catalog(catalog, older_than_h=0) == []


def test_a_catalog_after_the_whole_pipeline_has_no_findings_also_one_older_than_labels_of_objects(golden_copy):
    shutil.rmtree(golden_copy / "tables" / "objects")
    catalog = cytolake.catalog.open(golden_copy)
    of_a_detector = dict.fromkeys(("representation_id", "label", "protocol", "metric"), "site statistics")
    row = {"score_id": "d", "benchmark": "artefact_detector_knn", "value": 0.9, "split": "plate", "seed": 0}
    add_rows(catalog, "scores", of_a_detector | row)
    assert check_catalog(catalog, older_than_h=0) == []


def test_rows_that_a_killed_run_left_are_found_and_deleted(catalog, tmp_path):
    staging: Staging = stage(catalog, write_plate(tmp_path / "source", "P2"))
    rows = next(iter(staging.read(["A01"], "crops")))
    catalog.write_plate("crops", rows, plate_id=ids.plate_id("S", "P2"), content=1)
    edition = catalog.table("wells").to_pylist()
    left = [row | {"edition": "0" * 32} for row in edition]
    catalog.append("wells", table_rows("wells", *left), transaction="edition/left")
    assert check_catalog(catalog) == []  # a run may be writing them now
    found = check_catalog(catalog, older_than_h=0)
    assert [each.what.partition(":")[0] for each in found] == ["table wells", "table crops"]
    assert all(each.is_repaired for each in check_catalog(catalog, is_repair=True, older_than_h=0))
    assert check_catalog(catalog, older_than_h=0) == []
    assert catalog.table("crops").num_rows == 36
    assert catalog.table("wells").to_pylist() == edition


def test_lost_rows_gone_files_and_dangling_references_are_findings(catalog):
    Path(catalog.table("sites")["image_paths"][0].as_py()[0]).unlink()
    row = {"representation_id": "nobody", "well_id": "w", "plate_id": "p", "n_crops": 1, "profile": [0.0]}
    add_rows(catalog, "profiles", row)
    plates = catalog.table("plates")
    fewer = plates.set_column(
        plates.schema.get_field_index("n_crops"), plates.schema.field("n_crops"), pa.array([35], pa.int32())
    )
    catalog.change_plates(plates, fewer)
    found = " | ".join(each.what for each in check_catalog(catalog))
    assert "36 rows of crops, expected 35" in found
    assert "1 of 12 image files are gone" in found
    assert "table profiles: 1 rows whose representation_id is not in representations" in found


def test_a_purge_that_was_killed_is_finished_by_check_or_by_a_purge(catalog, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["cytolake.catalog.corrections.purge"], "_remove_files", killed)
    with pytest.raises(KeyboardInterrupt):
        purge(catalog, "S/P1", "consent withdrawn")
    monkeypatch.undo()
    assert catalog.table("crops").num_rows == catalog.table("plates").num_rows == 0
    assert "did not come to its end" in check_catalog(catalog)[0].what
    assert check_catalog(catalog, is_repair=True)[0].is_repaired
    assert [each.state for each in list_catalog_plates(catalog)] == ["purged"]
    with pytest.raises(CatalogError, match=r"found it purged \(consent withdrawn\)"):
        purge(catalog, "S/P1", "again")


def test_a_pinned_catalog_is_not_checked(catalog: Catalog):
    with pytest.raises(CatalogError, match="pinned to old versions"):
        check_catalog(catalog.at(catalog.versions()))
