from __future__ import annotations

import datetime
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from tests.catalog.empty_catalog import empty_catalog

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, UnknownTableError, table_contract, table_names
from cytolake.catalog import query as query_module
from cytolake.catalog.commits import delete_rows
from cytolake.catalog.query import ParsedQuery, parse_query, run_query

NOW = datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return empty_catalog(tmp_path)


def score(name: str, value: float) -> dict[str, object]:
    text = dict.fromkeys(
        ("representation_id", "benchmark", "label", "metric", "split", "held_out", "alignment", "protocol"), "x"
    )
    numbers = {
        "seed": 0, "value": value, "ci_low": None, "ci_high": None, "n_train": 1, "n_test": 1, "n_classes": 2,
        "details": "{}",
    }  # fmt: skip
    return {"score_id": name, "scored_at": NOW} | text | numbers


def add_scores(catalog: Catalog, *scores: tuple[str, float]) -> None:
    rows = table_contract("scores").rows(score(*one) for one in scores)
    catalog.append("scores", rows, transaction=scores[0][0])


@pytest.mark.parametrize("name", table_names())
def test_a_table_without_rows_reads_with_its_whole_schema(catalog, tmp_path, name):
    schema = table_contract(name).schema
    (tmp_path / "bare" / "tables").mkdir(parents=True)
    for empty in (catalog, cytolake.catalog.open(tmp_path / "bare")):
        assert empty.table(name).schema == schema
        assert empty.table(name, where=f"{schema.names[0]} = 'x'").schema == schema
        assert empty.sql(f"SELECT * FROM {name}").column_names == schema.names


def test_opening_a_folder_that_is_no_catalog_says_so(tmp_path):
    with pytest.raises(CatalogError, match=r"no catalog there .*create=True"):
        cytolake.catalog.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_what_is_appended_is_read_back_in_the_contracts_types(catalog):
    add_scores(catalog, ("a", 0.25), ("b", 0.75))
    rows = table_contract("scores").rows([score("a", 0.25), score("b", 0.75)])
    assert catalog.table("scores").sort_by("score_id").equals(rows)
    assert catalog.table("scores", where="value > 0.5").equals(rows.slice(1))
    assert catalog.table("scores", columns=["value", "score_id"], where="value > 0.5").to_pylist() == [
        {"value": 0.75, "score_id": "b"}
    ]
    pd.testing.assert_frame_equal(catalog.to_pandas("scores", where="value > 0.5"), rows.slice(1).to_pandas())


def test_an_old_version_reads_as_it_was(catalog):
    add_scores(catalog, ("a", 1))
    then = catalog.versions()
    add_scores(catalog, ("b", 2))
    assert catalog.table("scores", version=then["scores"]).column("score_id").to_pylist() == ["a"]
    pinned = catalog.at(then)
    assert pinned.table("scores").num_rows == 1
    assert pinned.sql("SELECT count(*) AS n FROM scores").to_pylist() == [{"n": 1}]
    assert pinned.versions() == then
    assert catalog.table("scores").num_rows == 2
    with pytest.raises(CatalogError, match=r"no readable version 99\. There are 0 to 2"):
        catalog.table("scores", version=99)
    with pytest.raises(CatalogError, match="pinned"):
        pinned.append("scores", table_contract("scores").empty(), transaction="t")


def test_views_can_be_joined_with_tables(catalog):
    add_scores(catalog, ("a", 0.25), ("b", 0.75))
    names = pa.table({"score_id": ["b"], "who": ["me"]})
    query = "SELECT who, value FROM scores JOIN names USING (score_id)"
    assert catalog.sql(query, names=names).to_pylist() == [{"who": "me", "value": 0.75}]
    assert catalog.sql(query, names=names.to_pandas()).to_pylist() == [{"who": "me", "value": 0.75}]


