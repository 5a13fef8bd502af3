"""Labels on objects: what a table of cells becomes, and what it leaves alone."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.small_plate import commit, write_plate

from cytolake.catalog import Catalog
from cytolake.catalog.corrections import annotate_objects, purge, rename, retract
from cytolake.catalog.corrections.check import check_catalog
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.labelled_units import UNIT, labelled_units
from cytolake.catalog.stale import corrected_since
from cytolake.screens.plate import ScreenError

HEADER = "Metadata_Plate,Metadata_Well,Metadata_Site,ObjectNumber,Nuclei_Location_Center_X,Nuclei_Location_Center_Y"
# Crops of 32 pixels lie at x 2, 34, 66 and y 3, 35 of each site of 100 x 70 pixels.
CELLS = [
    "P1,A01,1,1,10,10,MYC_1,MYC,",
    "P1,a1,01,2,30.9,34.9,MYC_1,MYC,",
    "P1,A01,1,3,34,10,NTC_1,NTC,negcon",
    "P1,A01,2,1,70,40,MYC_1,MYC,",
    "P1,A01,2,2,80,50,TP53_1,TP53,",  # the same crop: mixed
    "P1,A01,2,3,1,1,TP53_1,TP53,",  # the margin that no crop has
    "P1,A01,2,4,10,10,,,",
]


COLUMNS = "sgRNA,Gene Symbol,control_type"


def table(folder: Path, rows: list[str], columns: str = COLUMNS, name: str = "cells.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([f"{HEADER},{columns}", *rows]) + "\n", encoding="utf-8")
    return path


def labels_of_crops(catalog: Catalog) -> dict[tuple[str, str, int, int], str]:
    """Perturbation of each crop that is of a group, by well, site, y and x."""
    units = labelled_units(catalog)
    name = dict(zip(units.rows[UNIT].to_pylist(), units.rows["perturbation"].to_pylist(), strict=True))
    group = dict(zip(*(units.group_of_crop[c].to_pylist() for c in ("crop_id", UNIT)), strict=True))
    crops = catalog.table("crops").to_pylist()
    return {(c["well"], c["site"], c["y"], c["x"]): name[group[c["crop_id"]]] for c in crops if c["crop_id"] in group}


def test_a_crop_has_the_label_of_its_objects_where_they_agree(catalog, tmp_path):
    found = annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    assert labels_of_crops(catalog) == {("A01", "1", 3, 2): "MYC", ("A01", "1", 3, 34): "NTC"}
    assert (found.n_objects, found.n_outside, found.n_crops, found.n_mixed) == (6, 1, 2, 1)
    assert found.columns["y"] == "Nuclei_Location_Center_Y"
    assert found.problems == ()


def test_a_group_has_the_place_of_its_well_and_labels_of_its_own(catalog, tmp_path):
    annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    rows = labelled_units(catalog).rows.to_pylist()
    well = next(row for row in rows if row[UNIT] == row["well_id"] and row["well"] == "A01")
    groups = {row["guide"]: row for row in rows if row[UNIT] != row["well_id"]}
    assert set(groups) == {"MYC_1", "NTC_1", "TP53_1"}
    for group in groups.values():
        assert (group["well_id"], group["row"], group["batch"]) == (well["well_id"], well["row"], well["batch"])
    assert groups["NTC_1"]["is_negative_control"] is True
    assert groups["MYC_1"]["is_negative_control"] is False
    assert (well["perturbation"], well["gene"], well["is_negative_control"]) == ("", "", False)  # TP53 by the plate map
    other = next(row for row in rows if row["well"] == "A02")
    assert other["perturbation"] == "DMSO"  # of a well without labelled objects


def test_labels_that_no_object_has_are_those_of_the_well(catalog, tmp_path):
    rows = [",".join([*row.split(",")[:6], row.split(",")[6]]) for row in CELLS]
    annotate_objects(catalog, "S/P1", table(tmp_path, rows, columns="guide"))
    units = labelled_units(catalog)
    groups = [row for row in units.rows.to_pylist() if row[UNIT] != row["well_id"]]
    assert {row["gene"] for row in groups} == {"TP53"}  # the plate map's
    assert {row["perturbation"] for row in groups} == {"MYC_1", "NTC_1", "TP53_1"}


def test_a_dry_run_writes_nothing_and_the_same_again_changes_nothing(catalog, tmp_path):
    before = catalog.versions()
    path = table(tmp_path, CELLS)
    dry = annotate_objects(catalog, "S", path, is_dry_run=True)
    assert (dry.plates, dry.is_committed, dry.n_objects) == (("S/P1",), False, 6)
    assert catalog.versions() == before
    assert annotate_objects(catalog, "S", path).is_committed
    after = catalog.versions()
    again = annotate_objects(catalog, "S", path)
    assert (again.plates, again.is_committed, again.n_before) == ((), False, 6)
    assert catalog.versions() == after


def test_another_table_takes_the_place_of_the_first_and_older_versions_keep_it(catalog, tmp_path):
    annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    then = catalog.versions()
    annotate_objects(catalog, "S/P1", table(tmp_path, CELLS[2:3], name="other.csv"))
    assert labels_of_crops(catalog) == {("A01", "1", 3, 34): "NTC"}
    assert labels_of_crops(catalog.at(then)) == {("A01", "1", 3, 2): "MYC", ("A01", "1", 3, 34): "NTC"}


def test_what_was_computed_before_is_stale(catalog, tmp_path):
    then = catalog.versions()
    annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    assert list(corrected_since(catalog, then).values()) == [("labels", "S/P1")]


def test_every_form_of_a_table_reads_alike(catalog, tmp_path):
    text = "\n".join([f"{HEADER},{COLUMNS}", *CELLS]) + "\n"
    columns = zip(*(row.split(",") for row in CELLS), strict=True)
    arrays = dict(zip(f"{HEADER},{COLUMNS}".split(","), map(pa.array, columns), strict=True))
    for name in HEADER.split(",")[3:]:
        arrays[name] = arrays[name].cast(pa.float64() if "Center" in name else pa.int32())
    pq.write_table(pa.table(arrays), tmp_path / "c.parquet")
    (tmp_path / "c.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.tsv").write_text(text.replace(",", "\t"))
    (tmp_path / "semicolons.csv").write_text(text.replace(",", ";"))
    (tmp_path / "byte order mark.csv").write_text(text, encoding="utf-8-sig")
    annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    assert labels_of_crops(catalog) == {("A01", "1", 3, 2): "MYC", ("A01", "1", 3, 34): "NTC"}
    for path in sorted(set(tmp_path.glob("*.*")) - {tmp_path / "cells.csv"}):
        found = annotate_objects(catalog, "S/P1", path)
        assert (found.plates, found.n_objects, found.n_before) == ((), 6, 6), path.name


def test_objects_of_crops_are_found_by_the_crop_id(catalog, tmp_path):
    commit(catalog, write_plate(tmp_path / "source", "P2", seed=1))
    annotate_objects(catalog, "S/P2", table(tmp_path, [CELLS[2].replace("P1", "P2")]))
    crops = catalog.table("crops", where="plate = 'P1'").sort_by("crop_id").to_pylist()
    path = tmp_path / "crops.csv"
    path.write_text(f"crop_id,gene\n{crops[0]['crop_id']},MYC\n{crops[5]['crop_id']},TP53\nunknown,TP53\n")
    found = annotate_objects(catalog, "S", path)
    assert found.plates == ("S/P1",)
    assert [each.problem for each in found.problems] == ["object_without_crop"]
    labelled = dict(
        zip(*(labelled_units(catalog).group_of_crop[c].to_pylist() for c in ("crop_id", UNIT)), strict=True)
    )
    assert {crops[0]["crop_id"], crops[5]["crop_id"]} < set(labelled)
    assert len(labelled) == 3, "the table names no crop of P2, whose objects keep their labels"
    path.write_text("crop_id,gene\nunknown,TP53\n")
    with pytest.raises(CatalogError, match="found no crop of S/P1, S/P2"):
        annotate_objects(catalog, "S", path)


def test_objects_without_coordinates_label_their_site(catalog, tmp_path):
    path = tmp_path / "sites.csv"
    path.write_text("well,site,cell,gene\nA01,1,1,MYC\nA01,2,1,MYC\nA01,2,2,TP53\n")
    found = annotate_objects(catalog, "S/P1", path)
    assert set(labels_of_crops(catalog).values()) == {"MYC"}
    assert (found.n_crops, found.n_mixed) == (6, 6)


BAD_ROWS = {
    "P1,Z09,1,1,10,10,g,MYC,": "object_without_well",
    "P1,A01,9,2,10,10,g,MYC,": "object_without_image",
    "P1,,1,3,10,10,g,MYC,": "object_without_place",
    "P1,A01,1,4,,10,g,MYC,": "object_without_place",
    "P1,A01,1,5,10,10,g,MYC,\nP1,A01,1,5,10,10,g,TP53,": "duplicate_object",
    "P1,A01,1,6,10,10,g,MYC,perhaps": "unknown_control",
    "P1,A01,1,7,10,10,g,1-Mar,": "spreadsheet_damage",
    "P1,A01,1,8,10,10,g,MYC,,more,cells": "ragged_row",
}


def test_a_bad_row_costs_itself_and_is_reported(catalog, tmp_path):
    good = "P1,A01,1,77,34,10,NTC_1,NTC,negcon"
    found = annotate_objects(catalog, "S/P1", table(tmp_path, [good, *BAD_ROWS]))
    assert sorted(each.problem for each in found.problems) == sorted(set(BAD_ROWS.values()))
    assert labels_of_crops(catalog)["A01", "1", 3, 34] == "NTC"
    assert set(BAD_ROWS.values()) <= set(catalog.to_pandas("quarantine")["problem"])


def test_objects_mostly_outside_of_their_images_are_reported_together(catalog, tmp_path):
    rows = [f"P1,A01,1,{i},5000,5000,g,MYC," for i in range(4)]
    found = annotate_objects(catalog, "S/P1", table(tmp_path, ["P1,A01,1,77,34,10,NTC_1,NTC,negcon", *rows]))
    assert [each.problem for each in found.problems] == ["object_outside_image"]
    assert ("A01", "1", 3, 34) in labels_of_crops(catalog)


TOO_LITTLE = (
    ("well,site,gene\n", "no_label|none with a place"),
    ("well,site,y,x,area\nA01,1,1,1,5\n", "perturbation, gene or guide"),
    ("site,gene\n1,MYC\n", "crop_id"),
    ("well,site,y,gene\nA01,1,1,MYC\n", "both y and x"),
    ("well,site,y,x,gene\nA01,1,north,1,MYC\n", "a number of pixels"),
    ("well,site,y,x,gene,gene\nA01,1,1,1,MYC,MYC\n", "twice"),
    ("plate,well,site,y,x,gene\nP9,A01,1,1,1,MYC\n", "found the plates P9"),
    ("well,y,x,gene\nA01,1,1,MYC\n", "no column for the site"),
    ("PK\x03\x04 workbook", "a workbook"),
)


def test_a_table_that_says_too_little_is_refused_whole(catalog, tmp_path):
    path = tmp_path / "cells.csv"
    before = catalog.versions()
    for text, said in TOO_LITTLE:
        path.write_text(text)
        with pytest.raises((ScreenError, CatalogError), match=said):
            annotate_objects(catalog, "S/P1", path)
    assert catalog.versions() == before


def test_a_declared_column_comes_before_the_vocabulary(catalog, tmp_path):
    path = table(tmp_path, ["P1,A01,1,1,10,10,x,MYC_1"], columns="gene,final call")
    annotate_objects(catalog, "S/P1", path, label_columns={"gene": "final call"})
    assert set(labels_of_crops(catalog).values()) == {"MYC_1"}
    with pytest.raises(ScreenError, match="nothing there"):
        annotate_objects(catalog, "S/P1", path, label_columns={"gene": "nothing there"})


def test_a_map_without_plates_for_several_plates_is_refused(catalog, tmp_path):
    commit(catalog, write_plate(tmp_path / "source", "P2", seed=1))
    path = tmp_path / "cells.csv"
    path.write_text("well,site,y,x,gene\nA01,1,10,10,MYC\n")
    with pytest.raises(CatalogError, match="no plate column"):
        annotate_objects(catalog, "S", path)
    both = table(tmp_path, [CELLS[0], CELLS[0].replace("P1", "P2")], name="both.csv")
    assert annotate_objects(catalog, "S", both).plates == ("S/P1", "S/P2")


def test_labels_on_objects_go_with_their_plate(catalog, tmp_path):
    annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    rename(catalog, "S/P1", plate="Q")
    assert labels_of_crops(catalog)
    assert [row["plate"] for row in labelled_units(catalog).rows.to_pylist()] == ["Q"] * 7
    retract(catalog, "S/Q", "blurred")
    assert catalog.table("objects").num_rows == 0
    purge(catalog, "S/Q", "must go")
    assert check_catalog(catalog) == []


def test_objects_of_a_killed_correction_do_not_show_and_are_found(catalog, tmp_path, monkeypatch):
    from cytolake.catalog.corrections import object_labels

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(object_labels, "change", killed)
    with pytest.raises(KeyboardInterrupt):
        annotate_objects(catalog, "S/P1", table(tmp_path, CELLS))
    assert catalog.table("objects").num_rows == 0
    found = check_catalog(catalog, is_repair=True, older_than_h=0.0)
    assert [each.what.split(":")[0] for each in found if "objects" in each.what] == ["table objects"]
    assert check_catalog(catalog, older_than_h=0.0) == []
