"""Advice on labels to add to a plate map."""

from __future__ import annotations

from collections.abc import Sequence

from cytolake.screens.plate import Plate
from cytolake.screens.positions import is_position
from cytolake.screens.well_labels import PlateLabels, looks_negative

_N_SHOWN = 4
NO_ROW = "image_without_well"
"""Problem of a well that a plate map has no row of."""


def advice_on_labels(plates: Sequence[Plate], labels: Sequence[PlateLabels]) -> list[str]:
    """Sentences on what was done to the wells: none is known, or no well is a negative control.

    Args:
        plates: With their plate maps.
        labels: Of each.
    """
    if not plates:
        return []
    if not any(plate.wells for plate in plates):
        maps = sorted({problem.file for plate in plates for problem in plate.problems if problem.problem == NO_ROW})
        if maps:
            names = ", ".join(plate.plate for plate in plates[:_N_SHOWN])
            return [f"{maps[0]} has no row of any plate of the screen. Its column plate must have the names {names}."]
        place = "plate, well" if any(_has_positions(plate) for plate in plates) else "plate, sample"
        return [
            f"Nothing says what was done to the wells; write a platemap.csv with columns {place}, perturbation, "
            "control, or set plate_map."
        ]
    wells = [well for each in labels for well in each.wells.values()]
    if not any(well.perturbation for well in wells) or any(well.control == "negative" for well in wells):
        return []
    like = sorted({well.perturbation for well in wells if looks_negative(well.perturbation)})
    found = f" (such as those of {', '.join(like[:_N_SHOWN])}, if they are)" if like else ""
    return [
        "No well is marked as a negative control, which alignment and many benchmarks need: write negative into a "
        f"column control for such wells{found}, or name the column that says so in label_columns."
    ]


def _has_positions(plate: Plate) -> bool:
    """Whether the plate has wells by position, not samples that stand for wells."""
    return any(is_position(site.well) for site in plate.sites)
