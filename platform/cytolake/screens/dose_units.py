"""Detection of mixed dose units in a screen: the table `wells` holds numbers, so 1 nM and 1 uM would be equal."""

from __future__ import annotations

from collections.abc import Sequence

from cytolake.screens.label_vocabulary import fold_column, label_vocabulary
from cytolake.screens.plate import Plate, Problem

UNIT_COLUMNS = ("doseunit", "concentrationunit", "doseunits", "concentrationunits")
_ENDINGS = {
    "pm": "pM", "picomolar": "pM", "nm": "nM", "nanomolar": "nM", "um": "uM", "micromolar": "uM", "mm": "mM",
    "millimolar": "mM", "mmolesperliter": "mM", "mmolconc": "mM",
}  # fmt: skip
_SOME = 5


def mixed_dose_units(screen: str, plates: Sequence[Plate]) -> list[Problem]:
    """A problem where the plate maps of a screen give doses in several units.

    A unit is what a column such as `dose unit` says of a well, else the end of the dose column's name (`dose_um`,
    `Concentration (nM)`); a dose without either says nothing.
    """
    found: dict[str, list[str]] = {}
    for plate in plates:
        for unit in units_of_plate(plate):
            found.setdefault(unit, []).append(plate.plate)
    if len(found) < 2:
        return []
    listed = "; ".join(f"{unit} on {_some(names)}" for unit, names in sorted(found.items()))
    return [
        Problem(
            screen=screen,
            problem="mixed_dose_units",
            found=listed,
            expected="doses of a screen in one unit, for they are stored as numbers",
            next_step="Convert the doses in the plate maps to one unit. Until then these doses do not compare.",
        )
    ]


def units_of_plate(plate: Plate) -> list[str]:
    """Units of the doses of a plate's wells, each once."""
    vocabulary = label_vocabulary()
    columns = list(dict.fromkeys(column for row in plate.wells for column in row))
    filled = [c for c in columns if any(not vocabulary.says_nothing(row.get(c, "")) for row in plate.wells)]
    of_dose = vocabulary.columns_of(filled).get("dose", ())
    if not of_dose:
        return []
    dose = of_dose[0]
    unit = next((c for c in filled if fold_column(c) in UNIT_COLUMNS), None)
    units = set()
    for row in plate.wells:
        if not vocabulary.says_nothing(row.get(dose, "")):
            said = vocabulary.value(row.get(unit, "")) if unit else ""
            units.add(_unit(fold_column(said)) or said or _unit(fold_column(dose)))
    return sorted(units - {""})


def _unit(folded: str) -> str:
    """The unit that a name ends in; empty for none. `dose` and `conc` alone end in none."""
    return next((unit for ending, unit in _ENDINGS.items() if folded.endswith(ending)), "")


def _some(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    return f"{', '.join(unique[:_SOME])}{' and more' if len(unique) > _SOME else ''}"
