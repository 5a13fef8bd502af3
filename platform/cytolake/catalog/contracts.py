"""Table contracts: which columns a table has, and how rows of other Arrow types become rows of the table.

Delta has neither unsigned nor large types and stores time in microseconds, so rows are brought to those types first
(without losing a value) and must then fit the contract exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.errors import CatalogError

TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "binary": pa.binary(),
}
"""Types that a contract may name, besides `list<...>` of one of them."""

_SIGNED = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.int64()}
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())  # each fits into those after it


@dataclass(frozen=True, kw_only=True, slots=True)
class TableContract:
    """One table as catalog/tables/ declares it."""

    name: str
    key: tuple[str, ...]
    """Key columns: no value is null, and no combination occurs twice in one append."""
    partition_by: tuple[str, ...]
    schema: pa.Schema
    about: dict[str, str]
    """Meaning and unit of each column."""
    optional: frozenset[str]
    """Columns that rows may leave out; they are null then."""
    constraints: dict[str, str]
    """SQL condition of every row, by name; Delta checks it at each commit."""

    def empty(self) -> pa.Table:
        """No rows, all columns."""
        return self.schema.empty_table()

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
        """Build rows of this table from dicts that have its columns; optional ones may be left out.

        Raises:
            CatalogError: A key is missing or unknown, or a value does not fit its column.
        """
        listed = list(rows)
        for keys in {frozenset(row) for row in listed}:
            self._check_names(keys)
        try:
            return self.conform(pa.Table.from_pylist(listed, schema=self.schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise CatalogError(f"table {self.name}: {self._culprit(listed)}: {error}") from error

    def conform(self, rows: pa.Table) -> pa.Table:
        """Bring rows to the table's column order and types.

        Unsigned integers become wider signed ones, large, view, dictionary and fixed-size types their plain kind,
        timestamps microseconds in UTC (without a zone they count as UTC), NaN null: a comparison with NaN would make
        the file statistics lie. Integers and floats narrower than the contract's are widened. Nothing else is cast.

        Raises:
            CatalogError: Columns missing or unknown, a type that does not fit, a value out of range, a null or repeated
                key.
        """
        self._check_names(rows.column_names)
        for name in self.optional.difference(rows.column_names):
            rows = rows.append_column(name, pa.nulls(rows.num_rows, self.schema.field(name).type))
        columns = [self._conform_column(rows.column(field.name), field) for field in self.schema]
        table = pa.Table.from_arrays(columns, schema=self.schema)
        self._check_key(table)
        return table

    def _check_names(self, names: Iterable[str]) -> None:
        found, want = list(names), set(self.schema.names)
        needed = [name for name in self.schema.names if name not in self.optional]
        wrong = [f"column {name} is missing" for name in needed if name not in set(found)]
        wrong += [f"column {name} is not in the contract" for name in sorted(set(found) - want)]
        wrong += [f"column {name} is there twice" for name in sorted({name for name in found if found.count(name) > 1})]
        if wrong:
            raise CatalogError(
                f"table {self.name}: {'; '.join(wrong)}. Expected the columns {', '.join(self.schema.names)}, as "
                f"catalog/tables/{self.name}.yaml declares them."
            )

    def _conform_column(self, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
        if isinstance(column.type, pa.DictionaryType):
            column = column.cast(column.type.value_type)
        plain = plain_type(column.type)
        if not _fits(plain, field.type):
            raise CatalogError(
                f"table {self.name}, column {field.name}: found {column.type}, expected {field.type} "
                f"({self.about[field.name]}). Cast the column, or build the rows with "
                f'table_contract("{self.name}").rows(...).'
            )
        if pa.types.is_timestamp(field.type):
            return column.cast(field.type, safe=False)  # sub-microsecond digits go
        try:
            column = column.cast(field.type)
        except pa.ArrowInvalid as error:
            raise CatalogError(
                f"table {self.name}, column {field.name}: a value does not fit {field.type}: {error}. "
                "Correct the value where it is made."
            ) from error
        if pa.types.is_floating(field.type):
            return pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)
        return column

    def _check_key(self, table: pa.Table) -> None:
        for name in self.key:
            if table.column(name).null_count:
                raise CatalogError(
                    f"table {self.name}, column {name}: {table.column(name).null_count} of {table.num_rows} rows have "
                    "no value, and the column is part of the key. Give every row its key."
                )
        if not self.key or table.group_by(list(self.key)).aggregate([]).num_rows == table.num_rows:
            return
        counts = table.group_by(list(self.key)).aggregate([([], "count_all")])
        twice = counts.filter(pc.greater(counts.column("count_all"), 1)).slice(0, 1).to_pylist()[0]
        raise CatalogError(
            f"table {self.name}: {twice['count_all']} rows with the key "
            f"{', '.join(f'{name} {twice[name]}' for name in self.key)}, expected 1. Remove the repeated rows."
        )

    def _culprit(self, rows: list[Mapping[str, Any]]) -> str:
        """The first column with a value that Arrow refuses, and the type it should have."""
        for field in self.schema:
            try:
                pa.array([row.get(field.name) for row in rows], field.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                return f"column {field.name}, expected {field.type}"
        return "rows"


def parse_contract(declared: Mapping[str, Any]) -> TableContract:
    """Turn the content of one catalog/tables/*.yaml into a contract.

    Raises:
        CatalogError: A type that is not in TYPES, or a key or partition column that is not declared.
    """
    name = str(declared["table"])
    columns: Mapping[str, Mapping[str, Any]] = declared["columns"]
    schema = pa.schema([(column, _parse_type(name, column, spec["type"])) for column, spec in columns.items()])
    contract = TableContract(
        name=name,
        key=tuple(declared.get("key", ())),
        partition_by=tuple(declared.get("partition_by", ())),
        schema=schema,
        about={column: spec.get("about", "") for column, spec in columns.items()},
        optional=frozenset(column for column, spec in columns.items() if spec.get("optional")),
        constraints=dict(declared.get("constraints", {})),
    )
    unknown = sorted({*contract.key, *contract.partition_by} - set(columns))
    if unknown:
        raise CatalogError(
            f"catalog/tables/{name}.yaml: key or partition_by names {', '.join(unknown)}, no such column."
        )
    return contract


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type that Delta can store and that holds every value of `found`."""
    if found in _SIGNED:
        return _SIGNED[found]
    if pa.types.is_large_string(found) or pa.types.is_string_view(found):
        return pa.string()
    if pa.types.is_large_binary(found) or pa.types.is_binary_view(found) or pa.types.is_fixed_size_binary(found):
        return pa.binary()
    if pa.types.is_timestamp(found):
        return pa.timestamp("us", tz="UTC")
    if isinstance(found, pa.DictionaryType):
        return plain_type(found.value_type)
    if (
        pa.types.is_list(found)
        or pa.types.is_large_list(found)
        or pa.types.is_fixed_size_list(found)
        or pa.types.is_list_view(found)
    ):
        return pa.list_(plain_type(found.value_type))
    return found


def _fits(plain: pa.DataType, wanted: pa.DataType) -> bool:
    if plain == wanted or pa.types.is_null(plain):
        return True
    if pa.types.is_list(plain) and pa.types.is_list(wanted):
        return _fits(plain.value_type, wanted.value_type)
    if plain in _INTEGERS and wanted in _INTEGERS:
        return _INTEGERS.index(plain) <= _INTEGERS.index(wanted)
    if pa.types.is_floating(plain) and pa.types.is_floating(wanted):
        return bool(plain.bit_width <= wanted.bit_width)
    return False


def _parse_type(table: str, column: str, text: str) -> pa.DataType:
    inner = re.fullmatch(r"list<(\w+)>", text)
    if inner and inner[1] in TYPES:
        return pa.list_(TYPES[inner[1]])
    if text not in TYPES:
        raise CatalogError(
            f"catalog/tables/{table}.yaml, column {column}: found type {text}, expected one of "
            f"{', '.join(TYPES)} or list<...> of one of them. Unsigned, large and nanosecond types cannot be stored."
        )
    return TYPES[text]
