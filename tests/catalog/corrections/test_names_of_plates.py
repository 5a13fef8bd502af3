"""Plates of odd names, of names that look alike, and of names of before."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import CONFIG, commit, write_plate
from tests.fast_cases import fast_cases

from cytolake.catalog import CatalogError, ids
from cytolake.catalog.corrections import annotate, list_catalog_plates, purge, rename, restore, retract
from cytolake.catalog.ingest.plates import ingest_plates


def map_file(tmp_path, text):
    path = tmp_path / "new.csv"
    path.write_text(text)
    return path


def labels(catalog):
    return {row["well"]: row["gene"] for row in catalog.table("wells").to_pylist()}


def named(plate, screen, name):
    sites = tuple(dataclasses.replace(site, screen=screen, plate=name) for site in plate.sites)
    return dataclasses.replace(plate, screen=screen, plate=name, sites=sites, problems=())


def test_two_plates_whose_names_read_the_same_are_never_mixed_up(tmp_path):
    """Screen A with plate B/C, and screen A/B with plate C."""
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, named(write_plate(tmp_path / "source", "x"), "A", "B/C"))
    commit(catalog, named(write_plate(tmp_path / "source", "y", seed=1), "A/B", "C"))
    for verb in (retract, purge):
        with pytest.raises(CatalogError, match=r"found plates of several screens that read so: .* Give a plate_id"):
            verb(catalog, "A/B/C", "blurred")
    first = ids.plate_id("A", "B/C")
    retract(catalog, first, "blurred")
    restore(catalog, first)
    assert [each.state for each in list_catalog_plates(catalog)] == ["visible", "visible"]
    (renamed,) = rename(catalog, first, plate="D")
    assert (renamed["screen"], renamed["plate"], catalog.table("plates").num_rows) == ("A", "D", 2)


NAMES = ("it's a q\"uote", "a" * 300, "x\ny %_[]*é", "'); DROP TABLE plates;--")


@pytest.mark.parametrize("name", fast_cases(NAMES, *NAMES[-2:]))
def test_every_correction_takes_every_name(tmp_path, name):
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, named(write_plate(tmp_path / "source", "x"), "S", name))
    annotate(catalog, f"S/{name}", map_file(tmp_path, "well,gene\nA01,K\n"))
    rename(catalog, f"S/{name}", plate="Q")
    rename(catalog, "S/Q", plate=name)
    retract(catalog, f"S/{name}", "blurred")
    restore(catalog, f"S/{name}")
    assert (catalog.find_crops(plates=[name]).num_rows, labels(catalog)["A01"]) == (36, "K")
    assert purge(catalog, f"S/{name}", "consent withdrawn").n_rows["crops"] == 3 * 36


@pytest.mark.parametrize("verb", [retract, purge])
def test_a_plate_that_was_renamed_and_hidden_stays_out_under_its_first_name(catalog, tmp_path, verb):
    rename(catalog, "S/P1", plate="Q1")
    verb(catalog, "S/Q1", "consent withdrawn")
    report = ingest_plates(catalog, [write_plate(tmp_path / "source")], CONFIG)
    assert (report.ingested, report.refused) == ((), ())
    assert "S/Q1" in str(report.left_out[0])
    other = ingest_plates(catalog, [write_plate(tmp_path / "elsewhere" / "longer", seed=3)], CONFIG)
    assert (len(other.ingested), len(other.left_out)) == ((1, 0) if verb is retract else (0, 1))


def test_a_plate_that_was_purged_stays_out_when_its_screen_is_renamed(catalog, tmp_path):
    commit(catalog, write_plate(tmp_path / "source", "P2"))
    purge(catalog, "S/P1", "consent withdrawn")
    rename(catalog, "S", screen="T")
    report = ingest_plates(catalog, [named(write_plate(tmp_path / "source"), "T", "P1")], CONFIG)
    assert (report.ingested, len(report.left_out)) == ((), 1)


@pytest.mark.slow
def test_plates_whose_names_make_the_same_file_name_have_label_files_of_their_own(tmp_path):
    """Also one whose name is as long as a file's name may be; the command of each gives it its own labels."""
    catalog = empty_catalog(tmp_path / "catalog")
    names = ("P 1", "P_1", "P/1", "p_1", "é" * 200)
    plates = [named(write_plate(tmp_path / "source", f"x{n}", seed=n), "S", name) for n, name in enumerate(names)]
    genes = {}
    for plate in plates:
        commit(catalog, plate)
        genes[plate.plate] = f"GENE{len(genes)}"
    changed = [
        dataclasses.replace(plate, wells=({"well": "A01", "gene": genes[plate.plate], "control": ""},))
        for plate in plates
    ]
    for problem in ingest_plates(catalog, changed, CONFIG).refused:
        file = problem.next_step.partition("--plate-map ")[2].partition(" --root")[0]
        annotate(catalog, f"S/{problem.plate}", shlex.split(file)[0])
    rows = catalog.table("wells", where="well = 'A01'").to_pylist()
    assert {row["plate"]: row["gene"] for row in rows} == genes
