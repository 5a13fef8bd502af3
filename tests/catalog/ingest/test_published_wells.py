"""Wells of published tables in a catalog: once, never over what is there, and never in the way of an ingest."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pyarrow as pa
import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import CONFIG, commit, contents, stage, write_plate
from tests.fast_cases import fast_cases

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, ids
from cytolake.catalog.ingest.plate_content import content_hash
from cytolake.catalog.ingest.plates import ingest_plates
from cytolake.catalog.ingest.published_wells import import_wells
from cytolake.catalog.visibility import INGESTED_TABLES
from cytolake.qc.verdicts import QcConfig, judge_sites

ROWS = [
    {"well": "a1", "gene": "TP53", "guide": "TP53_1", "dose": None, "control": "", "SMILES": ""},
    {"well": "A02", "gene": "", "guide": "", "dose": None, "control": "negative", "SMILES": ""},
    {"well": "AF48", "gene": "", "guide": "", "compound": "aspirin", "dose": 0.25, "control": "", "SMILES": "CC"},
]


def wells_table(plates=("P1", "P2"), rows=ROWS, **changes) -> pa.Table:
    """The rows on every plate of a screen."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.Table.from_pylist(
        [
            {"screen": "S", "plate": plate, "batch": "B"} | {name: row.get(name) for name in names} | changes
            for plate in plates
            for row in rows
        ]
    )


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    return empty_catalog(tmp_path / "catalog")


def test_rows_are_those_that_an_ingest_of_the_plate_map_would_write(catalog):
    assert import_wells(catalog, wells_table(), "wells.csv") == 6
    wells = catalog.table("wells", where="plate = 'P2'").sort_by([("row", "ascending"), ("column", "ascending")])
    first, control, last = wells.to_pylist()
    assert first == {
        "well_id": ids.well_id("S", "P2", "A01"), "plate_id": ids.plate_id("S", "P2"), "screen": "S", "plate": "P2",
        "batch": "B", "well": "A01", "row": 0, "column": 0, "perturbation": "TP53", "gene": "TP53", "pathway": "",
        "guide": "TP53_1", "compound": "", "dose": None, "replicate": "", "control": "", "is_negative_control": False,
        "has_images": False, "annotations": "{}", "edition": None,
    }  # fmt: skip
    assert (control["control"], control["is_negative_control"]) == ("negative", True)
    assert (last["row"], last["column"], last["compound"], last["dose"]) == (31, 47, "aspirin", 0.25)
    assert json.loads(last["annotations"]) == {"smiles": "CC"}
    plates = catalog.table("plates").to_pylist()
    assert [(p["reader"], p["source"], p["n_wells"], p["n_sites"], p["n_crops"]) for p in plates] == [
        ("table", "wells.csv", 3, 0, 0)
    ] * 2


def test_the_same_table_again_and_a_wider_one_write_only_what_is_new(catalog):
    import_wells(catalog, wells_table())
    versions = catalog.versions()
    assert import_wells(catalog, wells_table(), "another/place.csv") == 0
    assert catalog.versions() == versions
    assert import_wells(catalog, wells_table(("P1", "P2", "P3"))) == 3
    assert catalog.table("wells").num_rows == len(set(catalog.table("wells")["well_id"].to_pylist())) == 9


OTHER_FACTS = (
    (0, {"gene": "MYC"}, "A01 of plate P1, screen S: found perturbation 'TP53' in the catalog, expected 'MYC'"),
    (2, {"dose": 0.5}, "well AF48 of plate P1, screen S: found dose 0.25 in the catalog, expected 0.5"),
    (2, {"dose": None}, "found dose 0.25 in the catalog, expected None"),
    (0, {"control": "negative"}, "found control '' in the catalog, expected 'negative'"),
    (0, {"well": "H12"}, "well H12 of plate P1, screen S: found no such well in the catalog"),
)


def test_a_well_that_is_there_with_other_facts_is_named_and_nothing_is_written(catalog):
    import_wells(catalog, wells_table(("P1",)))
    versions = catalog.versions()
    for row, field, said in OTHER_FACTS:
        rows = [each | (field if number == row else {}) for number, each in enumerate(ROWS)]
        with pytest.raises(ValueError, match=said):
            import_wells(catalog, wells_table(("P1", "P2"), rows), "wells.csv")
    assert catalog.versions() == versions


