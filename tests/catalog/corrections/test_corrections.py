from __future__ import annotations

import dataclasses
import datetime
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows
from tests.catalog.small_plate import CONFIG, commit, write_plate
from tests.fast_cases import fast_cases

from cytolake.catalog import CatalogError, ids, table_contract
from cytolake.catalog.corrections import annotate, list_catalog_plates, purge, rename, replace_plate, restore, retract
from cytolake.catalog.corrections import replace as replacing
from cytolake.catalog.ingest import plates as ingesting
from cytolake.catalog.ingest.commit import sites_of_wells
from cytolake.catalog.ingest.labels import label_changes
from cytolake.catalog.ingest.plates import ingest_plates, stage_well
from cytolake.screens.sources import ScreenSource

EDITED = ("wells", "sites", "crops", "qc_metrics")
MAP = "plate,well,gene,compound,control\nP1,A01,KRAS,,\nP1,A02,,DMSO,negcon\nP1,B01,MYC,,\n"


def rows_of(catalog, name, *left_out):
    contract = table_contract(name)
    rows = catalog.table(name).sort_by([(column, "ascending") for column in contract.key]).to_pylist()
    return [{k: v for k, v in row.items() if k not in left_out and not k.endswith("_at")} for row in rows]


def visible(catalog):
    return {name: rows_of(catalog, name) for name in ("plates", *EDITED)}


def labels(catalog):
    return {row["well"]: row["gene"] or row["compound"] for row in catalog.table("wells").to_pylist()}


def map_file(tmp_path, text=MAP):
    path = tmp_path / "new.csv"
    path.write_text(text)
    return path


def test_labels_are_corrected_in_one_commit_and_no_other_table_of_the_plate_changes(catalog, tmp_path):
    before, versions = visible(catalog), catalog.versions()
    looked = annotate(catalog, "S/P1", map_file(tmp_path), is_dry_run=True)
    assert (catalog.versions(), looked.is_committed) == (versions, False)
    found = annotate(catalog, "S/P1", map_file(tmp_path))
    assert found.changes == looked.changes
    assert ("A01", "gene", "TP53", "KRAS") in [(c.well, c.column, c.before, c.after) for c in found.changes]
    assert labels(catalog) == {"A01": "KRAS", "A02": "DMSO", "B01": "MYC"}
    for name in ("sites", "crops", "qc_metrics"):
        assert visible(catalog)[name] == before[name]
        assert catalog.versions()[name] == versions[name]
    wells = {row["well"]: row["well_id"] for row in before["wells"]}
    assert all(row["well_id"] == wells[row["well"]] for row in rows_of(catalog, "wells") if row["well"] in wells)
    assert labels(catalog.at(versions)) == {"A01": "TP53", "A02": "DMSO", "B01": "", "C01": "MYC"}
    assert catalog.sql("select count(*) n from crops join wells using (well_id)").to_pylist() == [{"n": 36}]
    assert not annotate(catalog, "S/P1", map_file(tmp_path)).changes  # the same again changes nothing


def test_labels_go_back_and_forth_without_a_row_twice(catalog, tmp_path):
    for gene in ("A", "B", "A", "B"):
        annotate(catalog, "P1", map_file(tmp_path, f"well,gene\nA01,{gene}\n"))
        assert labels(catalog) == {"A01": gene, "A02": "", "B01": ""}


def test_a_batch_in_the_map_reaches_sites_and_crops(catalog, tmp_path):
    annotate(catalog, "P1", map_file(tmp_path, "well,gene,batch\nA01,A,new\n"))
    for name in ("plates", "wells", "sites", "crops"):
        assert set(catalog.table(name).column("batch").to_pylist()) == {"new"}
    assert catalog.table("crops").num_rows == 36


