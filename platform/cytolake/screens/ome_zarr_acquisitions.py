"""Acquisitions of an OME-Zarr plate: images of one field that were taken at several times.

Multiplexing cycles stain the same cells anew: their images of one field become one site with the channels of all of
them. A stain that an earlier cycle has too gets the cycle's number, counted from 1 in the order of the plate's
metadata: `DNA`, `DNA_cycle2`. Cycles whose images do not fit on each other (another number of fields or other sizes)
stay sites of their own, and are reported.

Repeated acquisitions have the same stains each time. Each image is a site: that of the first acquisition is named
after the field, the others after field and acquisition, such as `0_acquisition3`. They are reported, since they show
the same cells and count as no further fields.

Source: https://ngff.openmicroscopy.org/0.4 and /0.5, `acquisitions` of a plate and `acquisition` of a well's image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cytolake.screens.derived_copies import derived_copy, derived_word
from cytolake.screens.images.ome_metadata import ImageFacts
from cytolake.screens.plate import Problem, SiteImage
from cytolake.screens.positions import site_name


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateImage:
    """One image of a well."""

    well: str
    name: str
    """Of the image in its well, as the metadata have it."""
    path: str
    acquisition: int | None
    facts: ImageFacts

    @property
    def extent(self) -> tuple[object, ...]:
        """What two images have alike that lie on each other: times, planes, height and width, pixel size."""
        facts = self.facts
        size = None if facts.pixel_size_um is None else round(facts.pixel_size_um, 6)
        return (*(facts.n(axis) for axis in "tzyx"), size)


def acquisition_order(plate: Mapping[str, Any]) -> list[int]:
    """Ids of the acquisitions that a plate's metadata declare, in their order."""
    entries = plate.get("acquisitions")
    ids = [entry.get("id") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return list(dict.fromkeys(each for each in ids if isinstance(each, int)))


def sites_of_images(
    screen: str, plate: str, images: Sequence[PlateImage], order: Sequence[int], place: str
) -> tuple[list[SiteImage], tuple[str, ...], list[Problem]]:
    """Sites of a plate, its channels in order, and what its acquisitions are reported as.

    Args:
        images: In the order of the metadata.
        place: The plate's folder, as messages name it.
    """
    images, problems = _without_derived(screen, plate, images, place)
    ids = dict.fromkeys(each.acquisition for each in images if each.acquisition is not None)
    ordered = [each for each in order if each in ids] + sorted(each for each in ids if each not in order)
    wells: dict[str, dict[int | None, list[PlateImage]]] = {}
    for image in images:
        wells.setdefault(image.well, {}).setdefault(image.acquisition, []).append(image)
    if (
        all(len(of_well) < 2 for of_well in wells.values())
        or len(ordered) < 2
        or None in {i.acquisition for i in images}
    ):
        channels = dict.fromkeys(channel for image in images for channel in image.facts.channels)
        sites = [site for image in images for site in _sites(screen, plate, [image], site_name(image.name))]
        return sites, tuple(channels), problems
    stains = {each: {c for i in images if i.acquisition == each for c in i.facts.channels} for each in ordered}
    if all(names == stains[ordered[0]] for names in stains.values()):
        sites = _repeated(screen, plate, wells, ordered)
        problems.append(_repeats(screen, plate, place, ordered, len(wells)))
        return sites, tuple(dict.fromkeys(c for image in images for c in image.facts.channels)), problems
    names = _names_by_cycle(images, ordered)
    sites = []
    for well, of_well in wells.items():
        cycles = [of_well[each] for each in ordered if each in of_well]
        renamed = [[_renamed(image, names) for image in cycle] for cycle in cycles]
        reason = _why_apart(renamed)
        if reason:
            problems.append(_apart(screen, plate, well, place, reason))
            groups = [[image] for cycle in renamed for image in cycle]
        else:
            groups = [list(field) for field in zip(*renamed, strict=True)]
        sites += [site for group in groups for site in _sites(screen, plate, group, site_name(group[0].name))]
    return sites, tuple(dict.fromkeys(names.values())), problems


def _sites(screen: str, plate: str, group: Sequence[PlateImage], site: str) -> list[SiteImage]:
    """A site for each time and focal plane of images that lie on each other."""
    first = group[0]
    return [
        SiteImage(
            screen=screen,
            plate=plate,
            well=first.well,
            site=site,
            timepoint=timepoint,
            z=str(plane) if first.facts.n("z") > 1 else "",
            channels=tuple(channel for image in group for channel in image.facts.channels),
            reader="ome-zarr",
            image_paths=tuple(image.path for image in group),
        )
        for timepoint in range(first.facts.n("t"))
        for plane in range(first.facts.n("z"))
    ]


def _without_derived(
    screen: str, plate: str, images: Sequence[PlateImage], place: str
) -> tuple[list[PlateImage], list[Problem]]:
    names = {(image.well, image.name) for image in images}
    left_out: dict[str, int] = {}
    kept = []
    for image in images:
        word = derived_word(image.name)
        if word and (image.well, image.name.removesuffix(word)) in names:
            left_out[word] = left_out.get(word, 0) + 1
        else:
            kept.append(image)
    return kept, [derived_copy(screen, plate, f"{place}/*{word}", n) for word, n in left_out.items()]


def _repeated(
    screen: str, plate: str, wells: Mapping[str, Mapping[int | None, Sequence[PlateImage]]], ordered: Sequence[int]
) -> list[SiteImage]:
    sites = []
    for of_well in wells.values():
        first = of_well.get(ordered[0], ())
        used: set[str] = set()
        for acquisition in ordered:
            cycle = of_well.get(acquisition, ())
            is_alike = len(cycle) == len(first)
            for n, image in enumerate(cycle):
                name = site_name(first[n].name if is_alike else image.name)
                if acquisition != ordered[0]:
                    name = f"{name}_acquisition{acquisition}"
                name = f"{name}_{image.name}" if name in used else name
                used.add(name)
                sites += _sites(screen, plate, [image], name)
    return sites


def _names_by_cycle(images: Sequence[PlateImage], ordered: Sequence[int]) -> dict[tuple[int | None, str], str]:
    """(acquisition, channel) -> name of the channel in the plate."""
    names: dict[tuple[int | None, str], str] = {}
    used: set[str] = set()
    for number, acquisition in enumerate(ordered, 1):
        of_cycle = dict.fromkeys(c for i in images if i.acquisition == acquisition for c in i.facts.channels)
        for channel in of_cycle:
            names[acquisition, channel] = f"{channel}_cycle{number}" if channel in used else channel
        used.update(of_cycle)
    return names


def _renamed(image: PlateImage, names: Mapping[tuple[int | None, str], str]) -> PlateImage:
    channels = tuple(names[image.acquisition, channel] for channel in image.facts.channels)
    return replace(image, facts=replace(image.facts, channels=channels))


def _why_apart(cycles: Sequence[Sequence[PlateImage]]) -> str:
    """Why the cycles of a well cannot be put together; empty where they can."""
    counts = [len(cycle) for cycle in cycles]
    if len(set(counts)) > 1:
        return f"{', '.join(map(str, counts))} images in its cycles"
    for field in zip(*cycles, strict=True):
        if len({image.extent for image in field}) > 1:
            shapes = " and ".join("x".join(map(str, image.facts.shape)) for image in field)
            return f"images of {shapes}, or of unlike pixel sizes, in the cycles of field {field[0].name}"
    return ""


def _apart(screen: str, plate: str, well: str, place: str, found: str) -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        well=well,
        file=place,
        problem="unmatched_cycles",
        found=found,
        expected="as many images of one size in each multiplexing cycle, which lie on each other",
        next_step="Until then each cycle's image is a site of its own, with the cycle in the names of its channels.",
    )


def _repeats(screen: str, plate: str, place: str, ordered: Sequence[int], n_wells: int) -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        file=place,
        problem="repeated_acquisition",
        found=f"acquisitions {', '.join(map(str, ordered))} with the same stains, in {n_wells} wells",
        expected="one acquisition of each field",
        next_step="Each is a site, named after field and acquisition, such as "
        f"0_acquisition{ordered[-1]}. They show the same cells: leave all but one out where fields are counted.",
    )
