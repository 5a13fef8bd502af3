from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from tests.catalog.processes import append_own_and_shared, run_at_once

from cytolake.catalog import CatalogError, table_contract
from cytolake.catalog.commits import Replaced, commit_rows, create_table
from cytolake.catalog.contracts import parse_contract


def crop_rows(plate: str, n: int = 3, first: int = 0, **changes: object) -> pa.Table:
    text = dict.fromkeys(("site_id", "well_id", "plate_id", "screen", "plate", "batch", "well", "site"), plate)
    numbers = {"n_channels": 5, "y": 0, "x": 0, "size": 64, "foreground_share": 0.5}
    rows = [{"crop_id": f"{plate}-{i}"} | text | numbers | changes for i in range(first, first + n)]
    return table_contract("crops").rows(rows)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    create_table(str(tmp_path / "crops"), table_contract("crops"))
    return tmp_path / "crops"


def commit(path: Path, rows: pa.Table, application: str, content: int = 1, **how: object) -> bool:
    return commit_rows(DeltaTable(path), table_contract("crops"), rows, marks={application: content}, **how)


def ids(path: Path) -> list[str]:
    return sorted(DeltaTable(str(path)).to_pyarrow_table().column("crop_id").to_pylist())


def test_the_same_transaction_commits_once(crops):
    assert commit(crops, crop_rows("p"), "job 1") is True
    assert commit(crops, crop_rows("p"), "job 1") is False
    assert commit(crops, crop_rows("q"), "job 2") is True
    assert len(ids(crops)) == 6


def test_a_transaction_of_no_rows_is_remembered(crops):
    assert commit(crops, crop_rows("p").slice(0, 0), "job") is True
    assert commit(crops, crop_rows("p"), "job") is False


def test_other_content_replaces_the_rows_of_the_first_and_only_those(crops):
    commit(crops, crop_rows("other"), "other")
    replaced = Replaced("plate_id", ("p",), lambda: None)
    for n, content in ((3, 10), (2, 20), (3, 10)):  # back to the first content: nothing of the second may stay
        assert commit(crops, crop_rows("p", n), "p", content=content, replace=replaced) is True
        assert commit(crops, crop_rows("p", n), "p", content=content, replace=replaced) is False
        assert ids(crops) == sorted([*(f"other-{i}" for i in range(3)), *(f"p-{i}" for i in range(n))])


def test_rows_that_must_stay_are_not_replaced(crops):
    def refuse() -> None:
        raise CatalogError("they must stay")

    replaced = Replaced("plate_id", ("p",), refuse)
    assert commit(crops, crop_rows("p"), "p", content=1, replace=replaced) is True  # nothing there to replace
    with pytest.raises(CatalogError, match="they must stay"):
        commit(crops, crop_rows("p", 2), "p", content=2, replace=replaced)
    assert len(ids(crops)) == 3


def test_a_claim_that_another_took_over_commits_nothing_even_in_a_race(crops):
    nothing = crop_rows("p").slice(0, 0)
    commit(crops, nothing, "claim", content=1)
    opened_before = DeltaTable(crops)
    commit(crops, nothing, "claim", content=2)
    mine, other = {"claim": 1}, {"claim": 2}
    checks = []
    how = {"marks": {"p": 1}, "claims": mine, "check": lambda: checks.append("checked")}
    assert commit_rows(opened_before, table_contract("crops"), crop_rows("p"), **how) is False
    assert checks == ["checked"]  # it did look free at first: Delta refused the commit
    assert commit(crops, crop_rows("p"), "p", claims=mine) is False
    assert not ids(crops)
    assert commit(crops, crop_rows("p"), "p", claims=other) is True
    assert len(ids(crops)) == 3


def test_a_row_that_breaks_a_constraint_leaves_the_table_as_it_was(crops):
    version = DeltaTable(str(crops)).version()
    with pytest.raises(CatalogError, match=r"table crops: rows break a constraint .*size > 0"):
        commit(crops, pa.concat_tables([crop_rows("p"), crop_rows("q", size=0)]), "job")
    assert DeltaTable(str(crops)).version() == version
    assert commit(crops, crop_rows("p"), "job") is True


@pytest.mark.parametrize(
    ("table", "column", "good", "bad"),
    [
        ("crops", "foreground_share", 0.5, 1.5),
        ("sites", "height", 5, 0),
        ("wells", "control", "negative", "neg"),
        ("quarantine", "problem", "missing_file", ""),
        ("curations", "reason", "qc: out of focus", ""),
    ],
)
def test_every_declared_constraint_takes_good_rows_and_refuses_bad_ones(tmp_path, table, column, good, bad):
    contract = table_contract(table)
    known = {"size": 64, "width": 5, "is_kept": False} | dict.fromkeys(contract.key, "k")
    row = {name: known.get(name) for name in contract.schema.names}
    path = str(tmp_path / table)
    create_table(path, contract)
    with pytest.raises(CatalogError, match=f"table {table}: rows break a constraint"):
        commit_rows(DeltaTable(path), contract, contract.rows([row | {column: bad}]), marks={"bad": 1})
    assert commit_rows(DeltaTable(path), contract, contract.rows([row | {column: good}]), marks={"good": 1})
    assert DeltaTable(path).to_pyarrow_table().column(column).to_pylist() == [good]


