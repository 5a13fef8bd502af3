from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows
from tests.catalog.small_plate import commit, write_plate

import cytolake.catalog
from cytolake.catalog import CatalogError, ids
from cytolake.catalog.corrections import annotate, purge, rename, restore, retract
from cytolake.catalog.stale import check_curation, stale_artefacts
from cytolake.curation.curate import CurateConfig, curate


@pytest.fixture
def catalog(tmp_path: Path) -> cytolake.catalog.Catalog:
    catalog = empty_catalog(tmp_path / "catalog")
    for number, name in enumerate(("P1", "P2")):
        commit(catalog, write_plate(tmp_path / "source", name, seed=number))
    return catalog


@pytest.fixture
def config(tmp_path: Path) -> CurateConfig:
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs" / "all.yaml").write_text("about: all\nmin_foreground_share: 0\n")
    return CurateConfig(name="all", folder=str(tmp_path / "specs"))


def new_labels(catalog, tmp_path, gene="KRAS"):
    path = tmp_path / "map.csv"
    path.write_text(f"well,gene\nA01,{gene}\n")
    annotate(catalog, "S/P1", path)


def kinds(catalog):
    return [(each.kind, each.why, each.plates) for each in stale_artefacts(catalog)]


def write_results(catalog, curation, when):
    """A pack, a representation of it, an aligned one, and a score of each, as of a moment."""
    one, two = (ids.plate_id("S", name) for name in ("P1", "P2"))
    folder = catalog.root / "packs" / "pack"
    folder.mkdir(parents=True, exist_ok=True)
    described = {"pack_id": "pack", "curation": "all", "source_dtypes": {one: "uint16", two: "uint16"}}
    described |= {"curation_id": curation, "table_versions": catalog.versions()}
    (folder / "pack.json").write_text(json.dumps(described))
    for name, kind in (("r", "trained"), ("a", "aligned")):
        values = {"kind": kind, "pack_id": "pack", "created_at": when, "block": 0}
        add_rows(catalog, "representations", values, representation_id=name)
        values = {"benchmark": "linear_probe", "label": "gene", "metric": "m", "seed": -1, "scored_at": when}
        values |= {"score_id": f"s{name}{when}", "representation_id": name}
        add_rows(catalog, "scores", values)


def test_nothing_is_stale_before_a_correction_and_after_a_rename(catalog, config):
    write_results(catalog, curate(catalog, config).curation_id, datetime.datetime.now(datetime.UTC))
    assert kinds(catalog) == []
    rename(catalog, "S", screen="T")
    assert kinds(catalog) == []


def test_other_labels_make_curation_scores_and_aligned_profiles_stale_and_no_pack(catalog, config, tmp_path):
    old = curate(catalog, config).curation_id
    write_results(catalog, old, datetime.datetime.now(datetime.UTC))
    new_labels(catalog, tmp_path)
    labels = ("labels", ("S/P1",))
    assert kinds(catalog) == [
        ("curation", *labels),
        ("representation", *labels),
        ("score", *labels),
        ("score", *labels),
    ]
    assert {each.identity for each in stale_artefacts(catalog) if each.kind == "representation"} == {"a"}
    with pytest.raises(CatalogError, match=r"1 of its plates were corrected since, the first S/P1: other labels"):
        check_curation(catalog, old)


def test_what_is_computed_again_is_no_longer_stale(catalog, config, tmp_path):
    old = curate(catalog, config).curation_id
    write_results(catalog, old, datetime.datetime.now(datetime.UTC))
    new_labels(catalog, tmp_path)
    new = curate(catalog, config).curation_id
    assert new != old
    check_curation(catalog, new)
    later = datetime.datetime.now(datetime.UTC)
    values = {"benchmark": "linear_probe", "label": "gene", "metric": "m", "seed": -1, "scored_at": later}
    add_rows(catalog, "scores", values, score_id="new", representation_id="r")
    assert [each.identity for each in stale_artefacts(catalog) if each.kind != "score"] == ["a"]
    assert [each.kind for each in stale_artefacts(catalog)].count("score") == 1  # of the aligned one


def test_labels_that_were_corrected_and_corrected_back_leave_nothing_stale(catalog, config, tmp_path):
    new_labels(catalog, tmp_path, "KRAS")
    first = curate(catalog, config)
    new_labels(catalog, tmp_path, "TP53")
    assert kinds(catalog) == [("curation", "labels", ("S/P1",))]
    assert curate(catalog, config) != first
    new_labels(catalog, tmp_path, "KRAS")
    assert kinds(catalog) == []
    assert curate(catalog, config) == first  # found again: the newest run is that of the labels in between


@pytest.mark.slow
def test_a_plate_that_goes_makes_stale_what_has_its_pixels_until_it_is_back(catalog, config):
    write_results(catalog, curate(catalog, config).curation_id, datetime.datetime.now(datetime.UTC))
    retract(catalog, "S/P2", "blurred")
    pixels = ("pixels", ("S/P2",))
    assert [each[0] for each in kinds(catalog)] == ["curation", "pack", *["representation"] * 2, *["score"] * 2]
    assert all(each[1:] == pixels for each in kinds(catalog))
    restore(catalog, "S/P2")
    assert kinds(catalog) == []
    found = purge(catalog, "S/P2", "consent withdrawn")
    assert (found.packs, found.representations) == (("pack",), ("a", "r"))
    assert all(each[1:] == pixels for each in kinds(catalog))


@pytest.mark.slow
def test_a_newer_pack_and_its_representations_take_the_place_of_those_of_before_a_correction(catalog, config):
    when = datetime.datetime.now(datetime.UTC)
    write_results(catalog, curate(catalog, config).curation_id, when)
    retract(catalog, "S/P2", "blurred")
    curate(catalog, config)
    described = json.loads((catalog.root / "packs" / "pack" / "pack.json").read_text())
    newer = described | {"pack_id": "newer", "built_at": "2999-01-01", "table_versions": catalog.versions()}
    newer["source_dtypes"] = {ids.plate_id("S", "P1"): "uint16"}
    (catalog.root / "packs" / "newer").mkdir()
    (catalog.root / "packs" / "newer" / "pack.json").write_text(json.dumps(newer))
    assert [each[0] for each in kinds(catalog)] == [*["representation"] * 2, *["score"] * 2]
    for name, kind in (("r2", "trained"), ("a2", "aligned")):
        values = {"kind": kind, "pack_id": "newer", "created_at": datetime.datetime.now(datetime.UTC), "block": 0}
        add_rows(catalog, "representations", values, representation_id=name)
    assert kinds(catalog) == []


@pytest.mark.parametrize(("seconds", "is_stale"), [(-1, True), (0, True), (1, False)])
def test_what_was_computed_at_the_moment_of_a_correction_is_stale(catalog, tmp_path, seconds, is_stale):
    """A clock may stand still between the two; to compute it once more costs less than to trust it."""
    path = tmp_path / "map.csv"
    path.write_text("well,gene\nA01,KRAS\n")
    annotate(catalog, "S/P1", path)
    (row,) = catalog.table("plates", where="plate = 'P1'").to_pylist()
    when = row["changed_at"] + datetime.timedelta(seconds=seconds)
    described = {"kind": "aligned", "architecture": "a", "block": 0, "pooling": "mean", "created_at": when}
    add_rows(catalog, "representations", described, representation_id="r", pack_id="")
    profile = {"well_id": "w", "plate_id": row["plate_id"], "n_crops": 1, "profile": [0.0]}
    add_rows(catalog, "profiles", profile, representation_id="r")
    assert [each.identity for each in stale_artefacts(catalog)] == (["r"] if is_stale else [])