def test_a_map_that_does_not_name_the_plate_is_refused(catalog, tmp_path):
    with pytest.raises(CatalogError, match="found the plates P9, expected S/P1"):
        annotate(catalog, "S", map_file(tmp_path, "plate,well,gene\nP9,A01,A\n"))
    with pytest.raises(CatalogError, match=r"not in the catalog\. There are: S/P1"):
        annotate(catalog, "S/P2", map_file(tmp_path))


def test_a_plate_goes_and_comes_back_unchanged(catalog):
    before = visible(catalog)
    with pytest.raises(CatalogError, match="found no reason"):
        retract(catalog, "P1", " ")
    retract(catalog, "S/P1", "out of focus")
    assert all(not rows for rows in visible(catalog).values())
    assert [(each.state, each.why) for each in list_catalog_plates(catalog)] == [("retracted", "out of focus")]
    with pytest.raises(CatalogError, match=r"found it retracted \(out of focus\)"):
        retract(catalog, "P1", "again")
    restore(catalog, "P1")
    assert visible(catalog) == before


def test_a_retracted_plate_is_left_out_by_the_next_ingest(catalog, tmp_path):
    retract(catalog, "P1", "out of focus")
    report = ingest_plates(catalog, [write_plate(tmp_path / "source")], CONFIG)
    assert (report.ingested, report.refused) == ((), ())
    assert "restore S/P1" in str(report.left_out[0])


def test_derived_rows_of_a_hidden_plate_are_hidden_and_those_of_unknown_plates_are_not(catalog):
    one, other = catalog.table("plates")["plate_id"][0].as_py(), "0" * 32
    rows = [{"crop_id": plate, "plate_id": plate} for plate in (one, other)]
    add_rows(catalog, "embeddings", *rows, representation_id="r", well_id="w", embedding=[1.0])
    assert catalog.table("embeddings").num_rows == 2
    retract(catalog, "P1", "why")
    assert catalog.table("embeddings")["plate_id"].to_pylist() == [other]
    restore(catalog, "P1")
    assert catalog.table("embeddings").num_rows == 2


def test_a_rename_keeps_ids_and_the_next_ingest_under_the_new_name_skips(catalog, tmp_path):
    before = visible(catalog)
    rename(catalog, "S/P1", screen="T", plate="Q1")
    after = visible(catalog)
    for name in EDITED:
        gone = ("screen", "plate", "batch", "edition")
        assert [{k: v for k, v in row.items() if k not in gone} for row in after[name]] == [
            {k: v for k, v in row.items() if k not in gone} for row in before[name]
        ]
        assert {(row["screen"], row["plate"]) for row in after[name] if "screen" in row} <= {("T", "Q1")}
    plate = write_plate(tmp_path / "source")
    names = {"screen": "T", "plate": "Q1"}
    renamed = dataclasses.replace(
        plate, **names, sites=tuple(dataclasses.replace(site, **names) for site in plate.sites)
    )
    os.utime(plate.sites[0].image_paths[0])
    report = ingest_plates(catalog, [renamed], CONFIG)
    assert (report.refused, report.skipped) == ((), (before["plates"][0]["plate_id"],))


BATCHES = (("P1", "Q1"), ("S / P1", "T / Q1"), ("S/P1", "T/Q1"), ("week 3", "week 3"))


@pytest.mark.parametrize(("batch", "new"), fast_cases(BATCHES, *BATCHES[1:3]))
def test_a_batch_that_was_named_after_the_plate_is_renamed_with_it(tmp_path, batch, new):
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, dataclasses.replace(write_plate(tmp_path / "source"), batch=batch))
    rename(catalog, "S/P1", screen="T", plate="Q1")
    for name in ("plates", "wells", "sites", "crops"):
        assert set(catalog.table(name)["batch"].to_pylist()) == {new}


