"""Matches objects of a table to the crops of a plate that show them: by crop id, or by well, site and centre.

Objects are rows with `n` (their number), `crop`, `well`, `site`, `object`, `y` and `x`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog.corrections.plate_rows import Row, name_of
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog

Report: TypeAlias = Callable[[str, str, str, str], None]
"""Adds a problem: its code, what was found, what was expected, the next step."""

_SOME = 5


def by_crop(catalog: Catalog, row: Row, objects: pa.Table, crops: pa.Table) -> tuple[dict[int, list[str]], pa.Table]:
    """The crop of each object by its id, the catalog's own or an imported vector's; and the objects with `well_id`.

    Objects whose crop is of another plate are left out.
    """
    known = crops.select(["crop_id", "well_id"])
    if pc.any(pc.invert(pc.is_in(objects["crop"], value_set=known["crop_id"].combine_chunks()))).as_py():
        imported = catalog.dataset("embeddings").to_table(
            columns=["crop_id", "well_id"],
            filter=(pc.field("plate_id") == row["plate_id"]) & pc.field("crop_id").isin(objects["crop"].unique()),
        )
        known = pa.concat_tables([known, imported]).group_by("crop_id").aggregate([("well_id", "min")])
        known = known.rename_columns(["crop_id", "well_id"])
    place = pc.index_in(objects["crop"], value_set=known["crop_id"].combine_chunks())
    placed = objects.append_column("well_id", known["well_id"].take(place)).filter(place.is_valid())
    return {n: [crop] for n, crop in zip(*(placed[name].to_pylist() for name in ("n", "crop")), strict=True)}, placed


def by_place(
    catalog: Catalog, row: Row, objects: pa.Table, crops: pa.Table, report: Report
) -> tuple[dict[int, list[str]], pa.Table]:
    """The crops of each object by its well, site and centre; and the objects of known wells with `well_id`.

    Raises:
        CatalogError: Objects without a site in wells with several.
    """
    wells = catalog.rows_of_plate("wells", row).to_table(columns=["well", "well_id"])
    place = pc.index_in(objects["well"], value_set=wells["well"].combine_chunks())
    if lost := sorted(set(objects.filter(place.is_null())["well"].to_pylist())):
        report(
            "object_without_well",
            f"objects in {len(lost)} wells that the plate does not have: {', '.join(lost[:_SOME])}",
            "wells with images, or of the plate map",
            "Correct the column of wells; until then these objects have no labels.",
        )
    placed = objects.append_column("well_id", wells["well_id"].take(place)).filter(place.is_valid())
    sites: dict[str, set[str]] = {}
    for well, site in zip(crops["well"].to_pylist(), crops["site"].to_pylist(), strict=True):
        sites.setdefault(well, set()).add(site)
    if not any(objects["site"].to_pylist()):
        if many := sorted(well for well in set(placed["well"].to_pylist()) if len(sites.get(well, ())) > 1):
            raise CatalogError(
                f"plate {name_of(row)}: found no column for the site, and wells with several sites, such as {many[0]}; "
                "expected the site of every object. Add a column site, as the catalog names them: "
                f"{', '.join(sorted(sites[many[0]])[:_SOME])}."
            )
        only = [next(iter(sites.get(well, ("",)))) for well in placed["well"].to_pylist()]
        placed = placed.set_column(placed.column_names.index("site"), "site", pa.array(only, pa.string()))
    here = zip(placed["well"].to_pylist(), placed["site"].to_pylist(), strict=True)
    if unknown := sorted({(well, site) for well, site in here if site not in sites.get(well, ())}):
        report(
            "object_without_image",
            f"objects in {len(unknown)} sites without crops: {', '.join(f'{w} site {s}' for w, s in unknown[:_SOME])}",
            f"sites of the catalog, such as {', '.join(sorted(next(iter(sites.values()), set()))[:_SOME]) or 'none'}",
            "Correct the column of sites; until then no crop has these labels.",
        )
    inside = (
        ""
        if placed["y"].null_count == placed.num_rows
        else ("AND o.y >= c.y AND o.y < c.y + c.size AND o.x >= c.x AND o.x < c.x + c.size")
    )
    found = catalog.sql(
        "SELECT o.n, list(c.crop_id ORDER BY c.crop_id) AS crop_ids FROM these o JOIN here c "
        f"ON o.well = c.well AND o.site = c.site {inside} GROUP BY o.n",
        these=placed.select(["n", "well", "site", "y", "x"]),
        here=crops.select(["crop_id", "well", "site", "y", "x", "size"]),
    )
    return dict(zip(found["n"].to_pylist(), found["crop_ids"].to_pylist(), strict=True)), placed


def once(placed: pa.Table, report: Report) -> pa.Table:
    """Each object once; one that occurs twice with different labels gets none."""
    keys = list(zip(*(placed[name].to_pylist() for name in ("well_id", "site", "object")), strict=True))
    if len(set(keys)) == len(keys):
        return placed
    kinds: dict[tuple[str, ...], set[int]] = {}
    for key, kind in zip(keys, placed["kind"].to_pylist(), strict=True):
        kinds.setdefault(key, set()).add(kind)
    unclear = [key for key, found in kinds.items() if len(found) > 1]
    if unclear:
        report(
            "duplicate_object",
            f"{len(unclear)} objects twice with other labels, such as object {unclear[0][2]} of site {unclear[0][1]}",
            "each object once",
            "Keep the right rows; until then these objects have no labels.",
        )
    seen: set[tuple[str, ...]] = set(unclear)
    is_first = []
    for key in keys:
        is_first.append(key not in seen)
        seen.add(key)
    return placed.filter(pa.array(is_first))
