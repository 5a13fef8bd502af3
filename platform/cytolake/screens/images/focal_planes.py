"""Handling of focal planes: each a site, one projection of all, or the sharpest one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from cytolake.screens.plate import Plate, SiteImage
from cytolake.screens.site_groups import site_order
from cytolake.storage.natural_order import natural_order

Planes = Literal["keep", "max", "sharpest"]
"""keep: every plane is a site. max: the maximum over the planes. sharpest: the plane that is most in focus."""


def join_planes(plate: Plate, z: Planes) -> Plate:
    """The plate with the planes of one well, site and timepoint as one site; `keep` gives the plate as it is.

    A channel taken in one plane counts in full next to channels taken in many. A plate without focal
    planes stays as it is.
    """
    if z == "keep" or not any(site.z for site in plate.sites):
        return plate
    stacks: dict[tuple[str, str, int], list[SiteImage]] = {}
    for site in plate.sites:
        stacks.setdefault((site.well, site.site, site.timepoint), []).append(site)
    joined = (
        _join(sorted(stack, key=lambda site: natural_order(site.z)), plate.channels, z) for stack in stacks.values()
    )
    return replace(plate, sites=tuple(sorted(joined, key=site_order)))


def _join(stack: Sequence[SiteImage], channel_order: Sequence[str], z: Planes) -> SiteImage:
    first = stack[0]
    named = [site for site in stack if site.z]
    if not named:
        return first
    if first.reader != "files":
        return replace(
            first, z=z, planes=(len(named),) * len(first.channels), plane_names=tuple(site.z for site in named)
        )
    planes_of = {
        channel: [site for site in named if channel in site.channels]
        or [next(site for site in stack if channel in site.channels)]
        for channel in channel_order
        if any(channel in site.channels for site in stack)
    }
    if z == "sharpest":  # one plane is chosen for all channels, so it must be there in each that has several
        several = [channel for channel, planes in planes_of.items() if len(planes) > 1]
        named = [site for site in named if set(several) <= set(site.channels)] or named[:1]
        for channel in several:
            planes_of[channel] = [site for site in named if channel in site.channels] or planes_of[channel][:1]
        if not several:
            named = named[:1]
    functions = {channel: _function(planes[0], channel) for channel, planes in planes_of.items()}
    return replace(
        first,
        z=z,
        channels=tuple(planes_of),
        image_paths=tuple(_path(site, channel) for channel, planes in planes_of.items() for site in planes),
        planes=tuple(len(planes) for planes in planes_of.values()),
        plane_names=tuple(site.z for site in named),
        illumination_paths=tuple(functions.values()) if any(functions.values()) else (),
    )


def _path(site: SiteImage, channel: str) -> str:
    return site.image_paths[site.channels.index(channel)]


def _function(site: SiteImage, channel: str) -> str:
    return site.illumination_paths[site.channels.index(channel)] if site.illumination_paths else ""
