"""Catalogs that lost a table, rows or a pack, and runs that were killed before a repair and go on after it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable
from tests.catalog.small_plate import commit, embed, write_plate

import cytolake.catalog
from cytolake.catalog import CatalogError
from cytolake.catalog.corrections import annotate, list_catalog_plates, purge, rename
from cytolake.catalog.corrections.check import check_catalog
from cytolake.catalog.tables import Catalog


def all_rows(catalog, name):
    """Number of rows of a table, shown or not."""
    return DeltaTable(f"{catalog.place}/tables/{name}").to_pyarrow_dataset().count_rows()


@pytest.fixture
def killed_before_it_shows(monkeypatch):
    """Calls something that is killed at its last commit, that of `plates`."""
    original = Catalog._commit

    def killed(self, name, rows, **how):
        if name == "plates" and (callable(rows) or rows.num_rows):
            raise KeyboardInterrupt
        return original(self, name, rows, **how)

    def call(run):
        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "_commit", killed)
            with pytest.raises(KeyboardInterrupt):
                run()

    return call


def test_what_a_repair_deleted_is_written_again_by_the_same_ingest(catalog, tmp_path, killed_before_it_shows):
    plate = write_plate(tmp_path / "source", "P2")
    killed_before_it_shows(lambda: commit(catalog, plate))
    assert all_rows(catalog, "crops") == 72
    assert check_catalog(catalog, is_repair=True, older_than_h=0)
    assert all_rows(catalog, "crops") == 36
    commit(catalog, plate)
    assert (catalog.table("crops").num_rows, catalog.table("wells").num_rows) == (72, 8)
    assert check_catalog(catalog, older_than_h=0) == []


@pytest.mark.parametrize("verb", ["annotate", "rename"])
def test_what_a_repair_deleted_is_written_again_by_the_same_correction(catalog, tmp_path, killed_before_it_shows, verb):
    path = tmp_path / "map.csv"
    path.write_text("well,gene,batch\nA01,KRAS,other\nA02,TP53,other\nB01,MYC,other\n")
    correct = {
        "annotate": lambda: annotate(catalog, "S/P1", path),
        "rename": lambda: rename(catalog, "S/P1", plate="Q1"),
    }[verb]
    killed_before_it_shows(correct)
    assert check_catalog(catalog, is_repair=True, older_than_h=0)
    correct()
    assert catalog.table("crops").num_rows == 36
    assert catalog.table("wells").num_rows == {"annotate": 3, "rename": 4}[verb]
    assert check_catalog(catalog, older_than_h=0) == []


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_repair_deletes_nothing_where_the_table_plates_was_lost(catalog, is_made_again):
    shutil.rmtree(Path(catalog.place, "tables/plates"))
    if is_made_again:
        catalog = cytolake.catalog.open(catalog.root, create=True)
    (found,) = check_catalog(catalog, is_repair=True, older_than_h=0)
    assert "table plates" in found.what
    assert "Put" in found.next_step
    assert not found.is_repaired
    assert [all_rows(catalog, name) for name in ("wells", "sites", "crops")] == [4, 6, 36]


def test_tables_that_were_deleted_are_findings(catalog):
    names = ("wells", "sites", "crops", "qc_metrics", "quarantine")
    for name in names:
        shutil.rmtree(Path(catalog.place, "tables", name))
    found = " | ".join(each.what for each in check_catalog(catalog))
    assert [name for name in names if f"table {name} is not there" not in found] == []


def test_damaged_packs_stop_no_purge_and_are_named(catalog):
    described = ("{", "[]", '{"pack_id": "damaged3"}', '{"pack_id": "damaged4", "source_dtypes": 3}')
    for number, text in enumerate(described, start=1):
        folder = catalog.root / "packs" / f"damaged{number}"
        folder.mkdir(parents=True)
        (folder / "pack.json").write_text(text)
    assert sorted(purge(catalog, "S/P1", "consent withdrawn").packs) == [f"damaged{n}" for n in range(1, 5)]
    assert [each.state for each in list_catalog_plates(catalog)] == ["purged"]


def test_a_version_of_before_a_purge_is_read_or_refused_and_never_a_part(catalog, tmp_path):
    """Tables with files of a plate each lose the plate; one whose file held two plates is whole no more."""
    commit(catalog, write_plate(tmp_path / "source", "P2"))
    embed(catalog)
    catalog.tag("before")
    purge(catalog, "S/P1", "consent withdrawn")
    before = catalog.at("before")
    counts = {name: before.table(name).num_rows for name in ("plates", "wells", "sites", "crops", "qc_metrics")}
    assert counts == {"plates": 1, "wells": 4, "sites": 6, "crops": 36, "qc_metrics": 12}
    with pytest.raises(CatalogError, match=r"table embeddings, version .* Read a version of after the purge"):
        before.table("embeddings")
    assert catalog.table("embeddings").num_rows == 36