@pytest.mark.slow
def test_a_new_plate_under_a_name_that_was_given_up_has_ids_of_its_own(catalog, tmp_path):
    rename(catalog, "S/P1", plate="Q1")
    plate = write_plate(tmp_path / "again", seed=9)
    report = ingest_plates(catalog, [plate], CONFIG)
    assert len(report.ingested) == 1
    for name, key in (("plates", "plate_id"), ("wells", "well_id"), ("sites", "site_id"), ("crops", "crop_id")):
        found = catalog.table(name)[key].to_pylist()
        assert len(set(found)) == len(found) == 2 * {"plates": 1, "wells": 4, "sites": 6, "crops": 36}[name]
    with pytest.raises(CatalogError, match="found a plate of this name, visible"):
        rename(catalog, "S/Q1", plate="P1")


def test_the_command_of_a_changed_plate_lists_it_as_the_ingest_did(catalog, tmp_path):
    source = ScreenSource(screen="S", path=str(tmp_path), layout="regex", pattern="(?P<well>.*)", channels=("DNA",))
    plate = write_plate(tmp_path / "source", seed=3)
    options = ingest_plates(catalog, [plate], CONFIG, sources={"S": source}).refused[0].next_step
    assert "--set layout=regex --set 'pattern=(?P<well>.*)' --set 'channels=[\"DNA\"]' --root" in options


@pytest.mark.slow
def test_a_copy_of_a_plate_elsewhere_under_another_name_comes_in_with_a_remark(catalog, tmp_path):
    plate = write_plate(tmp_path / "elsewhere")
    names = {"screen": "new"}
    sites = tuple(dataclasses.replace(site, **names) for site in plate.sites)
    report = ingest_plates(catalog, [dataclasses.replace(plate, **names, sites=sites, problems=())], CONFIG)
    assert len(report.ingested) == 1
    remarks = catalog.table("quarantine", where="problem = 'copy_of_a_plate'").to_pylist()
    assert [row["found"].split(",")[0] for row in remarks] == ["the pixels of S/P1"]
    ingest_plates(catalog, [write_plate(tmp_path / "elsewhere", "P2", seed=1)], CONFIG)
    assert catalog.table("quarantine", where="problem = 'copy_of_a_plate'").num_rows == 1  # other pixels, no remark


def test_new_pixels_of_the_same_size_are_seen_and_replace_takes_them(catalog, tmp_path):
    plate = write_plate(tmp_path / "source")
    path = Path(plate.sites[0].image_paths[0])
    os.utime(path, (1, 1))
    assert len(ingest_plates(catalog, [plate], CONFIG).skipped) == 1  # touched, with the same pixels
    size = path.stat().st_size
    tifffile.imwrite(path, np.full((70, 100), 7, np.uint16))
    assert path.stat().st_size == size
    report = ingest_plates(catalog, [plate], CONFIG)
    assert [problem.problem for problem in report.refused] == ["plate_changed"]
    assert "other pixels in files of the same names and sizes" in report.refused[0].found
    old = visible(catalog)
    replace_plate(catalog, "S/P1", plate, CONFIG)
    new = visible(catalog)
    assert [row["well_id"] for row in new["wells"]] == [row["well_id"] for row in old["wells"]]
    assert {row["crop_id"] for row in new["crops"]}.isdisjoint(row["crop_id"] for row in old["crops"])
    assert (len(new["crops"]), len(new["qc_metrics"])) == (36, 12)
    assert catalog.sql("select min(max) m from qc_metrics").to_pylist() == [{"m": 7.0}]
    assert len(ingest_plates(catalog, [plate], CONFIG).skipped) == 1
    with pytest.raises(CatalogError, match="nothing to replace"):
        replace_plate(catalog, "S/P1", plate, CONFIG)
    restore(catalog, "S/P1", acquisition=1)
    assert visible(catalog)["crops"] == old["crops"]
    assert [(each.acquisition, each.state) for each in list_catalog_plates(catalog)] == [
        (1, "visible"),
        (2, "replaced"),
    ]


