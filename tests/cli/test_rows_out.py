"""Rows of a query as a table, CSV, JSON lines and Parquet: every value whole."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.catalog.empty_catalog import empty_catalog
from typer.testing import CliRunner

from cytolake.cli.main import app

LONG = "a" * 300
QUERY = f"select '{LONG}' as id, [1, 2] as list, 3.5 as x, 'nan'::double as nothing, '[red]' as markup from range(3)"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lake")
    empty_catalog(root)
    return root


def sql(root, *arguments: str, code: int = 0):
    done = CliRunner().invoke(app, ["sql", QUERY, "--root", str(root), *arguments])
    assert done.exit_code == code, done.output
    return done


def lines_of(root, query: str, *arguments: str) -> str:
    done = CliRunner().invoke(app, ["sql", query, "--root", str(root), *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_two_columns_of_one_name_are_both_written(root, tmp_path):
    query = "select 1 a, 2 a, 3 a_1, 4 a"
    wanted = {"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}
    assert json.loads(lines_of(root, query, "--format", "json")) == wanted
    (row,) = csv.DictReader(io.StringIO(lines_of(root, query, "--format", "csv")))
    assert {name: int(value) for name, value in row.items()} == wanted
    lines_of(root, query, "--output", str(tmp_path / "rows.parquet"))
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [wanted]
    assert json.loads(lines_of(root, "select 1 a, 2 a", "--format", "json")) == {"a": 1, "a_1": 2}


def test_an_interval_is_an_iso_duration(root, tmp_path):
    query = "select interval '14 months 3 days 1.5 seconds' as i, [interval '-2 days'] as list, null::interval as no"
    (row,) = map(json.loads, lines_of(root, query, "--format", "json").splitlines())
    assert row == {"i": "P14M3DT1.5S", "list": ["P0M-2DT0S"], "no": None}
    assert "P14M3DT1.5S" in lines_of(root, query, "--format", "csv")
    lines_of(root, query.replace(", [interval '-2 days'] as list", ""), "--output", str(tmp_path / "rows.parquet"))
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == [{"i": "P14M3DT1.5S", "no": None}]


def test_a_negative_number_of_rows_is_refused(root):
    assert sql(root, "--rows", "0").stdout.splitlines()[-1] == "3 more rows"
    sql(root, "--rows", "-1", code=2)


def test_a_command_that_changes_tables_is_refused_as_such(root):
    done = CliRunner().invoke(app, ["sql", "drop table wells", "--root", str(root)])
    assert done.exit_code == 2
    assert "expected one SELECT. Queries only read" in " ".join(done.output.split())


@pytest.mark.parametrize("age", ["nan", "inf"])
@pytest.mark.parametrize("command", [("vacuum",), ("catalog", "check")])
def test_an_age_that_is_no_number_is_refused(root, command, age):
    done = CliRunner().invoke(app, [*command, "--root", str(root), "--older-than-h", age])
    assert done.exit_code == 2
    assert "expected a finite number" in done.output


def test_an_empty_catalog_says_what_to_run_for_scores_and_labels(root, tmp_path):
    done = CliRunner().invoke(app, ["leaderboard", "--root", str(root)])
    assert done.exit_code == 0
    assert "no scores yet. `cytolake benchmark`" in done.output
    done = CliRunner().invoke(app, ["qc", "label", str(tmp_path / "sheet"), "--root", str(root)])
    assert done.exit_code == 2
    assert "no site to label: no plate is there" in " ".join(done.output.split())


def test_a_table_in_a_pipe_has_one_line_for_each_row_and_whole_values(root):
    lines = sql(root).stdout.splitlines()
    assert len(lines) == 4
    assert all(LONG in line and "[red]" in line for line in lines[1:])
    assert sql(root, "--rows", "1").stdout.splitlines()[-1] == "2 more rows"


def test_csv_json_and_parquet_have_all_rows_and_whole_values(root, tmp_path):
    rows = list(csv.DictReader(io.StringIO(sql(root, "--format", "csv", "--rows", "1").stdout)))
    assert [row["id"] for row in rows] == [LONG] * 3
    assert json.loads(rows[0]["list"]) == [1, 2]
    lines = [json.loads(line) for line in sql(root, "--format", "json").stdout.splitlines()]
    assert lines == [{"id": LONG, "list": [1, 2], "x": 3.5, "nothing": None, "markup": "[red]"}] * 3
    file = tmp_path / "rows.parquet"
    sql(root, "--output", str(file))
    assert pq.read_table(file).column("id").to_pylist() == [LONG] * 3
    assert pq.read_table(pa.BufferReader(sql(root, "--format", "parquet").stdout_bytes)).num_rows == 3
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize(
    "arguments", [("--output", "rows.txt"), ("--format", "table", "--output", "rows.csv")], ids=["ending", "table"]
)
def test_a_format_that_the_output_cannot_have_is_refused(root, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    assert "expected" in sql(root, *arguments, code=2).output
    assert list(tmp_path.iterdir()) == []
