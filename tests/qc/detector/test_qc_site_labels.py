from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError
from cytolake.qc.detector import site_labels
from cytolake.qc.detector.site_labels import clean_sites, focus_labels, joined, plate_map_labels, simulated_labels
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS


@pytest.fixture(scope="module")
def folder(simulated_root: Path) -> Path:
    return simulated_root


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Catalog:
    return cytolake.catalog.open(folder / "catalog")


def test_the_plate_map_labels_the_sites_that_it_calls_spoilt_and_the_others_normal(catalog, folder):
    with (folder / "screens" / "simulated" / "platemap.csv").open() as file:
        declared = {(row["plate"], row["well"]): row["artefact"] or "normal" for row in csv.DictReader(file)}
    rows = {row["site_id"]: row for row in catalog.table("sites").to_pylist()}
    plan = plate_map_labels(catalog, "artefact", 100)
    said = {
        (rows[site.site_id]["plate"], rows[site.site_id]["well"]): site.label
        for sites in plan.values()
        for site in sites
    }
    assert said == declared
    few = [site.label for sites in plate_map_labels(catalog, "artefact", 4).values() for site in sites]
    assert Counter(few)["normal"] == 3 * 4
    assert len(few) - 12 == sum(label != "normal" for label in declared.values())


def test_an_artefact_of_one_site_leaves_the_other_sites_of_its_well_normal(catalog, monkeypatch):
    rows = catalog.table("sites").to_pylist()
    twins = [row | {"site": site, "site_id": f"{row['site_id']}-{site}"} for row in rows for site in ("1", "2")]
    monkeypatch.setattr(site_labels, "_sites", lambda _: twins)
    labels = [site.label for sites in plate_map_labels(catalog, "artefact", 1000).values() for site in sites]
    assert len(labels) == len(twins)
    assert sum(label != "normal" for label in labels) == 9  # as many as spoilt wells, not twice as many


def test_sites_of_planes_out_of_focus_are_spoilt(catalog, monkeypatch):
    rows = catalog.table("sites").to_pylist()
    stacks = [row | {"z": z, "site_id": f"{row['site_id']}-{z}"} for row in rows for z in ("0", "aligned 10", "20")]
    monkeypatch.setattr(site_labels, "_sites", lambda _: stacks)
    labels = Counter(
        (site.site_id.rpartition("-")[2], site.label)
        for sites in focus_labels(catalog, ("aligned 10",), 1000).values()
        for site in sites
    )
    assert labels == {("aligned 10", "normal"): 36, ("0", "defocus"): 36, ("20", "defocus"): 36}
    with pytest.raises(CatalogError, match=r"planes '0', '20', 'aligned 10'; expected '5' and others"):
        focus_labels(catalog, ("5",), 10)


def test_artefacts_are_put_into_clean_sites_of_all_plates_in_turn(catalog):
    spoilt = {
        site.site_id
        for sites in plate_map_labels(catalog, "artefact", 100).values()
        for site in sites
        if site.label != "normal"
    }
    plan = joined(
        clean_sites(catalog, spoilt, 100), simulated_labels(catalog, spoilt, 6, (0.5, 1.0), 0, with_normal=False)
    )
    sites = [site for of_plate in plan.values() for site in of_plate]
    assert not spoilt & {site.site_id for site in sites}
    assert Counter(site.label for site in sites) == {"normal": 36 - len(spoilt)} | dict.fromkeys(ARTEFACT_KINDS, 6)
    for of_plate in plan.values():
        assert Counter(site.label for site in of_plate if site.spoiling) == dict.fromkeys(ARTEFACT_KINDS, 2)
    assert all(0.5 <= site.spoiling.severity <= 1 for site in sites if site.spoiling)
    assert all((site.spoiling is None) == (site.label == "normal") for site in sites)


def test_a_column_that_no_plate_map_has_is_refused_with_those_there_are(catalog):
    with pytest.raises(CatalogError, match=r"no plate map has the column 'quality'. There are: .*artefact"):
        plate_map_labels(catalog, "quality", 10)
