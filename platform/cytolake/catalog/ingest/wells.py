"""From a plate map as people write it to rows of the `wells` table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from cytolake.catalog import ids
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import is_position, well_order, well_position

LABELS = ("gene", "pathway", "guide", "compound", "replicate")
"""Plate-map columns that are columns of `wells` as they are."""

NEGATIVE = frozenset(
    {"negative", "neg", "neg control", "negative control", "negcon", "neg con", "nc", "ntc"}
    | {"dmso", "vehicle", "solvent", "untreated", "mock", "scrambled"}
    | {"non targeting", "nontargeting", "non targeting control"}
)
POSITIVE = frozenset({"positive", "pos", "pos control", "positive control", "poscon", "pos con", "pc"})
POSITIVE_PREFIXES = ("poscon ",)  # JUMP: poscon_cp, poscon_orf, poscon_diverse
NOTHING = frozenset({"", "na", "n/a", "nan", "none", "null"})
NO_CONTROL = NOTHING | {"no", "false", "0", "trt", "treatment", "treated", "sample", "test"}
SOME_CONTROL = frozenset({"yes", "true", "1", "control", "ctrl"})
"""A control of a kind the column does not say: negative where the treatment is one of NEGATIVE."""

_CONTROL_COLUMNS = ("control", "control_type")
_NOT_ANNOTATIONS = {"screen", "plate", "batch", "well", "perturbation", "dose", *LABELS, *_CONTROL_COLUMNS}


def well_rows(plate: Plate, wells_with_images: frozenset[str]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """One row for each well that the plate map names or that has images, in order of the wells.

    The perturbation is the plate map's column of that name, else its gene, else its compound. A well is a control only
    where the column `control` (or `control_type`) says so: a well of DMSO without it is a well of DMSO.

    Args:
        plate: As listed from its source; its wells are the plate map.
        wells_with_images: Wells with at least one readable site.

    Returns:
        Rows of `wells`, and what could not be understood in the plate map: the field is then left empty.
    """
    mapped: dict[str, Mapping[str, str]] = {}
    for entry in plate.wells:
        row = {key.strip().lower(): value.strip() for key, value in entry.items()}
        mapped.setdefault(row["well"], row)
    problems: list[Problem] = []
    wells = sorted({*mapped, *wells_with_images, *(site.well for site in plate.sites)}, key=well_order)
    return [
        _well_row(plate, well, mapped.get(well, {}), well in wells_with_images, problems) for well in wells
    ], problems


def parse_control(text: str, treatment: str) -> str | None:
    """`negative`, `positive` or empty, from a plate map's control column; None where it cannot be told.

    Args:
        text: The control column.
        treatment: What the well holds, asked where the column says only that it is a control.
    """
    said = _fold(text)
    if said in NO_CONTROL:
        return ""
    if said in NEGATIVE or (said in SOME_CONTROL and _fold(treatment) in NEGATIVE):
        return "negative"
    if said in POSITIVE or said.startswith(POSITIVE_PREFIXES):
        return "positive"
    return None


def _well_row(
    plate: Plate, well: str, mapped: Mapping[str, str], has_images: bool, problems: list[Problem]
) -> dict[str, Any]:
    labels = {name: mapped.get(name, "") for name in LABELS}
    perturbation = mapped.get("perturbation") or labels["gene"] or labels["compound"]
    said = next((mapped[name] for name in _CONTROL_COLUMNS if mapped.get(name)), "")
    control = parse_control(said, perturbation)
    if control is None:
        problems.append(
            Problem(
                screen=plate.screen,
                plate=plate.plate,
                well=well,
                problem="unknown_control",
                found=f"control {said}",
                expected="negative, positive or nothing",
                next_step="Correct the column control in the plate map. The well is kept as one that is no control.",
            )
        )
    dose = _number(mapped.get("dose", ""))
    if dose is None and _fold(mapped.get("dose", "")) not in NOTHING:
        problems.append(
            Problem(
                screen=plate.screen,
                plate=plate.plate,
                well=well,
                problem="bad_dose",
                found=f"dose {mapped['dose']}",
                expected="a number without a unit",
                next_step="Correct the column dose in the plate map. The well is kept without a dose.",
            )
        )
    row, column = well_position(well) if is_position(well) else (None, None)
    others = {name: value for name, value in mapped.items() if name not in _NOT_ANNOTATIONS and value}
    return {
        "well_id": ids.well_id(plate.screen, plate.plate, well),
        "plate_id": ids.plate_id(plate.screen, plate.plate),
        "screen": plate.screen,
        "plate": plate.plate,
        "batch": plate.batch,
        "well": well,
        "row": row,
        "column": column,
        "perturbation": perturbation,
        **labels,
        "dose": dose,
        "control": control or "",
        "is_negative_control": control == "negative",
        "has_images": has_images,
        "annotations": json.dumps(others, sort_keys=True, ensure_ascii=False),
    }


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _fold(text: str) -> str:
    return " ".join(text.lower().replace("_", " ").replace("-", " ").split())
