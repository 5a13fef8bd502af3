"""Plates as OME-Zarr HCS 0.4 (Zarr v2) and 0.5 (Zarr v3), on a disk or in a bucket.

Source: https://ngff.openmicroscopy.org/0.4 and /0.5, "plate" and "well" metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cytolake.screens.derived_copies import derived_copy, derived_word
from cytolake.screens.images.ome_metadata import (
    GROUP_FILES,
    ImageFacts,
    image_facts,
    level_of,
    read_arrays,
    read_groups,
)
from cytolake.screens.ome_zarr_acquisitions import PlateImage, acquisition_order, sites_of_images
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.positions import expected_well, site_name, well_name
from cytolake.screens.site_groups import site_order
from cytolake.storage import files as storage
from cytolake.storage.natural_order import natural_order
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

_MARKS = (*GROUP_FILES, ".zgroup")
N_LEVELS = 3
"""Plates are looked for in the screen's folder, in its folders (runs, days) and in theirs."""
_N_REQUESTS_MAX = 64  # folders of a bucket below the first level: each costs a request
_SITES_MAX = 2**16  # times and focal planes of one image


def list_zarr_plates(screen: str, folder: SourceFolder) -> tuple[list[Plate], list[Problem]]:
    """Every plate with at least one readable site, and what is wrong outside of these. Reads metadata only.

    Plates lie in the folder or in folders of runs below it.

    Raises:
        OSError: A bucket that cannot be listed.
    """
    groups: list[dict[str, Any] | Exception | None]
    (own,) = read_groups([folder.root])
    if isinstance(own, dict) and "plate" in own:
        names, groups = [""], [own]
    else:
        names = zarr_groups(folder)
        held = [folder.holds(f"{folder.root}/{name}") for name in names]
        found = iter(
            read_groups([f"{folder.root}/{name}" for name, is_held in zip(names, held, strict=True) if is_held])
        )
        groups = [next(found) if is_held else None for is_held in held]
    plates, problems = [], []
    for name, group in zip(names, groups, strict=True):
        plate, wrong = _list_plate(screen, folder, name, group)
        problems += wrong
        if plate is not None:
            plates.append(plate)
    return _without_derived(screen, plates, problems)


def zarr_groups(folder: SourceFolder) -> list[str]:
    """Zarr groups in a screen's folder and in folders of runs below it, relative to it; none inside of another.

    Raises:
        OSError: A bucket that cannot be listed.
    """
    found: list[str] = []
    n_left = _N_REQUESTS_MAX if folder.is_remote else 0
    level = [""]
    for depth in range(N_LEVELS):
        below: list[str] = []
        for place in level:
            if folder.is_remote and depth:
                n_left -= 1
                if n_left < 0:
                    return found
            for name in _folders(folder, place):
                path = f"{place}/{name}" if place else name
                is_group = name.endswith(".zarr") or (not (folder.is_remote and depth) and _is_group(folder, path))
                (found if is_group else below).append(path)
        level = below
    return found


def _folders(folder: SourceFolder, place: str) -> list[str]:
    if folder.is_remote and place:  # a run holds all chunks of its plates: not listed whole, as `list_folder` would
        listed = storage.list_one_level(f"{folder.root}/{place}")
        return sorted((name for name in listed if listed[name] and not name.startswith(".")), key=natural_order)
    try:
        return [name for name, is_folder in folder.list_folder(place) if is_folder]
    except PathRefusedError:  # a link that leads outside
        return []


def _is_group(folder: SourceFolder, path: str) -> bool:
    try:
        return any(folder.exists(f"{path}/{mark}") for mark in _MARKS)
    except PathRefusedError:
        return False


def _without_derived(
    screen: str, plates: Sequence[Plate], problems: Sequence[Problem]
) -> tuple[list[Plate], list[Problem]]:
    """Plates, and problems with those added of plates that were made from others of them, such as `P1_mip`."""
    names = {plate.plate for plate in plates}
    kept, left_out = [], []
    for plate in plates:
        word = derived_word(plate.plate)
        if word and plate.plate.removesuffix(word) in names:
            left_out.append(derived_copy(screen, plate.plate, plate.acquisition, 1, "plate"))
        else:
            kept.append(plate)
    return kept, [*problems, *left_out]


