"""Image files and OME-Zarr groups of a screen that no site uses: one problem per plate."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from cytolake.screens.images.ome_metadata import GROUP_FILES
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import well_name
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("tif", "tiff", "png", "jpg", "jpeg", "jp2", "j2k", "bmp", "flex", "c01", "dib", "stk"),
        *("nd2", "czi", "lif", "oif", "oib", "vsi", "ims", "lsm", "zvi"),
    )
)
"""Of files that hold images, whether these are read here or not."""
N_NAMED = 3
_MARKS = (*GROUP_FILES, ".zgroup")
_THUMBNAIL = "_thumb"  # MetaXpress writes one next to each image; they are no loss


def report_unlisted(
    screen: str, folder: SourceFolder, files: Sequence[str], plates: Sequence[Plate], others: Sequence[Problem]
) -> tuple[list[Plate], list[Problem]]:
    """The plates with an `unlisted_files` problem where there are such files, and one for those that lie in no plate.

    OME-Zarr plates in a bucket, where each folder costs a request, are not looked through. A file that another problem
    names, or whose folder one names, is reported already.

    Args:
        folder: Of the screen.
        files: Paths of all its files, relative to it; without those in OME-Zarr groups.
        plates: As listed, with the functions that correct their illumination.
        others: Problems of no plate.
    """
    used: set[str] = set()
    owner: dict[str, int | None] = {}  # folder -> number of the one plate that has images below it; None for several
    for number, plate in enumerate(plates):
        own = _paths_of(plate, folder)
        used |= own
        for place in {place for path in own for place in _folders_above(path)}:
            owner[place] = number if owner.get(place, number) == number else None
    named = {problem.file for each in (*(plate.problems for plate in plates), others) for problem in each} - {""}
    patterns = [name for name in named if "*" in name]
    unlisted: dict[int | None, list[str]] = {}
    for path in files:
        if not _is_image(path) or path in used or path in named:
            continue
        around = _folders_above(path)
        if any(place in named for place in around if place) or any(fnmatchcase(path, each) for each in patterns):
            continue
        innermost = next((each for each in around if each in owner), None)
        unlisted.setdefault(None if innermost is None else owner[innermost], []).append(path)
    if unlisted and not folder.is_remote:
        targets = _link_targets(used, folder)
        unlisted = {number: [path for path in paths if path not in targets] for number, paths in unlisted.items()}
    completed = []
    for number, plate in enumerate(plates):
        found = unlisted.get(number, [])
        if plate.reader == "ome-zarr" and not folder.is_remote:
            groups = (path for path in _unlisted_groups(plate, folder) if path not in named)
            found = [*found, *(path for path in groups if not any(fnmatchcase(path, each) for each in patterns))]
        problems = [_problem(screen, plate.plate, found)] if found else []
        completed.append(replace(plate, problems=(*plate.problems, *problems)) if problems else plate)
    lost = unlisted.get(None)
    return completed, [_problem(screen, "", lost)] if lost else []


def _paths_of(plate: Plate, folder: SourceFolder) -> set[str]:
    """Relative paths of every file that the plate's sites use."""
    absolute = {path for site in plate.sites for path in (*site.image_paths, *site.illumination_paths)} - {""}
    return {folder.relative(path) for path in absolute}


def _link_targets(used: set[str], folder: SourceFolder) -> set[str]:
    """Files that used paths lead to by links."""
    return {folder.relative(os.path.realpath(f"{folder.root}/{path}")) for path in used}


def _folders_above(path: str) -> list[str]:
    """The folders that a path lies in, from the innermost to the screen's own, which is empty."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]


def _is_image(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in IMAGE_SUFFIXES and _THUMBNAIL not in name.name.lower()


def _unlisted_groups(plate: Plate, folder: SourceFolder) -> Iterator[str]:
    """Wells, and images of listed wells, that lie in an OME-Zarr plate and that its metadata do not name."""
    top = folder.relative(plate.source)
    top = "" if top == "." else top + "/"
    listed = {folder.relative(path) for site in plate.sites for path in site.image_paths}
    named = {problem.file for problem in plate.problems}
    depth = top.count("/") + 2
    wells = {"/".join(name.split("/")[:depth]) for name in (*listed, *named)}
    try:
        for row in _folders(folder, top.rstrip("/")):
            for column in _folders(folder, f"{top}{row}"):
                well = f"{top}{row}/{column}"
                if not well_name(row + column) or not any(folder.exists(f"{well}/{mark}") for mark in _MARKS):
                    continue
                if well not in wells:
                    yield well
                elif well not in named:
                    for name in _folders(folder, well):
                        image = f"{well}/{name}"
                        is_group = any(folder.exists(f"{image}/{mark}") for mark in _MARKS)
                        if is_group and image not in listed and image not in named:
                            yield image
    except PathRefusedError:  # a link to another folder: nothing of it is the plate's
        return


def _folders(folder: SourceFolder, place: str) -> list[str]:
    return [name for name, is_folder in folder.list_folder(place) if is_folder and name not in ("labels", "tables")]


def _problem(screen: str, plate: str, paths: Sequence[str]) -> Problem:
    shown = ", ".join(paths[:N_NAMED]) + (", ..." if len(paths) > N_NAMED else "")
    is_one = len(paths) == 1
    return Problem(
        screen=screen,
        plate=plate,
        file=paths[0],
        problem="unlisted_files",
        found=f"{len(paths):,} image{'' if is_one else 's'} that no site uses: {shown}",
        expected="images that the listing or the layout's names put on a plate",
        next_step="If they belong to it, add them to the listing or correct their names; until then they are left out.",
    )
