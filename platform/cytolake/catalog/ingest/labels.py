"""Hashes the labels of wells, and lists the differences between two sets of rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cytolake.catalog.declared import table_contract
from cytolake.catalog.ids import content_id

_NO_LABELS = {"well_id", "plate_id", "screen", "plate", "batch", "well", "row", "column", "has_images", "edition"}
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LabelChange:
    """One cell that differs."""

    screen: str
    plate: str
    well: str
    """Empty where the whole plate differs: its batch."""
    column: str
    """Of `wells`, or a plate-map column that is kept as an annotation."""
    before: str
    after: str


def labels_of(rows: Iterable[Row]) -> dict[str, dict[str, str]]:
    """For each well that has a label, its labels by column, annotations among them; nothing for an empty one."""
    columns = [name for name in table_contract("wells").schema.names if name not in _NO_LABELS]
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        labels = {name: _text(row.get(name)) for name in columns if name != "annotations"}
        others: dict[str, Any] = json.loads(row["annotations"] or "{}")
        labels |= {name: _text(value) for name, value in others.items()}
        labels = {name: text for name, text in labels.items() if text}
        if labels:
            found[row["well"]] = labels
    return found


def labels_hash(rows: Iterable[Row], batch: str) -> str:
    """Hash of the labels of a plate's wells and of its batch. Wells without labels do not count."""
    parts = ["labels", batch]
    for well, labels in sorted(labels_of(rows).items()):
        parts += ["well", well, *(text for pair in sorted(labels.items()) for text in pair)]
    return content_id(*parts)


def label_changes(screen: str, plate: str, before: Iterable[Row], after: Iterable[Row]) -> list[LabelChange]:
    """Every cell that differs between two sets of rows of one plate, in the order of wells and columns.

    Annotations that are the same number (1.00 and 1.0, 2 and 2.0) do not differ: a program that saves a plate map may
    write its numbers in another form.
    """
    old, new = labels_of(before), labels_of(after)
    labels = set(table_contract("wells").schema.names)
    changes = []
    for well in sorted({*old, *new}):
        were, are = old.get(well, {}), new.get(well, {})
        for column in dict.fromkeys((*were, *are)):
            one, other = were.get(column, ""), are.get(column, "")
            if one != other and (column in labels or not _is_same_number(one, other)):
                changes.append(LabelChange(screen, plate, well, column, one, other))
    return changes


def _is_same_number(one: str, other: str) -> bool:
    """Whether two texts are one decimal number. `007` is a name, not a number."""
    return bool(_NUMBER.fullmatch(one) and _NUMBER.fullmatch(other)) and Decimal(one) == Decimal(other)


def _text(value: Any) -> str:
    if value is None or value is False:
        return ""
    return json.dumps(value) if isinstance(value, bool | float | int | list | dict) else str(value)
