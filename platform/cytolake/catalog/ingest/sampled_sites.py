"""A few sites of each plate, read as an ingest reads them: what an inspection can promise of sizes, types and problems.

Of a small plate every site is read, so that the numbers are those of the ingest. Of a large one the first, middle and
last, which an export that was cut short does not have all. Of a large screen the later plates give headers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cytolake.cropping.grid import finite_crops, smaller_than_crop
from cytolake.screens.images.colour_files import colour_header
from cytolake.screens.images.image_errors import ImageFileError, one_line
from cytolake.screens.images.image_files import read_shape
from cytolake.screens.images.pixels import read_recorded
from cytolake.screens.images.tiff_stacks import STACK_READERS, opened_stack
from cytolake.screens.plate import Plate, Problem, ScreenError, SiteImage

N_SITES = 3
"""Of each plate, at least."""
PLATE_BYTES_MAX = 2**26
"""Plates of no more pixels than this, decoded, are read whole."""
SCREEN_BYTES_MAX = 2**30
"""Decoded; then only headers are read."""
N_PLATES_MAX = 32
"""Further plates are not sampled."""

Size = tuple[int, int, str, int]
"""Height, width, pixel type, bytes of a pixel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateSample:
    """What some sites of a plate have."""

    sizes: tuple[Size, ...] = ()
    """The most frequent first."""
    problems: tuple[Problem, ...] = ()
    """Rows of quarantine that an ingest would add for these sites."""
    n_sites: int = 0
    """Sites that an ingest would have rows of, if the others are like those that were looked at."""
    n_crops: int = 0
    """Crops, on the same condition; 0 where no image was looked into."""
    n_bytes: int = 0
    """Bytes of pixels that an ingest decodes, on the same condition."""


@dataclass(slots=True)
class _Seen:
    """Sites of one plate that were looked at."""

    sizes: Counter[Size] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    n_looked_at: int = 0
    n_readable: int = 0
    n_crops: int = 0
    n_bytes: int = 0


def sample_plates(plates: Sequence[Plate], crop_size: int) -> list[PlateSample]:
    """Look into a few sites of each plate.

    Args:
        crop_size: Edge of the crops, pixels.
    """
    left = SCREEN_BYTES_MAX
    samples = []
    for number, plate in enumerate(plates):
        seen = _Seen()
        if number < N_PLATES_MAX:
            look = _read if left > 0 else _look_at_headers
            chosen = _spread(len(plate.sites), N_SITES)
            for i in chosen:
                look(plate.sites[i], crop_size, seen)
            if look is _read and seen.n_bytes / len(chosen) * len(plate.sites) <= PLATE_BYTES_MAX:
                for i in set(range(len(plate.sites))) - set(chosen):
                    look(plate.sites[i], crop_size, seen)
            left -= seen.n_bytes if look is _read else 0
        samples.append(_extrapolated(plate, seen))
    return samples


def _extrapolated(plate: Plate, seen: _Seen) -> PlateSample:
    n_all = len(plate.sites)
    n_unseen = n_all - seen.n_looked_at
    if not seen.n_looked_at:
        return PlateSample(n_sites=n_all)
    n_unreadable = seen.n_looked_at - seen.n_readable
    n_crops, n_bytes = seen.n_crops, seen.n_bytes
    if n_unseen and seen.n_readable:
        n_crops += round(seen.n_crops / seen.n_readable * n_unseen)
        n_bytes += round(seen.n_bytes / seen.n_readable * n_unseen)
    return PlateSample(
        sizes=tuple(size for size, _ in seen.sizes.most_common()),
        problems=tuple(seen.problems),
        n_sites=n_all - n_unreadable if seen.n_readable else 0,
        n_crops=n_crops,
        n_bytes=n_bytes,
    )


def _spread(n: int, most: int) -> list[int]:
    return sorted({round(i * (n - 1) / max(most - 1, 1)) for i in range(most)})


