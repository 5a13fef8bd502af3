from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from cytolake.serving.problems import ServingError
from cytolake.serving.where import MAX_WHERE_LENGTH, compile_where

CROPS = pa.table(
    {
        "crop_id": pa.array([str(i) for i in range(8)]),
        "plate": pa.array(["P1", "P1", "P2", "P2", "P3", "P3", "P4", None]),
        "gene": pa.array(["TP53", "", None, "KRAS", "tp53", "100%", "a_b", "axb"]),
        "label": pa.array(["TP53", "x", "y", "KRAS", None, "", "a_b", ""]),
        "dose": pa.array([0.0, 0.5, None, 1.5, 10.0, -1.5, 3.0, 1e-3]),
        "row": pa.array([0, 1, 2, 3, None, 5, 6, 7], pa.int32()),
        "is_negative_control": pa.array([True, False, None, False, True, False, None, True]),
        "channels": pa.array([["DNA"]] * 8),
    }
)

CONDITIONS = [
    "gene = 'TP53'",
    "gene <> 'TP53'",
    "NOT gene = 'TP53'",
    "'TP53' = gene",
    "1 < dose",
    "dose > -1.5",
    "dose >= 1.5 AND plate = 'P2'",
    "dose < 1 OR plate IN ('P3', 'P4')",
    "plate NOT IN ('P1', 'P2')",
    "NOT (plate IN ('P1'))",
    "row IN (1, 2, 3)",
    "dose IN (0.5, 10, 3)",
    "row NOT IN (0)",
    "dose BETWEEN 0 AND 3",
    "dose NOT BETWEEN 0 AND 3",
    "gene LIKE 'T%'",
    "gene LIKE 'a_b'",
    "gene NOT LIKE 'T%'",
    "gene ILIKE 't%'",
    "gene IS NULL",
    "gene IS NOT NULL AND plate IS NOT NULL",
    "is_negative_control",
    "NOT is_negative_control",
    "is_negative_control = false",
    "is_negative_control IS TRUE",
    "NOT (is_negative_control IS FALSE)",
    "gene = label",
    "gene <> label OR dose IS NULL",
    "row = 1.0",
    "row > 2.5",
    "dose = 0.001",
    "GENE = 'KRAS'",
    "(((gene = 'KRAS')))",
    "true",
    "gene = '''' OR gene = ''",
    "plate > 'P2'",
    "gene = 'KRAS' -- and nothing else",
    " OR ".join(f"row = {i}" for i in range(200)),
]


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_passes_the_rows_that_duckdb_returns(where):
    passing = CROPS.filter(compile_where(where, CROPS.schema))["crop_id"].to_pylist()
    with duckdb.connect() as oracle:
        oracle.register("crops", CROPS)
        expected = oracle.execute(f"SELECT crop_id FROM crops WHERE {where}\n ORDER BY crop_id").fetchall()
    assert passing == [crop_id for (crop_id,) in expected]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("gene = 'x'; DROP TABLE crops", "parse"),
        ("gene = 'x' UNION SELECT 1", "parse"),
        ("gene IN (SELECT gene FROM wells)", "allowed are"),
        ("EXISTS (SELECT 1)", "not allowed"),
        ("(SELECT 1) = row", "a plain value"),
        ("read_csv('/etc/passwd') = 'x'", "names no column"),
        ("lower(gene) = 'x'", "names no column"),
        ("CAST(gene AS INT) = 1", "names no column"),
        ("gene = getenv('HOME')", "plain value"),
        ("gene || 'x' = 'x'", "names no column"),
        ("dose + 1 > 2", "names no column"),
        ("1 = 1", "names no column"),
        ("gene", "not true or false"),
        ("secret = 'x'", "no column 'secret'. Columns are crop_id, plate"),
        ('gene = "TP53"', "single quotes"),
        ("wells.gene = 'x'", "without the table"),
        ("gene = 5", "holds text, found a number"),
        ("dose = 'high'", "holds number, found text"),
        ("gene = NULL", "IS NULL"),
        ("gene = dose", "holds text, column dose number"),
        ("dose LIKE '1%'", "LIKE takes text"),
        ("gene LIKE 'a\\_b'", "backslash"),
        ("gene LIKE 'a!_b' ESCAPE '!'", "not allowed"),
        ("gene SIMILAR TO 'a.*'", "not allowed"),
        ("channels = 'DNA'", "cannot be compared"),
        ("gene = ?", "plain value"),
        ("gene =", "where:"),
        ("(" * 50 + "row = 1" + ")" * 50, "nested"),
        ("(" * 1500 + "row = 1" + ")" * 1500, "nested"),
        ("gene = '" + "x" * MAX_WHERE_LENGTH + "'", "characters"),
        ("row IN (1, 'a')", "found text"),
        ("row = 1e999", "range"),
        ("CASE WHEN row = 1 THEN true END", "allowed are"),
        ("row IS DISTINCT FROM 1", "not allowed"),
        ("row = 99999999999999999999", "range"),
    ],
)
def test_anything_but_a_plain_condition_is_refused_with_the_reason(where, reason):
    with pytest.raises(ServingError, match="where: ") as refused:
        CROPS.filter(compile_where(where, CROPS.schema))
    assert refused.value.status == 422
    assert reason.lower() in refused.value.detail.lower()
