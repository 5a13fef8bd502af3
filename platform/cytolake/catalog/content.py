"""Hashes the rows of each plate: equal for equal rows, in any catalog and in whatever order they were written.

A Delta version counts commits: the tables of two catalogs with other screens have the same versions after as many
commits. What names a choice of crops or their pixels is therefore hashed from rows.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from cytolake.catalog.declared import table_contract
from cytolake.catalog.ids import content_id
from cytolake.catalog.tables import Catalog

OF_PIXELS = ("plates", "qc_metrics", "sites")
"""Tables whose rows change with the pixels: they hold sizes of files, and statistics of every pixel of a site."""

_LEFT_OUT = {
    "plates": {
        *("source", "state", "why", "acquisition", "id_names", "pixels_hash", "files_hash", "labels_hash"),
        *("labels_source", "wells_edition", "sites_edition", "objects_edition"),
    },
    "wells": {"edition"},
    "sites": {"image_paths", "illumination_paths", "checksum", "edition"},
    "crops": {"edition"},
    "objects": {"edition"},
}
"""Columns that say where the files are, which a copy elsewhere changes (content_hash of plates has their names), or how
the rows came about; and hashes of what other columns and tables say."""


def plate_contents(catalog: Catalog, table: str, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """For each plate that a table has rows of, a hash of these rows in any order.

    Left out are times, at which a row was written; where files lie; and nulls, so that a column that a later version
    adds changes nothing. One pass of DuckDB over the table: MD5 of each row, added up, 128 bits.

    Args:
        catalog: Pinned, or as it is now.
        table: One with a column plate_id.
        leave_out: More columns that do not count.
    """
    schema = table_contract(table).schema
    left_out = {*_LEFT_OUT.get(table, ()), *leave_out}
    names = sorted(
        field.name for field in schema if not pa.types.is_timestamp(field.type) and field.name not in left_out
    )
    row = " || ".join(f"coalesce('{name}=' || \"{name}\"::varchar || chr(31), '')" for name in names)
    sums = ", ".join(f"sum(md5_number_{half}(text))::varchar AS {half}" for half in ("lower", "upper"))
    found = catalog.sql(
        f"SELECT plate_id, count(*) AS n, {sums} FROM (SELECT plate_id, {row} AS text FROM {table}) GROUP BY plate_id"
    )
    return {each["plate_id"]: content_id(each["n"], each["lower"], each["upper"]) for each in found.to_pylist()}


def content_of(catalog: Catalog, tables: Iterable[str], plate_ids: frozenset[str] | None = None) -> str:
    """One hash of the rows of some plates, or of all, in several tables: see `plate_contents`."""
    parts = []
    for table in sorted(tables):
        for plate, content in sorted(plate_contents(catalog, table).items()):
            if plate_ids is None or plate in plate_ids:
                parts += [table, plate, content]
    return content_id("content", *parts)