def _read(site: SiteImage, crop_size: int, seen: _Seen) -> None:
    """Read a site as an ingest does."""
    seen.n_looked_at += 1
    try:
        recorded = read_recorded(site)
    except ScreenError as error:
        seen.problems += error.problems
        _look_at_sizes(site, seen)
        return
    n_channels, height, width = recorded.pixels.shape
    for dtype in recorded.types:
        seen.sizes[height, width, dtype.name, dtype.itemsize] += 1
    seen.problems += [*recorded.problems, *smaller_than_crop(recorded.site, height, width, crop_size)]
    seen.n_readable += 1
    seen.n_crops += len(finite_crops(recorded.pixels, crop_size))
    seen.n_bytes += (sum(site.planes) or n_channels) * height * width * recorded.pixels.itemsize


def _look_at_headers(site: SiteImage, crop_size: int, seen: _Seen) -> None:
    """Read the headers of one image of each channel; sites of channels that fit together count as readable."""
    seen.n_looked_at += 1
    found, problems = _look_at_sizes(site, seen)
    seen.problems += problems
    if problems or not found:
        return
    height, width, _ = found[0]
    seen.n_readable += 1
    seen.n_crops += (height // crop_size) * (width // crop_size)
    itemsize = np.result_type(*(each for *_, each in found)).itemsize
    seen.n_bytes += (sum(site.planes) or len(site.channels)) * height * width * itemsize


def _look_at_sizes(site: SiteImage, seen: _Seen) -> tuple[list[tuple[int, int, np.dtype[Any]]], list[Problem]]:
    """Height, width and type of one image of each channel by its header, and what is wrong with headers."""
    found: list[tuple[int, int, np.dtype[Any]]] = []
    problems = []
    for channel, path in _first_paths(site):
        try:
            (height, width), dtype = _SHAPES[site.reader](path)
        except ImageFileError as error:
            problems.append(_unreadable(site, channel, path, error))
        except Exception as error:  # any decoder may fail in any way on a damaged header
            refused = ImageFileError("unreadable_file", one_line(error), "an image header", "Copy the file again.")
            problems.append(_unreadable(site, channel, path, refused))
        else:
            found.append((height, width, dtype))
            seen.sizes[height, width, dtype.name, dtype.itemsize] += 1
    return found, problems


def _first_paths(site: SiteImage) -> list[tuple[str, str]]:
    """Channel and path of one image for each channel; the one image of a site that has all channels in one."""
    if site.reader != "files":
        return [("", site.image_paths[0])]
    firsts, first = [], 0
    for channel, n in zip(site.channels, site.planes or (1,) * len(site.channels), strict=True):
        firsts.append((channel, site.image_paths[first]))
        first += n
    return firsts


def _zarr_shape(path: str) -> tuple[tuple[int, int], Any]:
    from cytolake.screens.images.zarr_images import open_image  # zarr takes 0.5 s to import

    image = open_image(path)
    return (image.n("y"), image.n("x")), image.dtype


def _colour_shape(path: str) -> tuple[tuple[int, int], Any]:
    _, shape, dtype = colour_header(path)
    return shape, dtype


def _stack_shape(path: str) -> tuple[tuple[int, int], Any]:
    with opened_stack(path) as stack:
        return (stack.shape, stack.dtype) if stack is not None else read_shape(path)


_SHAPES: dict[str, Callable[[str], tuple[tuple[int, int], Any]]] = {
    "ome-zarr": _zarr_shape,
    "files": read_shape,
    "colour": _colour_shape,
    **dict.fromkeys(STACK_READERS, _stack_shape),
}
"""Height and width, and pixel type, of an image by the reader of its site."""


def _unreadable(site: SiteImage, channel: str, path: str, error: ImageFileError) -> Problem:
    return site.problem(
        channel=channel,
        file=path,
        problem=error.problem,
        found=error.found,
        expected=error.expected,
        next_step=error.next_step,
    )
