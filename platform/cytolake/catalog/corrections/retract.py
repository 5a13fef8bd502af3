"""Hides plates (retract) and makes them visible again (restore)."""

from __future__ import annotations

import datetime

from cytolake.catalog.corrections.plate_rows import (
    Row,
    acquisition_of,
    change,
    name_of,
    names_of,
    plate_named,
    plates_named,
)
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import VISIBLE, state_of


def retract(catalog: Catalog, name: str, why: str) -> Row:
    """Hide a plate, with all that was computed from it. Nothing is deleted, and an ingest leaves the plate out.

    Args:
        catalog: Not pinned.
        name: `screen/plate`, a plate, or a plate_id.

    Returns:
        Its row of `plates`.

    Raises:
        CatalogError: No reason, no such visible plate, or another process corrected it meanwhile.
    """
    if not why.strip():
        raise CatalogError(f"plate {name}: found no reason, expected one. Give it with --why.")
    row = plate_named(catalog, name)
    now = datetime.datetime.now(datetime.UTC)
    after = row | {"state": "retracted", "why": why.strip(), "changed_at": now}
    change(catalog, [row], [after])
    return after


def restore(catalog: Catalog, name: str, acquisition: int | None = None) -> Row:
    """Show a plate that was retracted, or an acquisition that was replaced; the one shown until now is replaced by it.

    Args:
        catalog: Not pinned.
        name: `screen/plate`, a plate, or a plate_id.
        acquisition: Which, 1 is the first; None: the newest that is hidden.

    Returns:
        Its row of `plates`.

    Raises:
        CatalogError: No such hidden acquisition, or another process corrected the plate meanwhile.
    """
    hidden = plates_named(catalog, name, ("retracted", "replaced"))
    chosen = [row for row in hidden if acquisition in (None, acquisition_of(row))]
    if not chosen:
        there = ", ".join(f"{acquisition_of(row)} ({state_of(row)})" for row in hidden)
        raise CatalogError(
            f"plate {name_of(hidden[0])}: found no hidden acquisition {acquisition}, expected one of {there}. Give one "
            "of them with --acquisition."
        )
    row = max(chosen, key=acquisition_of)
    now = datetime.datetime.now(datetime.UTC)
    after = row | {"state": VISIBLE, "why": None, "changed_at": now}
    before, rows = [row], [after]
    for other in catalog.visibility().visible.to_pylist():
        if names_of(other) == names_of(row):
            before.append(other)
            why = f"by acquisition {acquisition_of(row)}, restored"
            rows.append(other | {"state": "replaced", "why": why, "changed_at": now})
    change(catalog, before, rows)
    return after