def test_wells_with_images_stay_as_they_are(catalog, tmp_path):
    commit(catalog, write_plate(tmp_path / "source"))
    before = contents(catalog)
    facts = ("well", "batch", "perturbation", "gene", "compound", "control")
    same = [{name: row[name] for name in facts} for row in sorted(before["wells"], key=lambda row: row["well"])]
    assert import_wells(catalog, wells_table(("P1",), same)) == 0
    assert contents(catalog) == before
    assert import_wells(catalog, wells_table(("P1", "P2"), same)) == 4
    assert [row for row in contents(catalog)["wells"] if row["plate"] == "P1"] == before["wells"]
    with pytest.raises(ValueError, match=r"well A01 of plate P1, screen S: found guide '' in the catalog"):
        import_wells(catalog, wells_table(("P1",), [same[0] | {"guide": "TP53_1"}, *same[1:]]))


def test_images_of_such_a_plate_are_refused_and_under_another_name_they_come_in(catalog, tmp_path):
    import_wells(catalog, wells_table(("P1",)), "wells.csv")
    before = contents(catalog)
    plate = write_plate(tmp_path / "source")
    for _ in range(2):
        report = ingest_plates(catalog, [plate], CONFIG)
        assert not report.ingested
        (refused,) = report.refused
        assert refused.problem == "plate_without_images"
        assert "wells.csv" in refused.expected
        assert "another name" in refused.next_step
        assert catalog.table("quarantine", where="problem = 'plate_without_images'").num_rows == 1
    assert {name: rows for name, rows in contents(catalog).items() if name != "quarantine"} == {
        name: rows for name, rows in before.items() if name != "quarantine"
    }
    commit(catalog, write_plate(tmp_path / "source", "P1 images"))
    assert catalog.table("crops").num_rows == 36


def test_rows_that_a_killed_ingest_left_do_not_show(catalog, tmp_path):
    plate = write_plate(tmp_path / "source")
    show = catalog.show_plate
    catalog.show_plate = lambda *_, **__: pytest.fail("killed")
    with pytest.raises(pytest.fail.Exception, match="killed"):
        commit(catalog, plate)
    catalog.show_plate = show
    assert import_wells(catalog, wells_table(("P1",))) == 3
    assert catalog.table("wells").num_rows == 3
    assert all(catalog.table(name).num_rows == 0 for name in INGESTED_TABLES if name != "wells")


@pytest.mark.parametrize("n_writes", fast_cases([0, 1, len(INGESTED_TABLES)], 1))
def test_a_killed_import_leaves_nothing_to_see_and_goes_on_or_gives_way_to_images(tmp_path, n_writes):
    for then in ("import", "ingest"):
        catalog = empty_catalog(tmp_path / then / "catalog")
        nothing = contents(catalog)
        write = catalog.write_plates
        left = iter([True] * n_writes)

        def some(*arguments, left=left, write=write):
            next(left, None) or pytest.fail("killed")
            return write(*arguments)

        catalog.write_plates = some
        catalog.show_plates = lambda *_: pytest.fail("killed")
        with pytest.raises(pytest.fail.Exception, match="killed"):
            import_wells(catalog, wells_table())
        assert contents(catalog) == nothing
        catalog = cytolake.catalog.open(catalog.root)
        whole = empty_catalog(tmp_path / then / "whole")
        for each in (catalog, whole):
            if then == "import":
                import_wells(each, wells_table())
            else:
                commit(each, write_plate(tmp_path / then))
        assert contents(catalog) == contents(whole)


@pytest.mark.parametrize(
    ("moment", "other"),
    [
        (INGESTED_TABLES[0], ("P1", "P2")),
        ("plates", ("P1", "P2")),
        (INGESTED_TABLES[0], ("P2",)),
        (INGESTED_TABLES[-1], ("P2", "P3")),
        ("plates", ("P2", "P3")),
    ],
)
def test_an_import_that_runs_at_the_time_of_another_of_the_same_wells_writes_them_once(catalog, moment, other):
    second = cytolake.catalog.open(catalog.root)
    write, show = catalog.write_plates, catalog.show_plates

    def write_late(name, rows, contents_):
        if name == moment:
            import_wells(second, wells_table(other))
        return write(name, rows, contents_)

    def show_late(rows, contents_):
        if moment == "plates":
            import_wells(second, wells_table(other))
        return show(rows, contents_)

    catalog.write_plates, catalog.show_plates = write_late, show_late
    refused = "another process writes wells or images of the same plates now"
    with nullcontext() if other == ("P1", "P2") else pytest.raises(CatalogError, match=refused):
        import_wells(catalog, wells_table())
    import_wells(cytolake.catalog.open(catalog.root), wells_table())
    there = sorted(catalog.table("wells")["well_id"].to_pylist())
    assert there == sorted(set(there))
    assert len(there) == 3 * len({"P1", "P2", *other})
    assert catalog.table("plates").num_rows == len({"P1", "P2", *other})


