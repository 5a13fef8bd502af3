from __future__ import annotations

import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from tests.catalog.small_plate import CONFIG, contents, stage, write_plate

import cytolake.catalog
from cytolake.catalog import CatalogError, table_names
from cytolake.catalog.corrections.vacuum import vacuum


def leave_orphan(catalog: cytolake.catalog.Catalog, age_h: float) -> Path:
    """What a driver that was killed between its files and its commit leaves in a table."""
    path = catalog.root / "tables" / "crops" / f"part-of-a-killed-run-{age_h}.parquet"
    pq.write_table(pa.table({"crop_id": ["x"]}), path)
    then = time.time() - age_h * 3600
    os.utime(path, (then, then))
    return path


def test_orphans_and_old_staging_go_and_every_version_stays_readable(catalog, tmp_path):
    before = contents(catalog)
    staged = stage(catalog, write_plate(tmp_path / "source", "P2"), CONFIG)
    old, young = leave_orphan(catalog, 30), leave_orphan(catalog, 1)
    looked = vacuum(catalog, is_dry_run=True)
    assert looked.files == (str(old.relative_to(catalog.root)),)
    assert not looked.staged
    assert looked.n_too_young == 2
    assert old.exists()

    done = vacuum(catalog)
    assert done == looked
    assert (old.exists(), young.exists(), len(staged.wells())) == (False, True, 3)
    done = vacuum(catalog, 0)
    assert len(done.files) == len(done.staged) == 1
    assert done.n_bytes > 0
    assert (young.exists(), len(staged.wells())) == (False, 0)
    assert contents(catalog) == before
    for name in table_names():
        for version in range(catalog.versions()[name] + 1):
            catalog.table(name, version=version)


def test_files_of_a_replaced_content_stay_for_the_versions_that_name_them(catalog):
    wells = catalog.table("wells")
    for content in (1, 2):  # two contents of a plate that never became visible
        rows = wells.slice(0, content)
        rows = rows.set_column(rows.schema.get_field_index("plate_id"), "plate_id", pa.array(["p3"] * content))
        catalog.write_plate("wells", rows, plate_id="p3", content=content)
    assert not vacuum(catalog, 0).files
    path, newest = str(catalog.root / "tables" / "wells"), catalog.versions()["wells"]
    n_rows = [DeltaTable(path, version=newest - back).to_pyarrow_table().num_rows for back in (1, 0)]
    assert n_rows == [wells.num_rows + 1, wells.num_rows + 2]


def test_a_pinned_catalog_and_a_cut_log_are_refused(catalog):
    with pytest.raises(CatalogError, match="pinned"):
        vacuum(catalog.at(catalog.versions()))
    orphan = leave_orphan(catalog, 30)
    (catalog.root / "tables" / "crops" / "_delta_log" / f"{1:020}.json").unlink()
    with pytest.raises(CatalogError, match="not numbered"):
        vacuum(catalog)
    assert orphan.exists()