def _list_plate(
    screen: str, folder: SourceFolder, place: str, group: dict[str, Any] | Exception | None
) -> tuple[Plate | None, list[Problem]]:
    """One plate; `place` is relative to the folder, `group` its metadata, None where a link leads outside."""
    path = f"{folder.root}/{place}" if place else str(folder.root)
    name = path.rpartition("/")[2].removesuffix(".zarr").removesuffix(".ome")
    problems: list[Problem] = []

    def report(problem: str, found: str, expected: str, next_step: str, *, well: str = "", site: str = "") -> None:
        file = folder.relative(path)
        if well:
            file += f"/{well}" + (f"/{site}" if site else "")
        problems.append(
            Problem(
                screen=screen,
                plate=name,
                well=well_name(well) or well,
                site=site_name(site) if site else "",
                file=file,
                problem=problem,
                found=found,
                expected=expected,
                next_step=next_step,
            )
        )

    if group is None:
        report(
            "path_outside_screen",
            "a link to another folder",
            "a plate below the screen's folder",
            "Copy the plate here, or give its real folder as a source of its own.",
        )
        return None, problems
    if isinstance(group, Exception):
        report("unreadable_file", _one_line(group), "OME-Zarr plate metadata", "Write the plate again.")
        return None, problems
    if "plate" not in group:
        report(
            "not_a_plate",
            "an OME-Zarr image" if "multiscales" in group else "no plate metadata",
            "OME-Zarr HCS plate metadata, version 0.4 or 0.5",
            "Remove the folder from the screen, or write it again as a plate.",
        )
        return None, problems
    try:
        well_paths = _paths(group["plate"], "wells")
    except ValueError as error:
        report("unreadable_file", str(error), "valid OME-Zarr plate metadata", "Write the plate again.")
        return None, problems

    wells: dict[str, str] = {}
    for well_path in well_paths:
        row, _, column = well_path.partition("/")
        well = well_name(f"{row}{column}")
        if not well or "/" in column:
            report(
                "bad_well_name",
                repr(well_path),
                expected_well(well_path.replace("/", "")),
                "Rename the well in the plate metadata and on disk.",
                well=well_path,
            )
        elif wells.setdefault(well, well_path) != well_path:
            report(
                "duplicate_well",
                f"{wells[well]} and {well_path}",
                "each well once",
                "The first was kept; merge or remove the other.",
                well=well_path,
            )

    images: list[tuple[str, str, str, int | None]] = []  # well, well path, image path, acquisition
    well_groups = read_groups([f"{path}/{well_path}" for well_path in wells.values()])
    for (well, well_path), well_group in zip(wells.items(), well_groups, strict=True):
        if well_group == {}:
            report(
                "well_without_image",
                "no such well group",
                "the well that the plate's metadata names",
                "Copy the well, or remove it from the plate metadata if it was not imaged.",
                well=well_path,
            )
            continue
        try:
            if isinstance(well_group, Exception):
                raise well_group
            image_paths = _paths(well_group.get("well"), "images")
            acquisitions = [image.get("acquisition") for image in well_group["well"]["images"]]
        except (OSError, ValueError) as error:
            report(
                "unreadable_file",
                _one_line(error) if isinstance(error, OSError) else str(error),
                "the well's metadata, which lists its images",
                "Write the well again, or remove it from the plate metadata.",
                well=well_path,
            )
            continue
        if not image_paths:
            report(
                "well_without_image",
                "no image in the well's metadata",
                "at least one image",
                "Remove the well from the plate metadata if it was not imaged.",
                well=well_path,
            )
        seen: dict[str, str] = {}
        for image_path, acquisition in zip(image_paths, acquisitions, strict=True):
            image = f"{path}/{well_path}/{image_path}"
            if "/" in image_path or image_path in ("", ".", "..") or not folder.holds(image):
                report(
                    "path_outside_screen",
                    repr(image_path),
                    "an image group directly in the well's folder",
                    "Copy the image into the well's folder and name it there.",
                    well=well_path,
                )
                continue
            site = site_name(image_path)
            if seen.setdefault(site, image_path) != image_path:
                report(
                    "duplicate_image",
                    f"images {seen[site]} and {image_path}",
                    "site names that differ by more than leading zeros",
                    "The first was kept; rename the other.",
                    well=well_path,
                    site=image_path,
                )
                continue
            images.append((well, well_path, image_path, acquisition if isinstance(acquisition, int) else None))

    found: list[PlateImage] = []
    pixel_sizes_um: set[float] = set()
    places = [f"{path}/{well_path}/{image_path}" for _, well_path, image_path, _ in images]
    for (well, well_path, image_path, acquisition), image, facts in zip(
        images, places, _facts_of(folder, places), strict=True
    ):
        if not isinstance(facts, ImageFacts):
            report(
                "unreadable_file" if facts else "missing_file",
                _one_line(facts) if facts else "no such image group",
                "the image that the well's metadata names",
                "Write the image again, or remove it from the well's metadata.",
                well=well_path,
                site=image_path,
            )
            continue
        if facts.pixel_size_um is not None:
            pixel_sizes_um.add(facts.pixel_size_um)
        if facts.n("t") * facts.n("z") > _SITES_MAX:
            report(
                "too_large",
                f"{facts.n('t')} timepoints of {facts.n('z')} focal planes",
                f"at most {_SITES_MAX} in all",
                "If the metadata are right, split the image; if not, write it again.",
                well=well_path,
                site=image_path,
            )
            continue
        found.append(PlateImage(well=well, name=image_path, path=image, acquisition=acquisition, facts=facts))
    order = acquisition_order(group["plate"])
    sites, channels, of_acquisitions = sites_of_images(screen, name, found, order, folder.relative(path))
    if not sites:
        report("no_images", "a plate without a readable image", "at least one image", "Remove the plate, or mend it.")
        return None, problems
    return (
        Plate(
            screen=screen,
            plate=name,
            batch=name,
            source=path,
            reader="ome-zarr",
            channels=channels,
            sites=tuple(sorted(sites, key=site_order)),
            problems=tuple(problems),
            pixel_size_um=pixel_sizes_um.pop() if len(pixel_sizes_um) == 1 else None,
            acquisition=place,
            run_name=f"{place.rpartition('/')[0].replace('/', '_')}_{name}" if "/" in place else "",
        ),
        of_acquisitions,
    )


