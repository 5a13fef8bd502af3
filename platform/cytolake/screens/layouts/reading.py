"""Detection of a folder's layout, and listing of plates by a layout."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cytolake.screens.files import list_indexed_plates, missing_columns
from cytolake.screens.imagexpress import has_imagexpress_images, list_imagexpress_plates
from cytolake.screens.layouts.cellvoyager import list_cellvoyager_plates, measurement_files
from cytolake.screens.layouts.class_folders import N_PLATES, list_class_folders, try_class_folders
from cytolake.screens.layouts.paths import list_by_paths, match_path
from cytolake.screens.layouts.preset import LayoutPreset, PathRule
from cytolake.screens.layouts.wide_tables import NO_TABLE, find_tables, list_by_tables
from cytolake.screens.ome_zarr import list_zarr_plates
from cytolake.screens.plate import Plate, Problem, ScreenError, as_text
from cytolake.screens.tables import read_header
from cytolake.storage.source_folder import SourceFolder

INDEX = "index.csv"
_NOT_PORTABLE = re.compile(r"\\|\A[A-Za-z]:/|\A[A-Za-z]:\Z")  # C:/x is a path of Windows
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs")

BUILT_IN = tuple(
    LayoutPreset(name=name, about=about, looks_like=looks_like, order=order, read=name)
    for order, (name, about, looks_like) in enumerate(
        (
            ("index-csv", "Images listed by an index.csv.", "index.csv"),
            ("ome-zarr", "OME-Zarr HCS plates.", "P1.zarr/B/03/0"),
            ("cellvoyager", "A CellVoyager measurement folder.", "MeasurementData.mlf"),
            ("imagexpress", "An ImageXpress export.", "TimePoint_1/P1_B03_s1_w1.tif"),
            ("class-folders", "Natural images, a folder for each class.", "train/cat/0001.png"),
        )
    )
)
"""Layouts with a reader in code, for callers that pass no declared presets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Result of testing a folder for a layout."""

    fits: bool
    said: str
    """What was found if it fits, else why it does not."""


def screen_files(folder: SourceFolder) -> list[str]:
    """Relative paths of all files of a screen, folder by folder in natural order; Zarr groups are not entered.

    Nor are folders with a name that no relative path can have, such as one that ends in a blank: these are among the
    files, with a slash at their end, to report.

    Raises:
        OSError: A bucket that cannot be listed.
    """
    files = []
    for place, folders, names in folder.walk():
        below = place + "/" if place else ""
        files += [f"{below}{name}/" for name in folders if not _can_be_named(name)]
        folders[:] = [name for name in folders if _can_be_named(name)]
        files += [below + name for name in names]
    return files


def is_zarr_screen(folder: SourceFolder) -> bool:
    """Whether the folder is a Zarr group, or holds one directly. Enters nothing else."""
    if any(folder.exists(name) for name in _ZARR_MARKS):
        return True
    return any(
        is_folder and (name.endswith(".zarr") or any(folder.exists(f"{name}/{mark}") for mark in _ZARR_MARKS))
        for name, is_folder in folder.list_folder()
    )


def has_zarr_groups(folder: SourceFolder) -> bool:
    """Whether Zarr groups lie in the folder or in folders below it.

    Raises:
        OSError: A bucket that cannot be listed.
    """
    from cytolake.screens.ome_zarr import zarr_groups

    return bool(zarr_groups(folder))


def try_layout(
    preset: LayoutPreset, screen: str, folder: SourceFolder, files: Sequence[str], index: str = INDEX
) -> Trial:
    """Look at names, and at the headers of tables that are in question. Reads no image.

    Args:
        folder: Of the screen.
        files: `screen_files` of it.
        index: CSV that lists the images; another name than index.csv is also taken for a table layout's one table.
    """
    if isinstance(preset.read, PathRule):
        n = sum(1 for path in files if match_path(preset.read, folder, path) is not None)
        if n:
            return Trial(fits=True, said=f"{n:,} of {len(files):,} files have such names")
        return Trial(fits=False, said=f"no name like {preset.looks_like} among {len(files):,} files")
    if not isinstance(preset.read, str):
        tables, reason = find_tables(screen, folder, preset.read, files, index if index != INDEX else "")
        if tables:
            return Trial(fits=True, said=", ".join(tables[:3]) + (" ..." if len(tables) > 3 else ""))
        return Trial(fits=False, said=f"no table like {preset.looks_like}" if reason == NO_TABLE else reason)
    if preset.read == "index-csv":
        return _try_index(screen, folder, index)
    if preset.read == "ome-zarr":
        fits = is_zarr_screen(folder)
        missing = "no Zarr group in the folder or directly below it; those that lie deeper are read if no layout fits"
        return Trial(fits=fits, said="Zarr groups" if fits else missing)
    if preset.read == "cellvoyager":
        found = measurement_files(files)
        return Trial(fits=bool(found), said=", ".join(found[:3]) or "no .mlf file")
    if preset.read == "class-folders":
        fits, said = try_class_folders(files)
        return Trial(fits=fits, said=said)
    fits = has_imagexpress_images(files)
    said = "names with a MetaXpress GUID or in TimePoint_ folders"
    return Trial(fits=fits, said=said if fits else f"no {said}")


def _try_index(screen: str, folder: SourceFolder, index: str) -> Trial:
    if not folder.exists(index):
        return Trial(fits=False, said=f"no {index}")
    try:
        missing = missing_columns(read_header(folder, index, screen))
    except ScreenError as error:
        return Trial(fits=False, said=str(error))
    if missing:
        return Trial(fits=False, said=f"{index} has no column {', '.join(missing)}")
    return Trial(fits=True, said=index)


def list_by_layout(
    preset: LayoutPreset,
    screen: str,
    folder: SourceFolder,
    files: Sequence[str] | None,
    index: str = INDEX,
    prefixes: Sequence[str] = (),
    n_plates: int = N_PLATES,
) -> tuple[list[Plate], list[Problem]]:
    """Plates of a screen, and problems that belong to none of them.

    Args:
        folder: Of the screen.
        files: `screen_files` of it; None to have it listed where the layout needs it.
        index: As for `try_layout`.
        prefixes: What absolute paths in tables stand for; see `path_prefixes.below_screen`.
        n_plates: Plates that a folder of classes without splits is dealt to.

    Raises:
        ScreenError: A table that cannot be used.
    """
    if preset.read == "index-csv":
        return list_indexed_plates(screen, folder, index, prefixes)
    if preset.read == "ome-zarr":
        return list_zarr_plates(screen, folder)
    files = screen_files(folder) if files is None else files
    named = [path for path in files if _can_be_named(path)]
    if preset.read == "class-folders":
        plates, problems = list_class_folders(screen, folder, named, n_plates)
    else:
        plates, problems = _list_files(preset, screen, folder, named, index, prefixes)
    return plates, problems + [_bad_name(screen, path) for path in files if not _can_be_named(path)]


def _list_files(
    preset: LayoutPreset, screen: str, folder: SourceFolder, files: Sequence[str], index: str, prefixes: Sequence[str]
) -> tuple[list[Plate], list[Problem]]:
    if isinstance(preset.read, PathRule):
        return list_by_paths(screen, folder, preset.read, files)
    if preset.read == "cellvoyager":
        return list_cellvoyager_plates(screen, folder, files)
    if isinstance(preset.read, str):
        return list_imagexpress_plates(screen, folder, files)
    tables, reason = find_tables(screen, folder, preset.read, files, index if index != INDEX else "")
    if not tables:
        raise ScreenError(
            Problem(
                screen=screen,
                file=index if index != INDEX else "",
                problem="missing_column" if "column" in reason else "missing_file",
                found=reason,
                expected=f"a table as of layout {preset.name}, such as {preset.looks_like}",
                next_step="Correct `index` or `layout` of the screen.",
            )
        )
    return list_by_tables(screen, folder, preset.read, tables, prefixes)


def _can_be_named(path: str) -> bool:
    """Whether a path means the same in a table of any machine; see `SourceFolder.find` for what it refuses."""
    return as_text(path) == path == path.strip() and not path.endswith("/") and not _NOT_PORTABLE.search(path)


def _bad_name(screen: str, path: str) -> Problem:
    return Problem(
        screen=screen,
        file=path,
        problem="bad_file_name",
        found="a folder of such a name" if path.endswith("/") else "a file of such a name",
        expected="UTF-8 without backslashes, and without blanks at either end",
        next_step="Rename it; until then it is not looked at.",
    )
