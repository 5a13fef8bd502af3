from __future__ import annotations

import re

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable
from tests.catalog.small_plate import CONFIG, commit, commit_plate, embed, stage, write_plate

from cytolake.catalog import CatalogError
from cytolake.catalog.corrections import annotate, purge, rename, replace_plate, retract
from cytolake.catalog.ingest.plate_content import content_hash
from cytolake.catalog.tables import Catalog
from cytolake.catalog.views import view_text

COUNTED = ("plates", "wells", "sites", "crops", "qc_metrics", "embeddings", "quarantine")


def by_duckdb(catalog):
    """Counts by the printed script; the extension that scans Delta tables is not needed to test the join."""
    text = view_text(catalog, "duckdb")
    with duckdb.connect() as database:
        for number, path in enumerate(dict.fromkeys(re.findall(r"delta_scan\('([^']*)'\)", text))):
            database.register(f"raw_{number}", DeltaTable(path).to_pyarrow_dataset())
            text = text.replace(f"delta_scan('{path}')", f"raw_{number}")
        database.execute(text)
        return {name: database.execute(f"select count(*) from {name}").fetchone()[0] for name in COUNTED}


def by_polars(catalog):
    names: dict[str, pl.LazyFrame] = {}
    exec(view_text(catalog, "polars"), names)
    return {name: names[name].select(pl.len()).collect().item() for name in COUNTED}


def by_us(catalog):
    return {name: catalog.table(name).num_rows for name in COUNTED}


def test_others_see_what_we_see_after_every_correction(catalog, tmp_path):
    embed(catalog)
    path = tmp_path / "map.csv"
    path.write_text("well,gene,batch\nA01,KRAS,other\n")
    verbs = (
        lambda: annotate(catalog, "S/P1", path),
        lambda: rename(catalog, "S/P1", plate="Q1"),
        lambda: replace_plate(catalog, "S/Q1", write_plate(tmp_path / "source", seed=5), CONFIG),
        lambda: commit(catalog, write_plate(tmp_path / "source", "P2")),
        lambda: retract(catalog, "S/P2", "blurred"),
        lambda: purge(catalog, "S/Q1", "consent withdrawn"),
    )
    for verb in verbs:
        verb()
        assert by_duckdb(catalog) == by_polars(catalog) == by_us(catalog)


@pytest.mark.parametrize("moment", ["sites", "wells", "plates"])
def test_others_see_nothing_of_a_plate_whose_ingest_was_killed(catalog, tmp_path, monkeypatch, moment):
    before = by_us(catalog)
    plate = write_plate(tmp_path / "source", "P2")
    stage(catalog, plate)
    original = Catalog._commit

    def killed(self, name, rows, **how):
        is_claim = name == "plates" and not rows.num_rows
        if name == moment and not is_claim:
            raise KeyboardInterrupt
        return original(self, name, rows, **how)

    monkeypatch.setattr(Catalog, "_commit", killed)
    with pytest.raises(KeyboardInterrupt):
        commit_plate(catalog, plate, content_hash(plate), CONFIG)
    monkeypatch.undo()
    shown = {name: n for name, n in before.items() if name != "quarantine"}
    for counts in (by_duckdb(catalog), by_polars(catalog), by_us(catalog)):
        assert {name: n for name, n in counts.items() if name != "quarantine"} == shown
    if moment in ("crops", "qc_metrics", "wells", "plates"):
        raw = DeltaTable(f"{catalog.place}/tables/sites").to_pyarrow_dataset().count_rows()
        assert raw == 2 * before["sites"]  # what a reader that does not join would count


def test_a_format_that_is_not_known_is_refused(catalog):
    with pytest.raises(CatalogError, match="expected duckdb or polars"):
        view_text(catalog, "spark")
