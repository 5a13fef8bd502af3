"""Grouping of single-channel image files into sites: the channels of one position, timepoint and focal plane."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cytolake.screens.plate import Problem, SiteImage
from cytolake.screens.positions import well_order
from cytolake.storage.natural_order import natural_order


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """One file that holds one channel of one site."""

    well: str
    site: str
    timepoint: int
    z: str
    channel: str
    path: str
    """Absolute."""
    file: str
    """As messages name it: relative to the screen's folder."""
    illumination: str = ""
    """Absolute path of the function that its counts are divided by; empty for none."""


def group_sites(
    screen: str, plate: str, images: Iterable[ImageFile], channel_order: Sequence[str]
) -> tuple[tuple[SiteImage, ...], list[Problem]]:
    """Sites of one plate in the order of wells, sites, timepoints and focal planes, and the images named twice.

    Of two images for one channel of a site the first stays. A file named for two places stays at the first.
    """
    sites: dict[tuple[str, str, int, str], dict[str, ImageFile]] = {}
    used: dict[str, ImageFile] = {}
    problems: list[Problem] = []
    for image in images:
        other = used.setdefault(image.path, image)
        channels = sites.setdefault((image.well, image.site, image.timepoint, image.z), {})
        if other is not image:
            found = f"the same file for well {other.well}, site {other.site}, channel {other.channel}"
        elif image.channel in channels:
            found = f"{channels[image.channel].file} for the same channel of this site"
        else:
            channels[image.channel] = image
            continue
        problems.append(
            Problem(
                screen=screen,
                plate=plate,
                well=image.well,
                site=image.site,
                channel=image.channel,
                file=image.file,
                problem="duplicate_image",
                found=found,
                expected="one file for each plate, well, site, timepoint, focal plane and channel",
                next_step="The first was kept; correct or remove the other. Of two imaging runs, name the folder in a "
                "group `acquisition` of the pattern, or list each as a plate of its own.",
            )
        )
    order = {channel: i for i, channel in enumerate(channel_order)}
    grouped = []
    for (well, site, timepoint, z), channels in sites.items():
        if not channels:
            continue
        names = tuple(sorted(channels, key=lambda name: order[name]))
        grouped.append(
            SiteImage(
                screen=screen,
                plate=plate,
                well=well,
                site=site,
                timepoint=timepoint,
                z=z,
                channels=names,
                reader="files",
                image_paths=tuple(channels[name].path for name in names),
                illumination_paths=tuple(channels[name].illumination for name in names)
                if any(channels[name].illumination for name in names)
                else (),
            )
        )
    return tuple(sorted(grouped, key=site_order)), problems


def site_order(site: SiteImage) -> tuple[object, ...]:
    """Sort key: row, column, site, timepoint, focal plane, as a person would count them."""
    return (well_order(site.well), natural_order(site.site), site.timepoint, natural_order(site.z))
