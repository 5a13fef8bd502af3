"""Folders of classes, the layout of natural image data sets: ROOT/CLASS/image or ROOT/SPLIT/CLASS/image.

Each image is one site of a well of its own, so that no two images count as views of one thing; its class is the well's
perturbation. A split is a plate, or, where it has more images than a plate has wells, a batch of several. Without
splits the images are dealt to plates. Which plate and well an image lands in depends on the paths alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cytolake.screens.images.colour_files import COLOUR, GREY, colour_header
from cytolake.screens.images.image_errors import ImageFileError
from cytolake.screens.plate import Plate, Problem, SiteImage
from cytolake.screens.plate_format import ASSIGNED_FORMATS
from cytolake.screens.positions import name_of_well, well_name
from cytolake.screens.site_groups import site_order
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

LAYOUT = "class-folders"
N_PLATES = 4
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff"})
_N_WELLS = ASSIGNED_FORMATS[-1][0] * ASSIGNED_FORMATS[-1][1]
_PLACE_IN_NAME = re.compile(r"(?<![A-Za-z0-9])(?:[A-P](?:0[1-9]|[12]?[0-9])|r[0-9]{2}c[0-9]{2}\w*)(?![A-Za-z0-9])")
_N_HEADERS = 32  # one of each class, to find out whether images have colour


@dataclass(frozen=True, slots=True)
class _Image:
    path: str
    split: str
    label: str

    @property
    def digest(self) -> str:
        """Decides its place, whatever else is in the folder."""
        return hashlib.blake2b(self.path.encode(), digest_size=16).hexdigest()


def try_class_folders(files: Sequence[str]) -> tuple[bool, str]:
    """Whether names match a folder of classes, and the evidence or the reason. Reads no image.

    Microscopy screens are refused where they can be known: by names of wells, as folders or in most file names.
    """
    images, why_not = _images(files)
    if why_not:
        return False, why_not
    labels = sorted({image.label for image in images})
    splits = sorted({image.split for image in images} - {""})
    if sum(bool(well_name(label)) for label in labels) * 2 > len(labels):
        return False, f"folders are named after wells, such as {labels[0]}"
    n_places = sum(bool(_PLACE_IN_NAME.search(PurePosixPath(image.path).stem)) for image in images)
    if n_places * 2 > len(images):
        return False, f"file names hold positions of wells, such as {images[0].path}"
    of_splits = f" in splits {', '.join(splits)}" if splits else ""
    return True, f"{len(images):,} images of {len(labels)} classes{of_splits}"


def list_class_folders(
    screen: str, folder: SourceFolder, files: Sequence[str], n_plates: int = N_PLATES
) -> tuple[list[Plate], list[Problem]]:
    """Plates of a folder of classes, and problems outside of plates.

    Args:
        files: Paths of all its files, relative to it.
        n_plates: Plates to deal the images to where the folder has no splits; more where they do not fit.
    """
    images, why_not = _images(files)
    if why_not:
        return [], [_problem(screen, "", "no_images", why_not, "Correct `path` or `layout`.")]
    channels, problems = _channels(screen, folder, images)
    plates = []
    for split in sorted({image.split for image in images}):
        own = [image for image in images if image.split == split]
        for name, dealt in _deal(split, own, n_plates).items():
            plate, found = _plate(screen, name, split, dealt, folder, channels)
            problems += found
            if plate is not None:
                plates.append(plate)
    return plates, problems


def _images(files: Sequence[str]) -> tuple[list[_Image], str]:
    """Images with class and split, in the order of their paths; or why there are none."""
    paths = sorted(path for path in files if PurePosixPath(path).suffix.lower() in _SUFFIXES)
    depths = {path.count("/") for path in paths}
    if not paths:
        return [], "no PNG, JPEG or TIFF file"
    if depths not in ({1}, {2}):
        found = ", ".join(str(depth) for depth in sorted(depths))
        return [], f"images {found} folders deep, expected all in CLASS/ or all in SPLIT/CLASS/"
    images = []
    for path in paths:
        split, _, label = path.rpartition("/")[0].rpartition("/")
        images.append(_Image(path, split, label))
    labels = {image.label for image in images}
    if len(labels) < 2:
        return [], f"one folder of images, {next(iter(labels))}, expected one for each of several classes"
    return images, ""


def _channels(screen: str, folder: SourceFolder, images: Sequence[_Image]) -> tuple[tuple[str, ...], list[Problem]]:
    """Colour where the first image of any class has it: grey ones among colour ones are read as colour, too."""
    firsts = {image.label: image for image in reversed(images)}
    problems = []
    for image in list(firsts.values())[:_N_HEADERS]:
        try:
            n_channels, _, _ = colour_header(folder.find(image.path))
        except (ImageFileError, PathRefusedError) as refused:
            problems.append(
                Problem(
                    screen=screen,
                    file=image.path,
                    problem=refused.problem,
                    found=refused.found,
                    expected=refused.expected,
                    next_step=refused.next_step,
                )
            )
            continue
        if n_channels == len(COLOUR):
            return COLOUR, problems
    return GREY, problems


def _deal(split: str, images: Sequence[_Image], n_plates: int) -> dict[str, list[_Image]]:
    """Images of each plate: every class spread evenly, no plate more than one image larger than another."""
    n_needed = -(-len(images) // _N_WELLS)
    n = n_needed if split else max(n_plates, n_needed)
    digits = len(str(n))
    names = [split] if split and n == 1 else [f"{split or 'part'}_{i + 1:0{digits}d}" for i in range(n)]
    ordered = sorted(images, key=lambda image: (image.label, image.digest))
    return {name: ordered[i::n] for i, name in enumerate(names) if ordered[i::n]}


def _plate(
    screen: str, name: str, split: str, images: Sequence[_Image], folder: SourceFolder, channels: tuple[str, ...]
) -> tuple[Plate | None, list[Problem]]:
    n_columns = next(columns for rows, columns in ASSIGNED_FORMATS if len(images) <= rows * columns)
    sites, wells, problems = [], [], []
    # In the order of the digests, so that a class lies all over the plate and not in one corner.
    for place, image in enumerate(sorted(images, key=lambda image: image.digest)):
        try:
            path = folder.find(image.path)
        except PathRefusedError as refused:
            problems.append(_problem(screen, name, refused.problem, refused.found, refused.next_step, image.path))
            continue
        well = name_of_well(*divmod(place, n_columns))
        sites.append(
            SiteImage(
                screen=screen,
                plate=name,
                well=well,
                site="1",
                channels=channels,
                reader="colour",
                image_paths=(path,),
            )
        )
        wells.append({"well": well, "perturbation": image.label, "split": split, "image": image.path})
    if not sites:
        return None, problems
    plate = Plate(
        screen=screen,
        plate=name,
        batch=split or name,
        source=str(folder.root),
        reader="colour",
        channels=channels,
        sites=tuple(sorted(sites, key=site_order)),
        wells=tuple(wells),
        problems=tuple(problems),
    )
    return plate, []


def _problem(screen: str, plate: str, problem: str, found: str, next_step: str, file: str = "") -> Problem:
    return Problem(
        screen=screen,
        plate=plate,
        file=file,
        problem=problem,
        found=found,
        expected="a folder of images for each class",
        next_step=next_step,
    )
