"""What a table with several rows for each well says about the wells themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

Place = tuple[str, str]
"""Plate and well."""


def facts_of_wells(rows: Iterable[tuple[Place, Mapping[str, str]]]) -> dict[Place, dict[str, str]]:
    """For each well the columns that have one value in every well; the others are about sites or images."""
    wells: dict[Place, dict[str, str]] = {}
    varying: set[str] = set()
    for place, cells in rows:
        facts = wells.setdefault(place, {})
        for name, value in cells.items():
            if value and name not in varying and facts.setdefault(name, value) != value:
                varying.add(name)
    return {place: {k: v for k, v in facts.items() if k not in varying} for place, facts in wells.items()}
