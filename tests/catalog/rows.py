"""Rows of tables of which a test needs a few columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cytolake.catalog import Catalog, ids, table_contract


def table_rows(table: str, *rows: Mapping[str, Any], **of_all: Any) -> pa.Table:
    """Rows by the table's contract; columns that are not given are null."""
    contract = table_contract(table)
    return contract.rows(dict.fromkeys(contract.schema.names) | of_all | row for row in rows)


def add_rows(catalog: Catalog, table: str, *rows: Mapping[str, Any], **of_all: Any) -> None:
    """Append such rows in a transaction of their own content: the same rows come in once."""
    catalog.append(table, table_rows(table, *rows, **of_all), transaction=ids.content_id(repr((rows, of_all))))
