"""An open table is used again as long as nobody has committed to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deltalake import DeltaTable
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.processes import run_at_once

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, opened, table_contract


def append(catalog: Catalog, curation: str) -> None:
    blank = dict.fromkeys(table_contract("curation_runs").schema.names)
    row = blank | {"curation_id": curation, "curation": curation}
    catalog.append("curation_runs", table_contract("curation_runs").rows([row]), transaction=curation)


def append_elsewhere(root: str, curation: str) -> None:
    append(cytolake.catalog.open(root), curation)


def curations(catalog: Catalog) -> set[str]:
    return set(catalog.table("curation_runs")["curation_id"].to_pylist())


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return empty_catalog(tmp_path / "lake")


@pytest.fixture
def opens(monkeypatch) -> list[str]:
    """Paths that Delta's own reader has opened."""
    paths = []

    class Counted(DeltaTable):
        def __init__(self, path, **how):
            paths.append(Path(path).name)
            super().__init__(path, **how)

    monkeypatch.setattr(opened, "DeltaTable", Counted)
    return paths


def test_a_table_is_opened_once_between_two_commits(catalog, opens):
    append(catalog, "a")
    assert curations(catalog) == curations(catalog) == {"a"}
    assert catalog.sql("select curation_id from curation_runs").num_rows == 1
    assert "curation_runs" not in opens  # whoever has written it has it open


def test_a_commit_of_another_process_is_seen_at_once(catalog):
    append(catalog, "a")
    before, version = curations(catalog), catalog.versions()["curation_runs"]
    assert run_at_once(append_elsewhere, [(str(catalog.root), "b")])[0] == [0]
    assert before == {"a"}
    assert curations(catalog) == {"a", "b"}
    assert catalog.versions()["curation_runs"] == version + 1


def test_an_older_version_stays_what_it_was(catalog, opens):
    append(catalog, "a")
    then = catalog.at(catalog.versions())
    append(catalog, "b")
    for _ in range(3):
        assert curations(then) == {"a"}
        assert curations(catalog) == {"a", "b"}
    assert opens.count("curation_runs") == 1
    with pytest.raises(CatalogError, match=r"no readable version 9\. There are 0 to"):
        catalog.at({"curation_runs": 9}).table("curation_runs")


def test_another_catalog_at_the_same_place_is_another(tmp_path):
    for name in ("a", "b"):
        catalog = empty_catalog(tmp_path / "lake")
        assert curations(catalog) == set()
        append(catalog, name)
        assert curations(catalog) == {name}
        shutil.rmtree(tmp_path / "lake")
    with pytest.raises(CatalogError, match="no catalog there"):
        cytolake.catalog.open(tmp_path / "lake")


def test_few_tables_are_kept(catalog, monkeypatch):
    monkeypatch.setattr(opened, "N_KEPT", 2)
    catalog.versions()
    assert len(opened._kept) == 2
    assert len(catalog.versions()) > 2


def test_files_are_listed_once_for_each_open_table_and_forgotten_with_it(catalog, monkeypatch):
    listed = []
    real = DeltaTable.to_pyarrow_dataset
    monkeypatch.setattr(DeltaTable, "to_pyarrow_dataset", lambda table: listed.append(table.version()) or real(table))
    monkeypatch.setattr(opened, "_datasets", {})
    append(catalog, "first")
    for _ in range(3):
        assert curations(catalog) == {"first"}
    append(catalog, "second")
    for _ in range(3):
        assert curations(catalog) == {"first", "second"}
    assert len(listed) == len(set(listed)) == 2
    assert len(opened._datasets) == 1
    monkeypatch.setattr(opened, "MOST_FILES_KEPT", 2)
    append(catalog, "third")
    for _ in range(2):
        assert curations(catalog) == {"first", "second", "third"}
    assert len(listed) == 4
    assert not opened._datasets
