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