@pytest.mark.parametrize("moment", [INGESTED_TABLES[0], INGESTED_TABLES[-1]])
def test_an_ingest_that_claims_the_plate_meanwhile_wins_and_the_import_says_so(catalog, tmp_path, moment):
    plate = write_plate(tmp_path / "source")
    stage(catalog, plate)
    second = cytolake.catalog.open(catalog.root)
    write = catalog.write_plates

    def write_late(name, rows, contents_):
        if name == moment:
            commit(second, plate)
        return write(name, rows, contents_)

    catalog.write_plates = write_late
    with pytest.raises(ValueError, match="another process writes wells or images of the same plates now"):
        import_wells(catalog, wells_table())
    whole = empty_catalog(tmp_path / "whole")
    commit(whole, plate)
    assert contents(catalog) == contents(whole)
    assert catalog.table("plates")["content_hash"].to_pylist() == [content_hash(plate)]


UNUSABLE = (
    (wells_table().drop_columns(["plate"]), "wells.csv: found the columns screen, batch, .*plate and well among them"),
    (wells_table(rows=[{"well": "B99"}]), "row 0: found screen 'S', plate 'P1' and well 'B99'"),
    (wells_table(screen=None), "row 0: found screen '', plate 'P1'"),
    (wells_table(rows=[{"well": "A1"}, {"well": "a01"}]), "row 1: well A01 of plate P1 comes a second time"),
    (wells_table(rows=[{"well": "A1", "batch": "X"}, {"well": "A2", "batch": "Y"}]), "batches 'X', 'Y', expected"),
    (wells_table().slice(0, 0), "wells.csv: found no rows"),
)


def test_a_table_that_cannot_be_used_is_refused_with_the_row(catalog):
    versions = catalog.versions()
    for table, said in UNUSABLE:
        with pytest.raises(ValueError, match=said):
            import_wells(catalog, table, "wells.csv")
    assert catalog.versions() == versions


@pytest.mark.parametrize(
    ("cells", "problem"), [({"control": "what"}, "unknown_control"), ({"dose": "1 uM"}, "bad_dose")]
)
def test_a_cell_that_is_not_understood_costs_its_own_well_that_label(catalog, cells, problem):
    rows = [{"well": "A1", "gene": "MYC"} | cells, {"well": "A2", "gene": "TP53"}]
    assert import_wells(catalog, wells_table(("P1",), rows), "wells.csv") == 2
    assert catalog.table("wells")["gene"].to_pylist() == ["MYC", "TP53"]
    (row,) = catalog.table("quarantine").to_pylist()
    assert (row["problem"], row["well"]) == (problem, "A01")
    assert catalog.table("plates")["n_quarantined"].to_pylist() == [1]
    assert import_wells(catalog, wells_table(("P1",), rows), "wells.csv") == 0


def test_a_plate_without_a_batch_is_one_of_its_own(catalog):
    import_wells(catalog, wells_table().drop_columns(["batch"]))
    assert set(catalog.table("wells")["batch"].to_pylist()) == {"S/P1", "S/P2"}


def test_wells_with_the_default_batch_of_earlier_versions_are_recognised(catalog):
    earlier = wells_table()
    earlier = earlier.set_column(earlier.column_names.index("batch"), "batch", earlier["plate"])
    assert import_wells(catalog, earlier) > 0
    assert import_wells(catalog, wells_table().drop_columns(["batch"])) == 0


def test_quality_control_passes_over_plates_without_images(catalog, tmp_path):
    import_wells(catalog, wells_table())
    with pytest.raises(CatalogError, match="no plate to judge"):
        judge_sites(catalog, QcConfig())
    commit(catalog, write_plate(tmp_path / "source", "P3"))
    reported = []
    judge_sites(catalog, QcConfig(), lambda *where: reported.append(where))
    assert reported == [("plates judged", 1, 1)]
