from __future__ import annotations

import datetime

import numpy as np
import pyarrow as pa
import pytest
from deltalake import Schema

from cytolake.catalog import (
    CatalogError,
    UnknownTableError,
    channel_vocabulary,
    declared_path,
    table_contract,
    table_names,
)
from cytolake.catalog.contracts import parse_contract, plain_type

CONTRACT = parse_contract(
    {
        "table": "things",
        "key": ["name"],
        "columns": {
            "name": {"type": "string", "about": "who"},
            "count": {"type": "int32", "about": "how many"},
            "share": {"type": "double", "about": "0..1"},
            "vector": {"type": "list<float>", "about": "values"},
            "at": {"type": "timestamp", "about": "UTC"},
        },
    }
)
NOW = datetime.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=datetime.UTC)


def things(**columns: pa.Array) -> pa.Table:
    whole = {
        "name": pa.array(["a", "b"]),
        "count": pa.array([1, 2], pa.int32()),
        "share": pa.array([0.5, None]),
        "vector": pa.array([[1.0], [2.0, 3.0]], pa.list_(pa.float32())),
        "at": pa.array([NOW, NOW], pa.timestamp("us", "UTC")),
    }
    return pa.table(whole | columns)


@pytest.mark.parametrize("name", table_names())
def test_every_contract_can_be_a_delta_table(name):
    contract = table_contract(name)
    assert pa.schema(Schema.from_arrow(contract.schema).to_arrow()).names == contract.schema.names
    assert all(plain_type(field.type) == field.type for field in contract.schema)
    assert contract.key, "a table without a key could hold a row twice"
    assert all(contract.about.values())


def test_rows_that_fit_pass_unchanged_in_the_contracts_order():
    rows = things()
    assert CONTRACT.conform(rows.select(rows.column_names[::-1])).equals(rows)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("name", pa.array(["a", "b"], pa.large_string())),
        ("name", pa.array(["a", "b"], pa.string_view())),
        ("name", pa.array(["a", "b"]).dictionary_encode()),
        ("count", pa.array([1, 2], pa.uint8())),
        ("count", pa.array([1, 2], pa.uint16())),
        ("count", pa.array([1, 2], pa.int16())),
        ("share", pa.array([0.5, float("nan")])),
        ("share", pa.array([0.5, None], pa.float32())),
        ("vector", pa.array([[1.0], [2.0, 3.0]], pa.large_list(pa.float32()))),
        ("at", pa.array([NOW, NOW], pa.timestamp("us", "UTC")).cast(pa.timestamp("ns", "UTC"))),
        ("at", pa.array([NOW.replace(tzinfo=None)] * 2, pa.timestamp("ns"))),
    ],
)
def test_another_type_of_the_same_values_gives_the_same_rows(name, column):
    assert CONTRACT.conform(things(**{name: column})).equals(things())


def test_vectors_of_fixed_length_become_lists():
    fixed = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4], pa.float32()), 2)
    assert CONTRACT.conform(things(vector=fixed)).column("vector").to_pylist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("unsigned", [np.uint8, np.uint16, np.uint32])
def test_the_largest_unsigned_value_fits_its_plain_type(unsigned):
    largest = np.iinfo(unsigned).max
    column = pa.array(np.array([largest]))
    assert column.cast(plain_type(column.type))[0].as_py() == largest


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("count", pa.array([1, 2]), ["table things", "column count", "found int64", "expected int32", "how many"]),
        ("count", pa.array([1.0, 2.0]), ["column count", "found double", "expected int32"]),
        ("name", pa.array([1, 2]), ["column name", "found int64", "expected string"]),
        (
            "vector",
            pa.array([[1.0], [2.0]]),
            ["column vector", "found list<item: double>", "expected list<item: float>"],
        ),
        ("name", pa.array(["a", None]), ["column name", "1 of 2 rows", "key"]),
        ("name", pa.array(["a", "a"]), ["2 rows with the key name a", "expected 1"]),
    ],
)
def test_rows_that_do_not_fit_are_refused_with_table_column_found_and_expected(name, column, said):
    with pytest.raises(CatalogError) as error:
        CONTRACT.conform(things(**{name: column}))
    assert all(part in str(error.value) for part in said), error.value


def test_missing_and_unknown_columns_are_named_together():
    rows = things().drop_columns(["share"]).append_column("shares", pa.array([1, 2]))
    with pytest.raises(CatalogError, match=r"share is missing; column shares is not in the contract"):
        CONTRACT.conform(rows)


def test_a_number_too_large_is_refused_not_wrapped():
    contract = parse_contract({"table": "t", "key": ["n"], "columns": {"n": {"type": "int64", "about": "n"}}})
    with pytest.raises(CatalogError, match="column n: a value does not fit int64"):
        contract.conform(pa.table({"n": pa.array([2**63], pa.uint64())}))


def test_rows_from_dicts_need_exactly_the_columns():
    row = {"name": "a", "count": 1, "share": None, "vector": [], "at": NOW}
    assert CONTRACT.rows([row]).schema == CONTRACT.schema
    with pytest.raises(CatalogError, match="column count is missing"):
        CONTRACT.rows([row, {k: v for k, v in row.items() if k != "count"}])
    with pytest.raises(CatalogError, match="column count, expected int32"):
        CONTRACT.rows([row | {"count": 2**31}])


def test_a_contract_with_a_type_delta_cannot_hold_is_refused():
    with pytest.raises(CatalogError, match="found type uint16"):
        parse_contract({"table": "t", "columns": {"n": {"type": "uint16", "about": "n"}}})


def test_an_unknown_table_is_named_with_those_that_are_there():
    with pytest.raises(UnknownTableError, match=r"table crop: no such table\. There are: .*crops, ") as error:
        table_contract("crop")
    assert isinstance(error.value, KeyError)


def test_a_missing_declaration_is_named_with_its_neighbours():
    with pytest.raises(CatalogError, match=r"channels\.yaml"):
        declared_path("chanels.yaml")


def test_every_spelling_of_a_stain_has_its_identity():
    vocabulary = channel_vocabulary()
    assert vocabulary.canonical("Hoechst_33342") == vocabulary.canonical("hoechst 33342") == "DNA"
    assert [vocabulary.index(name) for name in vocabulary.names] == list(range(1, len(vocabulary.names) + 1))
    assert vocabulary.canonical(" Novel dye ") == "Novel dye"
    assert vocabulary.index("Novel dye") == 0
