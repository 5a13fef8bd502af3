"""Scripts for DuckDB and Polars that join each table with `plates`, so that other programs read visible rows only.

Rows of a plate are in `crops` before `plates` has the plate, and rows of a correction before it is turned on; a program
that reads a table alone would see them. Both texts read `plates` first, whole, and every other table after it: its row
is always committed after the rows that it shows, so no moment of an ingest or of a correction gives half a plate.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from cytolake.catalog.commits import open_table
from cytolake.catalog.declared import table_names
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import DERIVED_TABLES, EDITIONS, PLATE_TABLES

Format: TypeAlias = Literal["duckdb", "polars"]


def view_text(catalog: Catalog, form: Format) -> str:
    """A script that defines the visible part of every table that exists, under the table's name.

    Args:
        catalog: By its place; paths are absolute.
        form: `duckdb`: SQL that needs DuckDB's extension `delta`. `polars`: Python, a lazy frame for each table.

    Raises:
        CatalogError: Another form, or a catalog without plates.
    """
    columns = {}
    for name in table_names():
        table = open_table(f"{catalog.place}/tables/{name}")
        if table is not None:
            columns[name] = {field.name for field in table.schema().fields}
    if "plates" not in columns:
        raise CatalogError(f"{catalog.place}: found no table plates, expected one. Ingest a screen first.")
    if form == "duckdb":
        return _duckdb(catalog.place, columns)
    if form == "polars":
        return _polars(catalog.place, columns)
    raise CatalogError(f"views: found the format {form!r}, expected duckdb or polars.")


def _duckdb(place: str, columns: dict[str, set[str]]) -> str:
    def scan(name: str) -> str:
        path = f"{place}/tables/{name}".replace("'", "''")
        return f"delta_scan('{path}')"

    state = "coalesce(nullif(state, ''), 'visible')" if "state" in columns["plates"] else "'visible'"
    lines = [
        "-- The visible part of a cytolake catalog. Run it again for a newer state: plates is read once, first.",
        f"CREATE OR REPLACE TEMP TABLE all_plates AS SELECT * FROM {scan('plates')};",
        f"CREATE OR REPLACE TEMP VIEW plates AS SELECT * FROM all_plates WHERE {state} = 'visible';",
    ]
    for name in columns:
        if name == "plates":
            continue
        condition = ""
        if name in PLATE_TABLES:
            edition = EDITIONS.get(name)
            has_edition = edition is not None and "edition" in columns[name] and edition in columns["plates"]
            same = f" AND p.{edition} IS NOT DISTINCT FROM t.edition" if has_edition else ""
            condition = f" WHERE EXISTS (SELECT 1 FROM plates p WHERE p.plate_id = t.plate_id{same})"
        elif name in DERIVED_TABLES:
            hidden = f"SELECT 1 FROM all_plates p WHERE p.plate_id = t.plate_id AND {state} <> 'visible'"
            condition = f" WHERE NOT EXISTS ({hidden})"
        lines.append(f"CREATE OR REPLACE TEMP VIEW {name} AS SELECT t.* FROM {scan(name)} t{condition};")
    return "\n".join(lines) + "\n"


def _polars(place: str, columns: dict[str, set[str]]) -> str:
    def scan(name: str) -> str:
        return f"pl.scan_delta({f'{place}/tables/{name}'!r})"

    state = 'pl.col("state").fill_null("").is_in(["", "visible"])' if "state" in columns["plates"] else "pl.lit(True)"
    lines = [
        "# The visible part of a cytolake catalog. Run it again for a newer state: plates is read once, first.",
        "import polars as pl",
        "",
        f"all_plates = {scan('plates')}.collect()",
        f"is_visible = {state}",
        "plates = all_plates.filter(is_visible).lazy()",
        "hidden_plates = all_plates.filter(~is_visible).lazy()",
    ]
    for name in columns:
        if name == "plates":
            continue
        text = f"{name} = {scan(name)}"
        if name in PLATE_TABLES:
            edition = EDITIONS.get(name)
            if edition is not None and "edition" in columns[name] and edition in columns["plates"]:
                text += (
                    f'.join(plates.select("plate_id", edition="{edition}"), on=["plate_id", "edition"], how="semi", '
                    "nulls_equal=True)"
                )
            else:
                text += '.join(plates, on="plate_id", how="semi")'
        elif name in DERIVED_TABLES:
            text += '.join(hidden_plates, on="plate_id", how="anti")'
        lines.append(text)
    return "\n".join(lines) + "\n"
