"""A catalog whose tables were made before there were corrections, editions and checksums."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.catalog.older_catalog import as_first_release
from tests.catalog.small_plate import CONFIG, write_plate

import cytolake.catalog
from cytolake.catalog.corrections import annotate, list_catalog_plates, rename, replace_plate, restore, retract
from cytolake.catalog.corrections.check import check_catalog
from cytolake.catalog.ingest.plates import ingest_plates
from cytolake.catalog.stale import stale_artefacts


@pytest.fixture
def old(catalog):
    as_first_release(catalog.root)
    return cytolake.catalog.open(catalog.root)


def test_it_is_read_checked_and_skipped_as_it_is(old, tmp_path):
    assert old.table("crops").num_rows == 36
    assert [(each.state, each.acquisition) for each in list_catalog_plates(old)] == [("visible", 1)]
    assert (check_catalog(old), stale_artefacts(old)) == ([], [])
    assert len(ingest_plates(old, [write_plate(tmp_path / "source")], CONFIG).skipped) == 1
    assert old.table("plates")["pixels_hash"].null_count == 0  # from now on changed files are seen


def test_every_correction_of_it_works(old, tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("well,gene,batch\nA01,KRAS,later\n")
    annotate(old, "S/P1", path)
    assert old.table("wells", where="well = 'A01'")["gene"].to_pylist() == ["KRAS"]
    rename(old, "S", screen="T")
    retract(old, "T/P1", "blurred")
    assert old.table("crops").num_rows == 0
    restore(old, "T/P1")
    plate = write_plate(tmp_path / "source", seed=4)
    replace_plate(old, "T/P1", plate, CONFIG)
    assert set(old.table("crops")["screen"].to_pylist()) == {"T"}
    assert old.table("crops").num_rows == 36
    assert old.table("wells", where="well = 'A01'")["gene"].to_pylist() == ["KRAS"]
    assert check_catalog(old, older_than_h=0) == []


def test_labels_that_changed_since_are_found_by_reading_its_pixels_once(old, tmp_path):
    plate = write_plate(tmp_path / "source")
    other = dataclasses.replace(plate, wells=({"well": "A01", "gene": "KRAS"},))
    assert [each.problem for each in ingest_plates(old, [other], CONFIG).refused] == ["labels_changed"]
    path = Path(plate.sites[0].image_paths[0])
    tifffile.imwrite(path, np.full((70, 100), 7, np.uint16))
    os.utime(path, (1, 1))
    assert [each.problem for each in ingest_plates(old, [other], CONFIG).refused] == ["plate_changed"]
