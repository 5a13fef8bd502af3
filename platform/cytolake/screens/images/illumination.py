"""Illumination functions of a plate, found by their file names; raw counts are divided by them.

The usual names are those of a CellProfiler illumination pipeline, `<plate>/<plate>_Illum<channel>.npy`; any name
that holds nothing but the plate, the word Illum, and the channel will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cytolake.screens.channel_names import canonical, fold
from cytolake.screens.plate import Plate, SiteImage
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

OFF = "none"
"""Value of `ScreenSource.illumination` that leaves aside what a table names, too."""
SUFFIXES = (".npy", ".tif", ".tiff")
_ILLUM = re.compile(r"(?i)illum(?:ination)?(?:[_\- ]?(?:function|correction))?")


def correct_illumination(
    plate: Plate,
    folder: SourceFolder,
    where: str,
    files: Sequence[str],
    spellings: Mapping[str, str],
    vocabulary: Mapping[str, str],
) -> Plate:
    """The plate with illumination functions at its channels, and a problem for each channel that has none.

    Args:
        plate: With channels named as declared.
        folder: Of the screen.
        where: A folder, or a path with {plate} and {channel}, both relative to the screen's folder; `none` takes away
            the functions that a table named; empty leaves them.
        files: Paths of all files of the screen; needed only where `where` is a folder.
        spellings: Declared channel name -> as the source spells it, for {channel}.
        vocabulary: Folded spelling -> declared channel name.
    """
    if not where:
        return plate
    if where == OFF:
        return replace(plate, sites=tuple(replace(site, illumination_paths=()) for site in plate.sites))
    found: dict[str, str] = {}
    problems = []
    for channel in plate.channels:
        try:
            path = _path_of(plate.plate, channel, where, files, spellings, vocabulary)
            found[channel] = folder.find(path)
        except PathRefusedError as refused:
            problems.append(
                plate.problem(
                    channel=channel,
                    file=where,
                    problem="missing_illumination" if refused.problem == "missing_file" else refused.problem,
                    found=refused.found,
                    expected=f"an illumination function of plate {plate.plate}, channel {channel}",
                    next_step="Copy it there or correct `illumination`; until then the channel is read uncorrected.",
                )
            )
    sites = tuple(_with_functions(site, found) for site in plate.sites) if found else plate.sites
    return replace(plate, sites=sites, problems=(*plate.problems, *problems))


def _with_functions(site: SiteImage, found: Mapping[str, str]) -> SiteImage:
    paths = tuple(found.get(channel, "") for channel in site.channels)
    return replace(site, illumination_paths=paths if any(paths) else ())


def _path_of(
    plate: str,
    channel: str,
    where: str,
    files: Sequence[str],
    spellings: Mapping[str, str],
    vocabulary: Mapping[str, str],
) -> str:
    if "{" in where:
        return where.replace("{plate}", plate).replace("{channel}", spellings.get(channel, channel))
    below = where.strip("/") + "/"
    matching = [
        path
        for path in files
        if path.startswith(below)
        and path.lower().endswith(SUFFIXES)
        and _stands_for(path[len(below) :], plate, channel, vocabulary)
    ]
    named = [path for path in matching if plate in path[len(below) :]]  # a plate's own before one for all plates
    if not (named or matching):
        raise PathRefusedError(
            "missing_file",
            f"no file in {where} whose name holds the channel and nothing but",
            f"such as {plate}/{plate}_Illum{channel}.npy",
            "Copy it there.",
        )
    return (named or matching)[0]


def _stands_for(path: str, plate: str, channel: str, vocabulary: Mapping[str, str]) -> bool:
    *folders, name = path.split("/")
    if any(part != plate for part in folders):
        return False
    rest = _ILLUM.sub(" ", name.rpartition(".")[0].replace(plate, " "))
    rest = re.sub(r"(?i)^\s*[_\- ]*orig", "", rest).strip(" _-")
    return fold(canonical(rest, vocabulary)) == fold(channel)
