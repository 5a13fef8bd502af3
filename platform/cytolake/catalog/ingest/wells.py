"""Builds rows of the table `wells` from a plate's labels."""

from __future__ import annotations

import json
from typing import Any

from cytolake.catalog import ids
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import is_position, well_order, well_position
from cytolake.screens.well_labels import TEXT_LABELS, WellLabels, read_labels

_BLANK = WellLabels(perturbation="", texts=dict.fromkeys(TEXT_LABELS, ""), dose=None, control="", annotations={})


def well_rows(plate: Plate, wells_with_images: frozenset[str]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """One row for each well that the plate map names or that has images, in order of the wells.

    Args:
        plate: As listed from its source; its wells are the plate map. `read_labels` says how it is read.
        wells_with_images: Wells with at least one readable site.

    Returns:
        Rows of `wells`, and what could not be understood in the plate map: the field is then left empty.
    """
    labels = read_labels(plate)
    wells = sorted({*labels.wells, *wells_with_images, *(site.well for site in plate.sites)}, key=well_order)
    rows = [_well_row(plate, well, labels.wells.get(well, _BLANK), well in wells_with_images) for well in wells]
    return rows, list(labels.problems)


def _well_row(plate: Plate, well: str, labels: WellLabels, has_images: bool) -> dict[str, Any]:
    row, column = well_position(well) if is_position(well) else (None, None)
    return {
        "well_id": ids.well_id(plate.screen, plate.plate, well),
        "plate_id": ids.plate_id(plate.screen, plate.plate),
        "screen": plate.screen,
        "plate": plate.plate,
        "batch": plate.batch,
        "well": well,
        "row": row,
        "column": column,
        "perturbation": labels.perturbation,
        **labels.texts,
        "dose": labels.dose,
        "control": labels.control,
        "is_negative_control": labels.control == "negative",
        "has_images": has_images,
        "annotations": json.dumps(labels.annotations, sort_keys=True, ensure_ascii=False),
    }
