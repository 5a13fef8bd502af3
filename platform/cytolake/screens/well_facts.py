"""Well-level values of a table with several rows per well, and contradictions between the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from cytolake.screens.label_vocabulary import label_vocabulary, nfc
from cytolake.screens.plate import Plate, Problem

Place = tuple[str, str]
"""Plate, in NFC, and well."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Rows of one well with different values of a column."""

    plate: str
    well: str
    column: str
    values: tuple[str, ...]

    def problem(self, screen: str, file: str) -> Problem:
        """The row of `quarantine`."""
        return Problem(
            screen=screen,
            plate=self.plate,
            well=self.well,
            file=file,
            problem="conflicting_label",
            found=f"{self.column}: {' and '.join(map(repr, self.values))} in rows of one well",
            expected=f"one value of {self.column} for a well",
            next_step="Correct the wrong cell; until then the well has no value there. Other wells keep theirs.",
        )


def facts_of_wells(
    rows: Iterable[tuple[Place, Mapping[str, str]]], *, join: str = "", one_row_each: bool = False
) -> tuple[dict[Place, dict[str, str]], list[Conflict]]:
    """For each well and column the value of all its rows, and the wells whose rows differ.

    A column is about wells where catalog/labels.yaml knows it so, or where it differs within fewer than half of a
    plate's wells that have several rows: a well whose rows disagree then has no value, which is a conflict, and other
    wells keep theirs. Columns that differ within more wells are about sites or images, and left out for the plate, or
    joined. Cells that say nothing disagree with none.

    Args:
        rows: Place and cells of each row, by column.
        join: Text between the values of a column that is about sites; empty leaves the column out.

        one_row_each: A well should have one row, as in a plate map: a column that differs in a few repeated wells is
            then no column about sites, even where these are all that have several rows.

    Returns:
        Facts by place, and conflicts.
    """
    vocabulary = label_vocabulary()
    values: dict[Place, dict[str, dict[str, None]]] = {}
    n_rows: dict[Place, int] = {}
    for place, cells in rows:
        key = nfc(place[0]), place[1]
        of_well = values.setdefault(key, {})
        n_rows[key] = n_rows.get(key, 0) + 1
        for column, value in cells.items():
            if value or join:
                of_well.setdefault(column, {}).setdefault(value)
    several: dict[str, int] = {}
    for (plate, _), n in n_rows.items():
        several[plate] = several.get(plate, 0) + (n > 1 or one_row_each)
    differing: dict[tuple[str, str], int] = {}
    for (plate, _), of_well in values.items():
        for column, found in of_well.items():
            if len(found) > 1 and len(_said(found)) > 1:
                differing[plate, column] = differing.get((plate, column), 0) + 1
    about_sites = {
        (plate, column)
        for (plate, column), n in differing.items()
        if 2 * n >= several[plate] and not vocabulary.is_about_wells(column)
    }
    facts: dict[Place, dict[str, str]] = {}
    conflicts = []
    for place, of_well in values.items():
        kept = facts[place] = dict[str, str]()
        for column, found in of_well.items():
            said = _said(found)
            if (place[0], column) in about_sites:
                if join:
                    kept[column] = join.join(value for value in found if value)
            elif len(said) > 1:
                conflicts.append(Conflict(*place, column, tuple(sorted(said))))
            else:
                kept[column] = next(iter(said or [value for value in found if value] or [""]))
    return facts, conflicts


def with_conflicts(plates: list[Plate], conflicts: Iterable[Conflict], screen: str, file: str) -> list[Plate]:
    """The plates with the problems of their own wells."""
    of_plate: dict[str, list[Problem]] = {}
    for conflict in conflicts:
        of_plate.setdefault(conflict.plate, []).append(conflict.problem(screen, file))
    return [
        replace(plate, problems=(*plate.problems, *of_plate[nfc(plate.plate)]))
        if nfc(plate.plate) in of_plate
        else plate
        for plate in plates
    ]


def _said(values: Iterable[str]) -> list[str]:
    """The values that say something; those that are one name in two Unicode forms, once."""
    vocabulary = label_vocabulary()
    forms: dict[str, str] = {}
    for value in values:
        if not vocabulary.says_nothing(value):
            forms.setdefault(nfc(value), value)
    return list(forms.values())
