"""Images derived from others: projections, thumbnails, corrected images, masks.

They are recognised by their folder or the end of their name. If the originals are in the same plate, derived images are
left out and reported, because they are no additional fields of view. A plate with derived images only is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cytolake.screens.plate import Problem

_WORDS = (
    r"thumb(?:nail)?s?|previews?|overviews?|jpegs?|"
    r"(?:max|min|sum|mean|z|maximum|maxintensity)?(?:intensity)?proj(?:ection)?s?|mips?|edf|"
    r"(?:illum(?:ination)?|flatfield|ff|ffc|shading|background|bg)correct(?:ed|ion)?|illumcorr|ffc|corrected|"
    r"registered|aligned|denoised|deconv(?:olved)?|stitched|montages?|"
    r"segmentations?|segmented|masks?|labels?|outlines?|overlays?"
)
_FOLDER = re.compile(rf"(?:{_WORDS})(?:images?|files)?")
_BETWEEN = re.compile(r"[\s_.\-]+")
_N_JOINED = 3  # `_max_intensity_projection`


def derived_word(name: str) -> str:
    """The end of a file's or image's name that says that it is derived, such as `_mip`; empty for an original."""
    parts = [match.start() for match in _BETWEEN.finditer(name) if match.start()]
    for start in parts[-_N_JOINED:]:
        if _FOLDER.fullmatch(_BETWEEN.sub("", name[start:]).lower()):
            return name[start:]
    return ""


def is_derived_folder(name: str) -> bool:
    """Whether a folder is named after what was made from images: `Projection`, `Thumbs`, `Illumination-corrected`."""
    return bool(_FOLDER.fullmatch(_BETWEEN.sub("", name).lower())) or bool(derived_word(name))


def without_derived(screen: str, plate_of: Mapping[str, str]) -> tuple[list[str], list[Problem]]:
    """Paths of original images, in their order, and a problem for each folder of copies that was left out.

    Args:
        plate_of: Plate of each image, by its path relative to the screen's folder.
    """
    marks = {path: _mark(path) for path in plate_of}
    with_originals = {plate_of[path] for path, mark in marks.items() if not mark}
    kept = []
    left_out: dict[tuple[str, str], list[str]] = {}
    for path, mark in marks.items():
        if mark and plate_of[path] in with_originals:
            left_out.setdefault((plate_of[path], mark), []).append(path)
        else:
            kept.append(path)
    return kept, [derived_copy(screen, plate, mark, len(paths)) for (plate, mark), paths in left_out.items()]


def derived_copy(screen: str, plate: str, place: str, n: int, noun: str = "images") -> Problem:
    """What copies that are left out are reported as."""
    return Problem(
        screen=screen,
        plate=plate,
        file=place,
        problem="derived_copy",
        found=f"{n} {noun} of a name that says they were made from others",
        expected="original images, which the plate has too",
        next_step="They are left out, since they are no further fields. To read them in place of the originals, give "
        "their folder as a screen of its own.",
    )


def _mark(path: str) -> str:
    """The folder, or `folder/*_word`, by which an image is derived; empty for an original."""
    folder, _, name = path.rpartition("/")
    parts = folder.split("/") if folder else []
    for n, part in enumerate(parts, 1):
        if is_derived_folder(part):
            return "/".join(parts[:n])
    word = derived_word(name.rpartition(".")[0])
    return f"{folder}/*{word}" if word and folder else f"*{word}" if word else ""