def test_a_query_sees_no_view_of_another(catalog):
    assert catalog.sql("SELECT n FROM mine", mine=pa.table({"n": [1]})).num_rows == 1
    with pytest.raises(CatalogError, match="mine"):
        catalog.sql("SELECT n FROM mine")
    with ThreadPoolExecutor(4) as threads:
        sums = threads.map(
            lambda n: catalog.sql("SELECT sum(n) AS n FROM mine", mine=pa.table({"n": [n] * 999})).to_pylist(),
            range(20),
        )
    assert list(sums) == [[{"n": 999 * n}] for n in range(20)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_a_database_of_its_own(catalog):
    """It has no thread of its parent's, which would never answer."""
    add_scores(catalog, ("a", 0.25))
    assert catalog.sql("SELECT 1 AS n").num_rows == 1
    child = os.fork()
    if not child:
        os._exit(run_query(parse_query("SELECT sum(n) FROM r"), {"r": pa.table({"n": [3, 4]})}).num_rows + 6)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_after_an_internal_error_of_duckdb_the_next_query_has_another_database(catalog, monkeypatch):
    with monkeypatch.context() as patch:
        broken = MagicMock()
        for work in ("sql", "execute"):
            getattr(broken.cursor().__enter__(), work).side_effect = duckdb.FatalException("has been invalidated")
        broken.cursor().__exit__.return_value = False
        patch.setattr(duckdb, "connect", lambda *_, **__: broken)
        query_module._database.cache_clear()
        with pytest.raises(CatalogError, match="has been invalidated"):
            run_query(ParsedQuery(text="SELECT 1", tables=frozenset()), {})
        with pytest.raises(duckdb.FatalException):
            parse_query("SELECT 1 AS not_parsed_before")
    assert catalog.sql("SELECT 1 AS n").to_pylist() == [{"n": 1}]


def test_a_condition_may_ask_another_table(catalog):
    add_scores(catalog, ("a", 0.25))
    assert catalog.table("scores", where="score_id NOT IN (SELECT crop_id FROM crops)").num_rows == 1


def test_a_value_with_quotes_is_data_and_never_sql(catalog):
    names = ["O'Brien", "P1", "x') OR ('1' = '1", '"', "$name ?"]
    rows = [score(f"s{i}", i) | {"label": name} for i, name in enumerate(names)]
    catalog.append("scores", table_contract("scores").rows(rows), transaction="t")
    for name in names:
        found = catalog.table("scores", columns=["label"], where="label = $name", parameters={"name": name})
        assert found["label"].to_pylist() == [name]
        counted = catalog.sql("SELECT count(*) AS n FROM scores WHERE label = ?", parameters=[name])
        assert counted.to_pylist() == [{"n": 1}]
    several = catalog.to_pandas("scores", where="label IN $names", parameters={"names": tuple(names[:2])})
    assert sorted(several["label"]) == names[:2]
    assert catalog.table("scores", where="label IN $names", parameters={"names": []}).num_rows == 0
    with pytest.raises(CatalogError, match=r"query failed: .*[Pp]arameter"):
        catalog.table("scores", where="label = $name", parameters={"other": "P1"})
    assert delete_rows(f"{catalog.place}/tables/scores", "label", ["O'Brien"]) == 1
    assert sorted(catalog.table("scores")["label"].to_pylist()) == sorted(names[1:])


def test_sums_of_integers_are_integers(catalog):
    found = catalog.sql("SELECT sum(n) AS total, [n] AS list FROM numbers GROUP BY n", numbers=pa.table({"n": [7]}))
    assert found.schema.field("total").type == pa.int64()
    assert found.schema.field("list").type == pa.list_(pa.int64())


def test_unknown_tables_and_columns_are_named(catalog):
    with pytest.raises(UnknownTableError, match="table crop: no such table"):
        catalog.table("crop")
    with pytest.raises(CatalogError, match="table crops: no column siz"):
        catalog.table("crops", columns=["siz"])
    with pytest.raises(CatalogError, match=r"(?s)nope does not exist.*The catalog has the tables .*crops, "):
        catalog.sql("SELECT * FROM nope\n")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM '{file}'", "SELECT * FROM read_csv('{file}')", "SELECT * FROM read_text('{file}')",
        "SELECT * FROM glob('/*')", "SELECT (SELECT content FROM read_text('{file}'))",
        "WITH x AS (FROM read_blob('{file}')) SELECT * FROM x", "SELECT * FROM arrow_scan(1, 2, 3)",
        "SELECT * FROM query('SELECT 1')", "COPY (SELECT 1) TO '{file}.out'", "COPY crops TO '{file}.out'",
        "ATTACH '{file}.db'", "INSTALL httpfs", "SET enable_external_access = true", "CREATE TABLE x AS SELECT 1",
        "DROP VIEW crops", "INSERT INTO crops VALUES (1)", "DELETE FROM crops",
        "WITH x AS (INSERT INTO crops VALUES (1) RETURNING *) SELECT * FROM x", "SELECT 1; DROP VIEW crops",
        "SELECT 1; SELECT 2", "EXPORT DATABASE '{file}.d'", "PRAGMA database_list", "SELECT * FROM table_contract", "",
        "nonsense",
    ],
)  # fmt: skip
def test_a_query_reads_no_file_and_writes_nothing(catalog, tmp_path, query):
    (tmp_path / "secret.csv").write_text("a\n1\n")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CatalogError, match=r"query (refused|failed)"):
        catalog.sql(query.format(file=tmp_path / "secret.csv"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("where", ["true) UNION ALL SELECT * FROM read_text('/etc/passwd') --", "1; DROP VIEW crops"])
def test_a_condition_reads_no_file_either(catalog, where):
    with pytest.raises(CatalogError, match="query refused"):
        catalog.table("crops", where=where)
