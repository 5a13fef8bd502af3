"""Repeated imaging runs of one plate: choice of the run to read, and problems for the others.

The name of a plate depends on its own path only, so two runs of plate P1 are both named P1. One of them is read: the
run in the catalog, otherwise the first in natural order of the folders. The others are `duplicate_plate` problems until
the user chooses. With `runs` set to `each`, every run is a plate, and its name contains the run's folder, even for a
plate imaged once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from cytolake.screens.plate import Plate, Problem, with_name
from cytolake.storage.natural_order import natural_order

Runs = Literal["one", "each"]
"""one: a plate is the plate, however often it was imaged. each: each imaging run is a plate of its own."""

ImageOf = Callable[[str], str]
"""Path of an image of the plate of that name that the catalog has; empty where it has no such plate."""

CHOICES = (
    "Replace the plate's pixels by this run with `cytolake plates replace`; or set `runs` of the screen to each, so "
    "that every run is a plate of its own; or move one of the two out of the screen."
)


def choose_runs(
    plates: Sequence[Plate], runs: Runs = "one", image_of: ImageOf | None = None
) -> tuple[list[Plate], list[Problem]]:
    """One plate per name, in the order found, and a problem for each further plate of that name.

    Args:
        plates: As listed by a layout's reader; several may have one name.
        runs: `one`: read one run of a plate; `each`: every run is a plate.
        image_of: What the catalog has; None where there is no catalog. A run that it has as a plate of its own, as
            earlier versions named them, stays that plate.
    """
    named = [_named(plate, plates, runs, image_of) for plate in plates]
    by_name: dict[str, list[Plate]] = {}
    for plate in named:
        by_name.setdefault(plate.plate, []).append(plate)
    problems = []
    for name, same in by_name.items():
        same.sort(key=lambda plate: natural_order(plate.acquisition or plate.source))
        image = image_of(name) if image_of is not None and len(same) > 1 else ""
        first = _owner(same, image) or same[0]
        problems += [_second_run(plate, first) for plate in same if plate is not first]
        by_name[name] = [first]
    return [plate for plate in named if by_name[plate.plate][0] is plate], problems


def _named(plate: Plate, plates: Sequence[Plate], runs: Runs, image_of: ImageOf | None) -> Plate:
    if not plate.run_name or plate.run_name == plate.plate:
        return plate
    if runs == "each":
        return with_name(plate, plate.run_name)
    image = image_of(plate.run_name) if image_of is not None else ""
    if not image:
        return plate
    alike = [each for each in plates if each.run_name == plate.run_name]
    return with_name(plate, plate.run_name) if _owner(alike, image) is plate else plate


def _owner(plates: Sequence[Plate], image: str) -> Plate | None:
    """The run that an image of the catalog is of, also where the whole screen was moved since; None for no run."""
    if not image:
        return None
    own = next((plate for plate in plates if any(image in site.image_paths for site in plate.sites)), None)
    moved = [plate for plate in plates if plate.acquisition and f"/{plate.acquisition}/" in f"{image}/"]
    return own or max(moved, key=lambda plate: len(plate.acquisition), default=None)


def _second_run(plate: Plate, first: Plate) -> Problem:
    place, first_place = plate.acquisition or plate.source, first.acquisition or first.source
    return plate.problem(
        file=place,
        problem="duplicate_plate",
        found=f"{place}, another acquisition of plate {plate.plate}, which is {first_place}",
        expected="each plate once in a screen",
        next_step=f"{first_place} was kept. {CHOICES}",
    )
