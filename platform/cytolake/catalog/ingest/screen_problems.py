"""Writes problems as rows of `quarantine`, also those of a screen that belong to no plate."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import ids
from cytolake.catalog.declared import table_contract
from cytolake.catalog.tables import Catalog
from cytolake.screens.acquisitions import ImageOf
from cytolake.screens.plate import Problem

_PLACE = ("screen", "plate", "well", "site", "channel", "file", "problem")


def image_of_plate(catalog: Catalog, screen: str) -> ImageOf:
    """For the name of a plate of this screen, the path of one image that the catalog has of it; empty for none."""

    @cache
    def plates() -> dict[str, str]:
        rows = catalog.dataset("plates").to_table(columns=["screen", "plate", "plate_id"]).to_pylist()
        return {row["plate"]: row["plate_id"] for row in rows if row["screen"] == screen}

    def image_of(plate: str) -> str:
        if plate not in plates():
            return ""
        sites = catalog.dataset("sites").filter(pc.field("plate_id") == plates()[plate])
        paths = sites.head(1, columns=["image_paths"]).column("image_paths").to_pylist()
        return str(paths[0][0]) if paths and paths[0] else ""

    return image_of


def quarantine_rows(identity: str, problems: Sequence[Problem], now: datetime.datetime) -> pa.Table:
    """Rows of `quarantine` for problems of one plate, each once, in the order of their ids."""
    rows = {}
    for problem in problems:
        text = asdict(problem)
        key = ids.content_id("quarantine", identity, *(f"{name}={value}" for name, value in sorted(text.items())))
        rows[key] = {"quarantine_id": key, "plate_id": identity, "quarantined_at": now} | text
    return table_contract("quarantine").rows(rows[key] for key in sorted(rows))


def quarantine_of_screens(catalog: Catalog, problems: Sequence[Problem]) -> int:
    """Add problems that belong to no plate, but those that are there already; returns how many were added.

    What is found may be worded otherwise each time, since it depends on all that lies in the folder (`the screen's
    plates are P1, P2`), so that a problem is known by its place.
    """
    if not problems:
        return 0
    there = catalog.dataset("quarantine").to_table(columns=list(_PLACE)).to_pylist()
    known = Counter(tuple(row[name] or "" for name in _PLACE) for row in there)
    now = datetime.datetime.now(datetime.UTC)
    added = []
    for problem in problems:
        place = tuple(getattr(problem, name) for name in _PLACE)
        known[place] -= 1
        if known[place] < 0:
            added.append(quarantine_rows(ids.plate_id(problem.screen, problem.plate), [problem], now))
    if added:
        rows = pa.concat_tables(added)
        number = ids.content_id("screens", *rows.column("quarantine_id").to_pylist())
        catalog.append("quarantine", rows, transaction=f"screens/{number}")
    return len(added)
