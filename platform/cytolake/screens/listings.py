"""Comparison of a screen's listing with its files: listed files and wells that are missing.

A listing is Index.idx.xml of Harmony, the HTD file of MetaXpress, a metadata table of wells and sites, or OME-Zarr
metadata. Every missing item of the listing is one problem; a well without any image is one more, and a plate without
any image is one problem in total. Files that are not listed are read, because their names locate them, and counted in
one problem of the plate. Tables with a row per image and CellVoyager's records are checked row by row by their readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import well_position
from cytolake.storage.natural_order import natural_order

N_NAMED = 3
COPY = "Copy it from where the screen was exported, or take it off the listing if it was never imaged."


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One image, field or well of a listing."""

    plate: str
    well: str
    """As `well_name` gives it; empty for something of the whole plate, such as a timepoint."""
    site: str = ""
    """Empty where the listing names wells only."""
    channel: str = ""
    """As the layout's reader names it; empty where the listing names no channels."""
    file: str = ""
    """Relative to the screen's folder; empty where the listing names no files."""
    detail: str = ""
    """How it differs from others of its site, such as `plane 2`."""
    listing: str
    """The file that names it."""


def absent_of_listing(
    screen: str, listed: Iterable[Listed], plates: Sequence[Plate], is_there: Callable[[Listed], bool]
) -> tuple[list[Plate], list[Problem]]:
    """The plates with a problem for each listed thing that is absent, and problems of plates without any image.

    Args:
        listed: What the listings name; repeated names count once.
        plates: With images, as the layout's reader found them.
        is_there: Whether it was copied.
    """
    by_plate: dict[str, list[Listed]] = {}
    for each in dict.fromkeys(listed):
        by_plate.setdefault(each.plate, []).append(each)
    there = {plate.plate for plate in plates}
    completed = [_with_absent(plate, by_plate.get(plate.plate, ()), is_there) for plate in plates]
    return completed, [
        _plate_without_image(screen, name, names) for name, names in by_plate.items() if name not in there
    ]


def report_wells_without_image(plate: Plate) -> Plate:
    """The plate with `well_without_image` for each well whose listed images are all missing."""
    imaged = {site.well for site in plate.sites}
    reported = {problem.well for problem in plate.problems if problem.problem == "well_without_image"}
    missing: dict[str, list[Problem]] = {}
    for problem in plate.problems:
        if problem.problem == "missing_file" and problem.well and problem.well not in imaged | reported:
            missing.setdefault(problem.well, []).append(problem)
    added = [
        plate.problem(
            well=well,
            problem="well_without_image",
            found=f"none of {len(missing[well])} listed images" if len(missing[well]) > 1 else "no image",
            expected="the images that are listed",
            next_step=COPY,
        )
        for well in sorted(missing, key=_well_order)
    ]
    return replace(plate, problems=(*plate.problems, *added)) if added else plate


def report_not_listed(plate: Plate, listing: str, extra: Sequence[str]) -> Plate:
    """The plate with a problem for what is there and what its listing does not name; as it is where there is nothing.

    Args:
        extra: What it does not name, in words.
    """
    if not extra:
        return plate
    shown = ", ".join(extra[:N_NAMED]) + (", ..." if len(extra) > N_NAMED else "")
    problem = plate.problem(
        file=listing,
        problem="not_in_listing",
        found=f"{len(extra):,} images or fields that it does not list: {shown}",
        expected="a listing of everything that was imaged",
        next_step="They are read as their names say. If they are of another plate or run, move them out of the folder; "
        "if the listing is of a part of the plate, copy the whole one.",
    )
    return replace(plate, problems=(*plate.problems, problem))


def _with_absent(plate: Plate, listed: Sequence[Listed], is_there: Callable[[Listed], bool]) -> Plate:
    absent = [each for each in listed if not is_there(each)]
    if not absent:
        return plate
    absent.sort(key=lambda each: (_well_order(each.well), natural_order(each.site), each.file))
    problems = [
        plate.problem(
            well=each.well,
            site=each.site,
            channel=each.channel,
            file=each.file,
            problem="well_without_image" if each.well and not each.site else "missing_file",
            found=f"{'no such file' if each.file else 'no image'}{f' of {each.detail}' if each.detail else ''}",
            expected=f"what {each.listing} lists",
            next_step=COPY,
        )
        for each in absent
    ]
    return report_wells_without_image(replace(plate, problems=(*plate.problems, *problems)))


def _plate_without_image(screen: str, plate: str, listed: Sequence[Listed]) -> Problem:
    n_wells = len({each.well for each in listed})
    return Problem(
        screen=screen,
        plate=plate,
        file=listed[0].listing,
        problem="plate_without_image",
        found=f"no image of {n_wells} listed well{'' if n_wells == 1 else 's'}",
        expected=f"what {listed[0].listing} lists",
        next_step="Copy the plate's images, or take it off the listing.",
    )


def _well_order(well: str) -> tuple[int, int]:
    try:
        return well_position(well)
    except ValueError:
        return (0, 0)
