from __future__ import annotations

import dataclasses

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import CONFIG, write_plate

from cytolake.catalog.corrections import annotate, replace_plate, retract
from cytolake.catalog.corrections.check import check_catalog
from cytolake.catalog.ingest.plates import ingest_plates
from cytolake.screens.plate_annotation import label_plate
from cytolake.screens.plate_map import read_plate_map
from cytolake.storage.source_folder import SourceFolder

OF_HISTORY = {
    *("plate_id", "site_id", "crop_id", "acquisition", "id_names", "edition", "wells_edition", "sites_edition"),
    *("labels_source", "content_hash", "state", "why"),
}
"""Columns that say how a row came about. The last three are of `plates`: content_hash has the map as it was listed."""


def unlabelled(plate):
    return dataclasses.replace(plate, wells=(), problems=())


def visible(catalog):
    found = {}
    for name in ("plates", "wells", "sites", "crops", "qc_metrics"):
        rows = [
            {k: v for k, v in row.items() if k not in OF_HISTORY and not k.endswith("_at")}
            for row in catalog.table(name).to_pylist()
        ]
        found[name] = sorted(rows, key=lambda row: str(sorted(row.items())))
    return found


def refusals(catalog, *plates):
    return [problem.problem for problem in ingest_plates(catalog, plates, CONFIG).refused]


def test_a_month_of_corrections_leaves_what_one_ingest_of_the_final_state_gives(tmp_path):
    catalog = empty_catalog(tmp_path / "month")
    first = unlabelled(write_plate(tmp_path / "source", "P1"))
    whole = unlabelled(write_plate(tmp_path / "source", "P2", seed=1))
    half = dataclasses.replace(whole, sites=whole.sites[:3])
    assert refusals(catalog, first) == []
    assert refusals(catalog, first, half) == []
    assert refusals(catalog, first, whole) == ["plate_changed"]
    replace_plate(catalog, "S/P2", whole, CONFIG)

    path = tmp_path / "source" / "platemap.csv"

    def listed(plate):
        labelled = label_plate(plate, read_plate_map(SourceFolder(path.parent), path.name, "S"))
        return dataclasses.replace(labelled, problems=())

    text = "plate,well,gene,control,batch\n" + "".join(
        f"{plate},{well},{gene},{control},day 1\n"
        for plate in ("P1", "P2")
        for well, gene, control in (("A01", "TP53", ""), ("A02", "", "negative"), ("B01", "MYC", ""))
    )
    path.write_text(text)
    assert refusals(catalog, listed(first), listed(whole)) == ["labels_changed", "labels_changed"]
    annotate(catalog, "S", path)
    assert refusals(catalog, listed(first), listed(whole)) == []
    path.write_text(text.replace("B01,MYC", "B01,KRAS"))
    annotate(catalog, "S", path)

    again = listed(unlabelled(write_plate(tmp_path / "source", "P1", seed=7)))
    assert refusals(catalog, again, listed(whole)) == ["plate_changed"]
    replace_plate(catalog, "S/P1", again, CONFIG)
    retract(catalog, "S/P2", "contaminated")
    assert refusals(catalog, again, listed(whole)) == []

    once = empty_catalog(tmp_path / "once")
    assert refusals(once, again) == []
    assert visible(catalog) == visible(once)
    assert catalog.table("plates").num_rows == 1
    assert check_catalog(catalog, older_than_h=0) == []


@pytest.mark.parametrize("verb", ["annotate", "replace"])
def test_a_query_that_began_before_a_correction_ends_with_what_was_there(catalog, tmp_path, verb):
    dataset = catalog.dataset("wells")
    before = catalog.table("wells").sort_by("well_id")
    path = tmp_path / "map.csv"
    path.write_text("well,gene\nA01,KRAS\n")
    if verb == "annotate":
        annotate(catalog, "S/P1", path)
    else:
        replace_plate(catalog, "S/P1", write_plate(tmp_path / "source", seed=2), CONFIG)
    assert dataset.to_table().sort_by("well_id").equals(before)
