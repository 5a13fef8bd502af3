"""Writes new editions of a plate's rows, before the row of `plates` that makes them visible."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from cytolake.catalog.declared import table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.tables import Catalog

ROWS_AT_ONCE = 200_000


def edition_application(edition: str) -> str:
    """Name of the Delta application that writes an edition."""
    return f"edition/{edition}"


def write_names(catalog: Catalog, row: Mapping[str, Any], new: Mapping[str, str]) -> str:
    """Write the sites and crops of a plate again, with other values of `screen`, `plate` or `batch`.

    Args:
        row: Of `plates`, as it is.
        new: Column to value.

    Returns:
        The edition of the new rows. The same again writes nothing.
    """
    edition = content_id("names", row["plate_id"], row["sites_edition"] or "", *sorted_pairs(new))
    for name in ("sites", "crops"):
        _rewrite(catalog, name, row, new, edition)
    return edition


def write_well_names(catalog: Catalog, row: Mapping[str, Any], new: Mapping[str, str]) -> str:
    """`write_names` of the wells."""
    edition = content_id("names", row["plate_id"], row["wells_edition"] or "", *sorted_pairs(new))
    _rewrite(catalog, "wells", row, new, edition)
    return edition


def write_wells(catalog: Catalog, row: Mapping[str, Any], wells: list[dict[str, Any]]) -> str:
    """Write all wells of a plate as given; returns their edition. The same again writes nothing."""
    plain = table_contract("wells").rows([{**well, "edition": None} for well in wells]).to_pylist()
    edition = content_id("wells", row["plate_id"], *(str(sorted(well.items())) for well in plain))
    rows = table_contract("wells").rows([{**well, "edition": edition} for well in wells])
    catalog.append("wells", rows, transaction=edition_application(edition))
    return edition


def sorted_pairs(new: Mapping[str, str]) -> list[str]:
    """Keys and values, in the order of the keys."""
    return [text for pair in sorted(new.items()) for text in pair]


def _rewrite(catalog: Catalog, name: str, row: Mapping[str, Any], new: Mapping[str, str], edition: str) -> None:
    contract = table_contract(name)
    source = catalog.rows_of_plate(name, row)

    def parts() -> Iterator[pa.Table]:
        for batch in source.to_batches(batch_size=ROWS_AT_ONCE):
            if not batch.num_rows:
                continue
            table = pa.Table.from_batches([batch])
            for column, value in {**new, "edition": edition}.items():
                index = contract.schema.get_field_index(column)
                table = table.set_column(index, contract.schema.field(column), pa.repeat(value, table.num_rows))
            yield table

    catalog.append(name, parts, transaction=edition_application(edition))