def _facts_of(folder: SourceFolder, images: Sequence[str]) -> list[ImageFacts | Exception | None]:
    """Facts of each image group, or what is wrong with it; None where there is none."""
    found: list[ImageFacts | Exception | None] = [None] * len(images)
    levels: dict[int, tuple[dict[str, Any], str]] = {}
    for i, group in enumerate(read_groups(images)):
        if isinstance(group, Exception):
            found[i] = group
        elif group:
            try:
                level = f"{images[i]}/{level_of(group)}"
                if not folder.holds(level):
                    raise ValueError("full resolution outside of the screen's folder, by a link")
                levels[i] = group, level
            except ValueError as error:
                found[i] = error
    arrays = read_arrays([level for _, level in levels.values()])
    for (i, (group, _)), array in zip(levels.items(), arrays, strict=True):
        try:
            found[i] = image_facts(group, array) if isinstance(array, dict) else array
        except ValueError as error:
            found[i] = error
    return found


def _paths(metadata: Any, name: str) -> list[str]:
    """`path` of each entry of a list in the metadata.

    Raises:
        ValueError: Something else is there.
    """
    entries = metadata.get(name) if isinstance(metadata, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{name}: found {str(entries)[:80]}, expected a list of paths")
    paths = [entry.get("path") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{name}: found {str(entries)[:80]}, expected a path in each")
    return [str(path) for path in paths]


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
