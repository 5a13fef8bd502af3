"""Pixels of one site: channels stacked, focal planes projected or chosen, illumination corrected.

`site_readers` reads the source formats.

Letters: C channels of the site, H height and W width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from cytolake.screens.images.focus import FocusChoice, PlaneFocus, measure_focus, sharpest_plane
from cytolake.screens.images.image_errors import Window, one_line
from cytolake.screens.images.image_files import read_function_image
from cytolake.screens.images.site_readers import (
    RecordedSite,
    check_paths,
    file_problems,
    open_zarr,
    read_counts,
    refuse_site,
    stack_planes,
    zarr_planes,
)
from cytolake.screens.plate import Problem, Reader, ScreenError, SiteImage
from cytolake.storage.files import StoredFile, is_uri, stored_file

__all__ = [
    "SITE_BYTES_MAX",
    "RecordedSite",
    "Window",
    "choose_plane",
    "correct",
    "read_recorded",
    "read_site",
    "resolve_sharpest",
    "site_image",
]

SITE_BYTES_MAX = 4 * 2**30  # decoded; 5 channels of a 20,000 x 20,000 stitched well in 16 bit are 3.7 GiB


def read_site(
    site: SiteImage, window: Window | None = None, bytes_max: int = SITE_BYTES_MAX, *, is_corrected: bool = True
) -> np.ndarray:
    """(C, H, W) pixels of a site in the type its source holds, without scaling.

    Channels of different types are widened to the type that holds the values of each exactly, such as uint16 for 8-bit
    brightfield and 16-bit fluorescence.

    A site with `planes` is the maximum over the focal planes of each channel; one with `illumination_paths` is divided
    by these functions, rounded, and clipped to the range of a type of whole numbers. A site of `z="sharpest"` is
    resolved first, which reads it once more: call `resolve_sharpest` where you read it often.

    Args:
        site: From `list_plates`, or from a row of the `sites` table through `site_image`.
        window: (y, x, height, width) in pixels; None is the whole field of view.
        bytes_max: Refuse a site whose headers declare more than this, decoded.
        is_corrected: False leaves out the illumination correction: counts as the camera gave them, for quality control.

    Raises:
        ScreenError: With one problem: `missing_file`, `truncated_file`, `unreadable_file`, `unsupported_file`,
            `shape_mismatch` (channels, planes, illumination function or window do not fit), `mixed_pixel_type`
            (no type holds the values of all channels exactly), `bad_illumination`, `too_large`, `storage_failed` (the
            storage does not answer: no fault of the file).
    """
    recorded = _read(site, window, bytes_max)
    return correct(recorded, window, bytes_max) if is_corrected else recorded.pixels


def read_recorded(site: SiteImage, bytes_max: int = SITE_BYTES_MAX) -> RecordedSite:
    """Counts of a whole site as stored in its files, and problems of pixels that could be read.

    Args, Raises: As for `read_site`; `missing_chunk`: not one chunk of an OME-Zarr image is stored. Whatever else a
    decoder raises is `unreadable_file`, so that a damaged file costs its own site. An ImportError or MemoryError is of
    this machine and not of the file.
    """
    try:
        recorded = _read(site, None, bytes_max)
    except (ScreenError, ImportError, MemoryError):
        raise
    except Exception as error:  # any decoder may fail in any way on a damaged file
        refuse_site(
            site,
            "unreadable_file",
            one_line(error),
            "an image that can be decoded",
            "Copy the file again from where it was made, or remove it from the plate.",
            file=site.image_paths[0] if len(site.image_paths) == 1 else "",
        )
    if recorded.is_empty:
        raise ScreenError(*recorded.problems)
    return replace(recorded, problems=(*recorded.problems, *_not_numbers(recorded.site, recorded.pixels)))


def _read(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    if site.z == "sharpest":
        site = resolve_sharpest(site, bytes_max)
    return read_counts(site, window, bytes_max)


def correct(recorded: RecordedSite, window: Window | None = None, bytes_max: int = SITE_BYTES_MAX) -> np.ndarray:
    """(C, H, W) counts divided by the site's illumination functions; in place, where it has any.

    Raises:
        ScreenError: As for `read_site`.
    """
    return _corrected(recorded.site, recorded.pixels, recorded.shape, window, bytes_max)


def resolve_sharpest(site: SiteImage, bytes_max: int = SITE_BYTES_MAX) -> SiteImage:
    """The plain site of the focal plane that is sharpest over all channels; any other site comes back as it is.

    Raises:
        ScreenError: As for `read_site`.
    """
    return choose_plane(site, bytes_max)[0]


def choose_plane(site: SiteImage, bytes_max: int = SITE_BYTES_MAX) -> tuple[SiteImage, FocusChoice | None]:
    """`resolve_sharpest` with the choice of each focus measure; None for a site without `z="sharpest"`.

    Every plane is read once, and no two are kept. Each channel counts alike, so that a bright one has no more to say
    than a faint one, and one plane is taken for all of them (`focus.sharpest_plane`). A channel of one plane keeps it;
    one with another number of planes than the rest has its own sharpest.

    Raises:
        ScreenError: As for `read_site`.
    """
    if site.z != "sharpest":
        return site, None
    check_paths(site)
    n_planes = max(site.planes, default=1)
    series = _focus_of_planes(site, bytes_max)
    choice = sharpest_plane([planes for planes in series if len(planes) == n_planes])
    name = site.plane_names[choice.plane] if choice.plane < len(site.plane_names) else str(choice.plane)
    paths = site.image_paths
    if site.reader == "files":
        chosen = []
        first = 0
        for n, planes in zip(site.planes, series, strict=True):
            chosen.append(paths[first + (choice.plane if n == n_planes else sharpest_plane([planes]).plane)])
            first += n
        paths = tuple(chosen)
    return replace(site, z=name, planes=(), plane_names=(), image_paths=paths), choice


def site_image(row: Mapping[str, Any]) -> SiteImage:
    """The site of a row of the `sites` table; columns it does not need are ignored, and newer ones may be null.

    Raises:
        ValueError: A reader that is not known.
    """
    reader = str(row["reader"])
    if reader not in get_args(Reader):
        raise ValueError(
            f"plate {row['plate']}, well {row['well']}, site {row['site']}: found reader {reader!r}, "
            f"expected one of {', '.join(get_args(Reader))}. Ingest the screen again with this version."
        )
    return SiteImage(
        screen=str(row["screen"]),
        plate=str(row["plate"]),
        well=str(row["well"]),
        site=str(row["site"]),
        timepoint=int(row["timepoint"]),
        z=str(row["z"]),
        channels=_texts(row["channels"]),
        reader=cast(Reader, reader),
        image_paths=_texts(row["image_paths"]),
        planes=tuple(int(n) for n in _list(row.get("planes"))),
        plane_names=_texts(row.get("plane_names")),
        illumination_paths=_texts(row.get("illumination_paths")),
    )


def _list(cell: Any) -> list[Any]:
    return [] if cell is None else list(cell)


def _texts(cell: Any) -> tuple[str, ...]:
    return tuple(str(text) for text in _list(cell))


def _not_numbers(site: SiteImage, pixels_CHW: np.ndarray) -> list[Problem]:
    """A problem for each channel with pixels that are NaN or infinite."""
    if pixels_CHW.dtype.kind != "f":
        return []
    problems = []
    paths = site.image_paths if len(site.image_paths) == len(site.channels) else site.image_paths[:1] * len(pixels_CHW)
    for channel, path, pixels_HW in zip(site.channels, paths, pixels_CHW, strict=True):
        n_bad = pixels_HW.size - int(np.isfinite(pixels_HW).sum())
        n_nan = int(np.isnan(pixels_HW).sum())
        if n_bad:
            problems.append(
                site.problem(
                    channel=channel,
                    file=path if site.reader != "files" or not site.planes else "",
                    problem="not_a_number",
                    found=f"{n_bad} of {pixels_HW.size} pixels are NaN or infinite ({n_nan} NaN)",
                    expected="numbers in every pixel",
                    next_step="Write the image again without them. Crops that hold such a pixel are left out.",
                )
            )
    return problems


def _focus_of_planes(site: SiteImage, bytes_max: int) -> list[list[PlaneFocus]]:
    """Focus measures of each plane of each channel."""
    if site.reader == "ome-zarr":
        images, planes, whole = open_zarr(site, None, bytes_max)
        focus = [[measure_focus(plane_HW) for plane_HW in p] for p in zarr_planes(site, images, planes, whole)]
        return [list(of_channel) for of_channel in zip(*focus, strict=True)]
    if site.reader != "files":
        series = [[measure_focus(plane_HW) for plane_HW in p] for p, _ in stack_planes(site, None, bytes_max)]
        return [list(of_channel) for of_channel in zip(*series, strict=True)]
    n_planes = site.planes or (1,) * len(site.channels)
    first = [sum(n_planes[:channel]) for channel in range(len(n_planes))]
    found: list[list[PlaneFocus]] = [[] for _ in n_planes]
    for plane in range(max(n_planes)):
        has_plane = [channel for channel, n in enumerate(n_planes) if plane < n]
        one = replace(
            site,
            z="",
            planes=(),
            channels=tuple(site.channels[channel] for channel in has_plane),
            image_paths=tuple(site.image_paths[first[channel] + plane] for channel in has_plane),
            illumination_paths=(),
        )
        # all channels at once, so that an error names the channel of another size or type
        for channel, plane_HW in zip(has_plane, read_site(one, None, bytes_max), strict=True):
            found[channel].append(measure_focus(plane_HW))
    return found


def _corrected(
    site: SiteImage, pixels_CHW: np.ndarray, shape: tuple[int, int], window: Window | None, bytes_max: int
) -> np.ndarray:
    """Each channel divided by its illumination function, in place."""
    y, x, height, width = window or (0, 0, *shape)
    dtype = pixels_CHW.dtype
    for i, path in enumerate(site.illumination_paths):
        if not path:
            continue
        with file_problems(site, site.channels[i], path):
            function_HW = _function_image(path, shape, bytes_max, *_version(path))[y : y + height, x : x + width]
        # float32 holds counts of 16 bit exactly
        counts_HW = pixels_CHW[i].astype(np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            counts_HW /= function_HW
        if dtype.kind != "f":
            np.rint(counts_HW, out=counts_HW)
            limits = np.iinfo(dtype)
            np.clip(counts_HW, limits.min, limits.max, out=counts_HW)
        pixels_CHW[i] = counts_HW
    return pixels_CHW


def _version(path: str) -> tuple[StoredFile, int]:
    """Size and time of change, which distinguish contents of a function image at one path."""
    if is_uri(path):
        return stored_file(path), 0
    status = Path(path).stat()
    return StoredFile(status.st_size), status.st_mtime_ns


@lru_cache(maxsize=16)  # a plate has one for each channel, and every site of the plate wants them
def _function_image(path: str, shape: tuple[int, int], bytes_max: int, file: StoredFile, changed: int) -> np.ndarray:
    return read_function_image(path, shape, bytes_max)
