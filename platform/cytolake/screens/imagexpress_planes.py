"""Selection of the `ZStep_` folders of an ImageXpress plate that are focal planes.

MetaXpress counts planes from 1. In an exported plate `ZStep_0` holds the projection over them, and a channel that was
taken in one plane is copied into every step. Neither is a plane: a projection would be the sharpest one, and copies
would count one image several times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cytolake.screens.metaseries import read_metaseries
from cytolake.screens.site_groups import ImageFile
from cytolake.storage import files as storage

PROJECTION = "0"
_N_PLACES = 4  # sites of a channel that are looked at, until one can be read
_COMPARED_BYTES_MAX = 2**26


def planes_of(images: Sequence[ImageFile], htd: Mapping[str, Sequence[str]]) -> tuple[list[ImageFile], str]:
    """The images of one plate that are planes, and what was left out or is in doubt, in words; empty for nothing.

    Args:
        images: With `z` as the number of the step's folder, channels by wavelength.
        htd: What the plate's HTD file says; empty where there is none.
    """
    stacks: dict[str, dict[tuple[str, str, int], dict[str, ImageFile]]] = {}
    for image in images:
        if image.z:
            place = (image.well, image.site, image.timepoint)
            stacks.setdefault(image.channel, {}).setdefault(place, {}).setdefault(image.z, image)
    steps = {z for places in stacks.values() for stack in places.values() for z in stack}
    if len(steps) < 2:
        return list(images), ""
    is_projected = _zeroth_is_projection(stacks, steps, htd) if PROJECTION in steps else False
    dropped = frozenset({PROJECTION}) if is_projected else frozenset[str]()
    single = {channel for channel, places in stacks.items() if _is_one_plane(places, dropped)}
    kept = []
    for image in images:
        if image.z and image.channel in single:
            there = stacks[image.channel][image.well, image.site, image.timepoint]
            if image.z == min(there.keys() - dropped or there, key=int):
                kept.append(replace(image, z=""))
        elif image.z not in dropped:
            kept.append(image)
    said = []
    if is_projected:
        said.append("a projection in ZStep_0, which is no focal plane")
    if is_projected is None:
        said.append("a folder ZStep_0, which is the projection in a MetaXpress export, and no HTD file that says so")
    if single:
        said.append(f"{len(single)} channels of one plane, copied into {len(steps)} ZStep folders")
    return kept, "; ".join(said)


def _zeroth_is_projection(
    stacks: Mapping[str, Mapping[tuple[str, str, int], Mapping[str, ImageFile]]],
    steps: set[str],
    htd: Mapping[str, Sequence[str]],
) -> bool | None:
    """None where nothing says it."""
    projected = next(iter(htd.get("zprojection", ())), "").upper()
    if projected == "TRUE":
        return True
    if projected == "FALSE":
        return False
    for places in stacks.values():
        for stack in list(places.values())[:_N_PLACES]:
            said = read_metaseries(stack[PROJECTION].path) if PROJECTION in stack else None
            if said:
                return "Z Projection Method" in said or None
    n_steps = next(iter(htd.get("zsteps", ())), "")
    if n_steps.isdigit():
        return int(n_steps) == len(steps) - 1
    return None


def _is_one_plane(places: Mapping[tuple[str, str, int], Mapping[str, ImageFile]], dropped: frozenset[str]) -> bool:
    """Whether a channel has one plane: copied into every step at all sites looked at, or a projection alone."""
    seen = []
    n_left = 0
    for stack in places.values():
        left = {z: image for z, image in stack.items() if z not in dropped}
        n_left = max(n_left, len(left))
        if len(left) < 2:
            continue
        alike = _alike(left)
        if alike is False:
            return False
        seen += [alike] if alike else []
        if len(seen) == _N_PLACES:
            break
    return bool(seen) or (bool(dropped) and n_left == 0)


def _alike(stack: Mapping[str, ImageFile]) -> bool | None:
    """Whether images are copies of one: by the guid of their plane, else by bytes; None where one cannot be read."""
    said = [read_metaseries(image.path) for image in stack.values()]
    if any(each is None for each in said):
        return None
    guids = [each["plane-guid"] for each in said if each and each.get("plane-guid")]
    if len(guids) == len(said):
        return len(set(guids)) == 1
    try:
        first, *others = (storage.read_bytes(image.path, _COMPARED_BYTES_MAX) for image in stack.values())
    except storage.UnreachableError:
        raise
    except OSError:
        return None
    return all(other == first for other in others)
