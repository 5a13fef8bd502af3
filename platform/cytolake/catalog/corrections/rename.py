"""Renames a plate or a screen. Ids stay, and with them embeddings, profiles, scores and verdicts."""

from __future__ import annotations

import datetime
import json
from typing import Any

from cytolake.catalog.corrections.editions import write_names, write_well_names
from cytolake.catalog.corrections.plate_rows import Row, change, name_of, names_of, plates_named
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ingest.commit import ids_of
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import GONE, VISIBLE, state_of


def rename(catalog: Catalog, name: str, *, screen: str = "", plate: str = "") -> list[Row]:
    """Give a plate, or all plates of a screen, another name, in one commit; hidden acquisitions too.

    A batch that is the plate's name, or screen and plate, as where no source names one, follows.

    Args:
        catalog: Not pinned.
        name: `screen/plate`, a plate, a plate_id, or a screen.
        screen: The new name of the screen; empty leaves it.
        plate: The new name of the plate, where `name` is one; empty leaves it.

    Returns:
        The visible rows of `plates`.

    Raises:
        CatalogError: No new name, one with a slash, one that another plate has, no such plate, or another process
            corrected it meanwhile.
    """
    if not (screen.strip() or plate.strip()):
        raise CatalogError(f"plate {name}: found no new name, expected one. Give --screen or --plate.")
    if odd := next((each for each in (screen, plate) if "/" in each), ""):
        raise CatalogError(
            f"plate {name}: found the new name {odd!r}, expected one without a slash: SCREEN/PLATE names a plate."
        )
    states = (VISIBLE, "retracted", "replaced", "purged")  # a plate that was purged must be known by its new name
    rows = plates_named(catalog, name, states, may_be_screen=True)
    if len({names_of(row) for row in rows}) == 1:  # a plate_id, too, stands for all acquisitions of its plate
        everything = catalog.visibility().plates.to_pylist()
        rows = [row for row in everything if names_of(row) == names_of(rows[0]) and state_of(row) in states]
    elif plate:
        raise CatalogError(f"screen {name}: found {len(rows)} plates, expected one to be called {plate}. Name it.")
    now = datetime.datetime.now(datetime.UTC)
    before: list[Row] = []
    after: list[Row] = []
    for row in rows:
        names = _new_names(row, screen.strip(), plate.strip())
        if all(row[column] == value for column, value in names.items()):
            continue
        of = ids_of(row)
        ids = json.dumps([of.screen, of.plate, of.acquisition])
        before.append(row)
        editions = {}
        if state_of(row) not in GONE:
            editions = {
                "wells_edition": write_well_names(catalog, row, names),
                "sites_edition": write_names(catalog, row, names),
            }
        after.append(row | names | editions | {"id_names": ids, "changed_at": now})
    _check_free(catalog, before, after)
    if before:
        change(catalog, before, after)
    return [row for row in after if state_of(row) == VISIBLE]


def _new_names(row: Row, screen: str, plate: str) -> dict[str, Any]:
    names = {"screen": screen or row["screen"], "plate": plate or row["plate"], "batch": row["batch"]}
    if row["batch"] is None:  # of a plate that was purged
        return names
    batch = str(row["batch"])
    middle = batch[len(row["screen"]) : len(batch) - len(row["plate"])]
    if batch == row["plate"]:
        names["batch"] = names["plate"]
    elif batch == row["screen"] + middle + row["plate"] and not any(c.isalnum() for c in middle):
        names["batch"] = names["screen"] + middle + names["plate"]
    return names


def _check_free(catalog: Catalog, before: list[Row], after: list[Row]) -> None:
    ours = {row["plate_id"] for row in before}
    wanted = {names_of(row) for row in after}
    for row in catalog.visibility().plates.to_pylist():
        if row["plate_id"] not in ours and names_of(row) in wanted:
            raise CatalogError(
                f"plate {name_of(row)}: found a plate of this name, {state_of(row)}, expected none. Choose another "
                "name, or rename that plate first."
            )