def test_checksums_find_what_times_hide(catalog, tmp_path):
    plate = write_plate(tmp_path / "source")
    path = Path(plate.sites[0].image_paths[0])
    then = path.stat()
    tifffile.imwrite(path, np.full((70, 100), 7, np.uint16))
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    forced = dataclasses.replace(CONFIG, verify="checksum")
    report = ingest_plates(catalog, [plate], forced)
    assert [problem.problem for problem in report.refused] == ["plate_changed"]


def test_a_source_that_lost_its_plate_map_takes_no_label_away(catalog, tmp_path):
    plate = dataclasses.replace(write_plate(tmp_path / "source"), wells=(), problems=())
    before = labels(catalog)
    assert len(ingest_plates(catalog, [plate], CONFIG).skipped) == 1
    assert labels(catalog) == before


def test_a_file_that_is_copied_again_comes_in_by_replace_with_the_labels_that_were_corrected(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    plate = write_plate(tmp_path / "source")
    path = Path(plate.sites[0].image_paths[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    commit(catalog, plate)
    assert catalog.table("sites").num_rows == 5
    annotate(catalog, "S/P1", map_file(tmp_path))
    path.write_bytes(whole)
    report = ingest_plates(catalog, [plate], CONFIG)
    assert [problem.problem for problem in report.refused] == ["plate_changed"]
    assert "cytolake plates replace S/P1" in report.refused[0].next_step
    replace_plate(catalog, "S/P1", plate, CONFIG)
    assert catalog.table("sites").num_rows == 6
    assert labels(catalog)["A01"] == "KRAS"


def test_an_acquisition_without_a_readable_site_replaces_nothing(catalog, tmp_path):
    plate = write_plate(tmp_path / "source")
    for site in plate.sites:
        for path in site.image_paths:
            Path(path).write_bytes(b"")
    before = visible(catalog)
    with pytest.raises(CatalogError, match="found no readable site"):
        replace_plate(catalog, "S/P1", plate, CONFIG)
    assert visible(catalog) == before


def test_of_two_corrections_at_once_the_second_is_refused(catalog, tmp_path, monkeypatch):
    row = catalog.visibility().plates.to_pylist()[0]
    retract(catalog, "P1", "first")
    contract = table_contract("plates")
    with pytest.raises(CatalogError, match="another process corrected them meanwhile"):
        catalog.change_plates(contract.rows([row]), contract.rows([row | {"state": "replaced"}]))
    assert list_catalog_plates(catalog)[0].state == "retracted"


def test_a_purge_deletes_rows_and_files_and_leaves_the_other_plates(catalog, tmp_path):
    commit(catalog, write_plate(tmp_path / "source", "P2", seed=1))
    versions = catalog.versions()
    purge(catalog, "S/P1", "consent withdrawn")
    one = ids.plate_id("S", "P1")
    assert {row["plate"] for row in rows_of(catalog, "crops")} == {"P2"}
    assert catalog.table("crops").num_rows == 36
    for path in (catalog.root / "tables").glob("*/*.parquet"):
        if path.parent.name != "plates":
            assert one.encode() not in path.read_bytes()
    assert catalog.at(versions).table("crops")["plate"].unique().to_pylist() == ["P2"]  # older versions lose it
    assert [(each.plate, each.state) for each in list_catalog_plates(catalog)] == [("P1", "purged"), ("P2", "visible")]
    report = ingest_plates(catalog, [write_plate(tmp_path / "source")], CONFIG)
    assert [problem.problem for problem in report.left_out] == ["plate_purged"]


def test_staged_wells_of_a_replacement_wait_unseen_until_it_goes_on(catalog, tmp_path):
    plate = write_plate(tmp_path / "source", seed=3)
    before = visible(catalog)
    incoming = {}
    original = replacing.ingest_acquisition

    def killed(catalog, each, config, progress):
        incoming["it"] = each
        staging = ingesting._staging(catalog, each, config)
        for sites in sites_of_wells(each.plate).values():
            stage_well(staging, sites, each.plate.batch, config.crop_size, each.of)
        raise KeyboardInterrupt

    replacing.ingest_acquisition = killed
    try:
        with pytest.raises(KeyboardInterrupt):
            replace_plate(catalog, "S/P1", plate, CONFIG)
    finally:
        replacing.ingest_acquisition = original
    assert visible(catalog) == before
    replace_plate(catalog, "S/P1", plate, CONFIG)
    assert catalog.table("crops").num_rows == 36
    staging = ingesting._staging(catalog, incoming["it"], CONFIG)
    assert not staging.wells()


def test_a_plate_without_a_readable_site_is_no_plate_that_came_in(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    plate = write_plate(tmp_path / "source")
    for site in plate.sites:
        for path in site.image_paths:
            Path(path).write_bytes(b"")
    report = ingest_plates(catalog, [plate], CONFIG)
    assert (report.ingested, report.without_sites, report.n_sites) == ((), ("S/P1",), 0)
    again = ingest_plates(catalog, [plate], CONFIG)
    assert (again.ingested, again.skipped, again.without_sites) == ((), (), ("S/P1",))


def test_a_plate_of_which_no_crop_fits_is_reported_now_and_when_it_is_skipped(tmp_path):
    catalog = empty_catalog(tmp_path / "catalog")
    plates = [write_plate(tmp_path / "source")]
    config = dataclasses.replace(CONFIG, crop_size=1000)
    report, again = (ingest_plates(catalog, plates, config) for _ in range(2))
    assert (len(report.ingested), report.n_crops, report.without_crops) == (1, 0, ("S/P1",))
    assert (len(again.skipped), again.without_crops) == (1, ("S/P1",))
    assert ingest_plates(empty_catalog(tmp_path / "other"), plates, CONFIG).without_crops == ()


@pytest.mark.parametrize("new", [{"screen": "a/b"}, {"plate": "P02/x"}])
def test_a_new_name_with_a_slash_is_refused(catalog, new):
    before = visible(catalog)
    with pytest.raises(CatalogError, match="one without a slash"):
        rename(catalog, "S/P1", **new)
    assert visible(catalog) == before


@pytest.mark.parametrize(
    "text", ["well,gene\n", "well\n", "well,gene\n,\n", "well,gene\nZ99,K\n", "well,batch\nA01,b\n"]
)
def test_a_map_without_a_perturbation_takes_none_away(catalog, tmp_path, text):
    before = visible(catalog)
    with pytest.raises(CatalogError, match=r"found no perturbation of any imaged well of plate S/P1, of which 2 have"):
        annotate(catalog, "S/P1", map_file(tmp_path, text))
    assert visible(catalog) == before


def test_two_changes_at_one_moment_are_two_changes(catalog, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(datetime, "datetime", StoppedClock)
    for _ in range(2):
        retract(catalog, "S/P1", "blurred")
        assert catalog.table("plates").num_rows == 0
        restore(catalog, "S/P1")
        assert catalog.table("plates").num_rows == 1


class StoppedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 1, 1, tzinfo=tz)


def test_numbers_of_another_form_are_no_change():
    def well(perturbation: str, **annotations: str) -> dict[str, object]:
        bare = dict.fromkeys(table_contract("wells").schema.names)
        return bare | {"well": "A01", "perturbation": perturbation, "annotations": json.dumps(annotations)}

    before = well("TP53", dilution="1.00", passage="2", lot="007", strain="A")
    assert label_changes("S", "P", [before], [well("TP53", dilution="1.0", passage="2.0", lot="007", strain="A")]) == []
    other = well("TP53", dilution="1.01", passage="2e0", lot="7", strain="B")
    changed = label_changes("S", "P", [before], [other])
    assert [(each.column, each.before, each.after) for each in changed] == [
        ("dilution", "1.00", "1.01"),
        ("lot", "007", "7"),
        ("strain", "A", "B"),
    ]
    named = label_changes("S", "P", [well("1.1")], [well("1.10")])  # names of two compounds, not numbers
    assert [each.column for each in named] == ["perturbation"]