def test_every_file_says_smallest_largest_and_nulls_of_every_scalar_column(crops):
    commit(crops, crop_rows("p", foreground_share=None), "job")
    action = pa.table(DeltaTable(str(crops)).get_add_actions(flatten=True)).to_pylist()[0]
    for field in table_contract("crops").schema:
        is_empty = field.name in ("foreground_share", "edition")
        assert action[f"null_count.{field.name}"] == (3 if is_empty else 0)
        if not is_empty:
            assert action[f"min.{field.name}"] is not None
            assert action[f"max.{field.name}"] is not None
    assert (action["min.crop_id"], action["max.crop_id"]) == ("p-0", "p-2")


def test_tables_stay_in_the_protocol_that_arrow_readers_know(crops):
    replaced = Replaced("plate_id", ("p",), lambda: None)
    commit(crops, crop_rows("p"), "p", content=1, replace=replaced)
    commit(crops, crop_rows("p"), "p", content=2, replace=replaced)
    protocol = DeltaTable(str(crops)).protocol()
    assert protocol.min_reader_version == 1
    assert not protocol.reader_features
    assert "columnMapping" not in json.dumps(DeltaTable(str(crops)).metadata().configuration)


def test_the_largest_unsigned_pixel_value_survives(tmp_path):
    columns = {"name": {"type": "string", "about": "n"}, "count": {"type": "int32", "about": "counts"}}
    contract = parse_contract({"table": "t", "key": ["name"], "columns": columns})
    create_table(str(tmp_path / "t"), contract)
    for name in ("a", "b"):  # the second append is where Ray's own writer fails
        rows = pa.table({"name": pa.array([name], pa.large_string()), "count": pa.array([65535], pa.uint16())})
        commit_rows(DeltaTable(tmp_path / "t"), contract, rows, marks={name: 1})
    assert DeltaTable(str(tmp_path / "t")).to_pyarrow_table().column("count").to_pylist() == [65535, 65535]


def test_a_column_that_the_contract_gained_is_added_and_reads_as_null(tmp_path):
    columns = {"name": {"type": "string", "about": "n"}}
    old = parse_contract({"table": "t", "key": ["name"], "columns": columns})
    new = parse_contract(
        {"table": "t", "key": ["name"], "columns": columns | {"count": {"type": "int32", "about": "c"}}}
    )
    for contract, rows in ((old, [{"name": "a"}]), (new, [{"name": "b", "count": 2}])):
        create_table(str(tmp_path / "t"), contract)
        commit_rows(DeltaTable(tmp_path / "t"), contract, contract.rows(rows), marks={rows[0]["name"]: 1})
    found = DeltaTable(str(tmp_path / "t")).to_pyarrow_table().sort_by("name").to_pylist()
    assert found == [{"name": "a", "count": None}, {"name": "b", "count": 2}]
    with pytest.raises(CatalogError, match=r"table t, column count: found int32 in the table, expected no such column"):
        create_table(str(tmp_path / "t"), old)


def test_an_interrupted_creation_is_made_good(tmp_path):
    contract = table_contract("crops")
    DeltaTable.create(str(tmp_path / "crops"), contract.schema)  # killed before the constraint
    create_table(str(tmp_path / "crops"), contract)
    assert "delta.constraints.crop_has_area" in DeltaTable(str(tmp_path / "crops")).metadata().configuration


def test_processes_that_create_and_append_at_once_lose_and_double_nothing(tmp_path):
    codes, committed = run_at_once(append_own_and_shared, [(tmp_path, me) for me in range(3)])
    assert codes == [0, 0, 0]
    assert sum(committed) == 6
    everything = [f"{me}-{i}" for me in (*range(3), "shared") for i in range(6)]
    assert ids(tmp_path / "tables" / "crops") == sorted(everything)


def test_several_writers_in_one_commit_are_there_together_or_replaced_together(crops):
    commit(crops, crop_rows("other"), "other")
    commit(crops, crop_rows("q", 5), "q", content=7)  # left behind with other content
    both = pa.concat_tables([crop_rows("p"), crop_rows("q")])
    how = {"marks": {"p": 1, "q": 1}, "replace": Replaced("plate_id", ("p", "q"), lambda: None)}
    expected = sorted(f"{plate}-{i}" for plate in ("other", "p", "q") for i in range(3))
    for has_committed in (True, False):
        assert commit_rows(DeltaTable(crops), table_contract("crops"), both, **how) is has_committed
        assert ids(crops) == expected
    assert commit(crops, crop_rows("q"), "q") is False
    more = how | {"marks": {"p": 1, "q": 1, "r": 1}, "replace": Replaced("plate_id", ("p", "q", "r"), lambda: None)}
    three = pa.concat_tables([both, crop_rows("r")])
    assert commit_rows(DeltaTable(crops), table_contract("crops"), three, **more) is True
    assert ids(crops) == sorted([*expected, *(f"r-{i}" for i in range(3))])
