"""Pixels of one site, from whatever format it is in: channels put together, focal planes projected, light evened out.

Letters: C channels of the site, H height and W width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

import numpy as np

from cytolake.screens.images.colour_files import read_colour
from cytolake.screens.images.focus import FocusChoice, PlaneFocus, measure_focus, sharpest_plane
from cytolake.screens.images.image_files import (
    ImageFileError,
    Window,
    check_budget,
    check_pixel_type,
    check_window,
    not_read,
    one_line,
    read_function_image,
    read_plane,
)
from cytolake.screens.images.tiff_stacks import read_stack_planes
from cytolake.screens.plate import Problem, Reader, ScreenError, SiteImage
from cytolake.storage.files import StoredFile, is_uri, stored_file

if TYPE_CHECKING:
    from cytolake.screens.images.zarr_images import ZarrImage

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordedSite:
    """Counts of a site as its files hold them."""

    site: SiteImage
    """The site that was read, its focal plane chosen."""
    pixels: np.ndarray
    """(C, H, W), in the type that holds the values of every channel exactly."""
    shape: tuple[int, int]
    """(H, W) of the whole field of view."""
    types: tuple[np.dtype[Any], ...]
    """Pixel type of each channel's own files."""
    problems: tuple[Problem, ...] = ()
    """What is wrong with pixels that could be read: `missing_chunk`, `not_a_number`."""
    is_empty: bool = False
    """Not one chunk of the image is stored: every pixel is a fill value."""


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
    """Counts of a whole site as its files hold them, and what is wrong with them though they can be read.

    Args, Raises: As for `read_site`; `missing_chunk`: not one chunk of an OME-Zarr image is stored. Whatever else a
    decoder raises is `unreadable_file`, so that a damaged file costs its own site. An ImportError or MemoryError is of
    this machine and not of the file.
    """
    try:
        recorded = _read(site, None, bytes_max)
    except (ScreenError, ImportError, MemoryError):
        raise
    except Exception as error:  # any decoder may fail in any way on a damaged file
        _fail(
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
    _check_paths(site)
    readers = {"ome-zarr": _read_zarr, "files": _read_files, "colour": _read_colour}
    return readers.get(site.reader, _read_stacks)(site, window, bytes_max)


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
    """`resolve_sharpest`, and what each measure of focus says; None where the site is none of `z="sharpest"`.

    Every plane is read once, and no two are kept. Each channel counts alike, so that a bright one has no more to say
    than a faint one, and one plane is taken for all of them (`focus.sharpest_plane`). A channel of one plane keeps it;
    one with another number of planes than the rest has its own sharpest.

    Raises:
        ScreenError: As for `read_site`.
    """
    if site.z != "sharpest":
        return site, None
    _check_paths(site)
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


def _check_paths(site: SiteImage) -> None:
    n_paths, n_channels = len(site.image_paths), len(site.channels)
    planes = site.planes or (1,) * n_channels
    expected = {"files": sum(planes), "colour": 1}.get(site.reader, max(n_paths, 1))
    if n_paths != expected or len(planes) != n_channels or not n_channels or min(planes) < 1:
        _fail(
            site,
            "shape_mismatch",
            f"{n_paths} paths for {n_channels} channels" + (f" of {site.planes} planes" if site.planes else ""),
            "images (ome-zarr), one image (colour), or one file for each channel and plane",
            "List the plate again.",
        )
    if site.illumination_paths and len(site.illumination_paths) != n_channels:
        _fail(
            site,
            "shape_mismatch",
            f"{len(site.illumination_paths)} illumination functions for {n_channels} channels",
            "one for each channel, or none",
            "List the plate again.",
        )


def _read_zarr(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    from cytolake.screens.images.missing_chunks import is_nothing_stored, missing_chunks

    images, planes, whole = _open_zarr(site, window, bytes_max)
    read = _zarr_planes(site, images, planes, whole)
    pixels_CHW = next(read)
    for following in read:
        np.maximum(pixels_CHW, following, out=pixels_CHW)
    problems: list[Problem] = []
    first = 0
    for image in images:
        channels = site.channels[first : first + image.n("c")]
        problems += missing_chunks(replace(site, channels=channels, image_paths=(image.path,)), image.chunks_read)
        first += image.n("c")
    return RecordedSite(
        site=site,
        pixels=pixels_CHW,
        shape=(images[0].n("y"), images[0].n("x")),
        types=(pixels_CHW.dtype,) * len(site.channels),
        problems=tuple(problems),
        is_empty=any(is_nothing_stored(image.chunks_read) for image in images),
    )


def _zarr_planes(site: SiteImage, images: Sequence[ZarrImage], planes: range, window: Window) -> Iterator[np.ndarray]:
    """(C, H, W) of each focal plane, with the channels of all images of the site."""
    from cytolake.screens.images.zarr_images import read_planes

    read = [read_planes(image, site.timepoint, planes, window) for image in images]
    for _ in planes:
        parts = []
        for image, of_image in zip(images, read, strict=True):
            with _told(site, "", image.path):
                parts.append(next(of_image))
        yield parts[0] if len(parts) == 1 else np.concatenate(parts)


def _open_zarr(site: SiteImage, window: Window | None, bytes_max: int) -> tuple[list[ZarrImage], range, Window]:
    """The images of a site, its focal planes and its window, held against what the images say of themselves.

    A site has several images where its channels were taken in several multiplexing cycles.
    """
    from cytolake.screens.images.zarr_images import open_image  # zarr takes 0.5 s to import

    images: list[ZarrImage] = []
    n_planes = max(site.planes, default=0)
    plane = 0 if n_planes or not site.z else int(site.z)
    planes = range(plane, plane + max(n_planes, 1))
    for path in site.image_paths:
        with _told(site, "", path):
            image = open_image(path)
            if site.timepoint >= image.n("t") or planes.stop > image.n("z"):
                wanted = f"{n_planes} focal planes" if n_planes else f"focal plane {plane}"
                raise _zarr_changed(
                    f"{image.n('t')} timepoints and {image.n('z')} focal planes",
                    f"timepoint {site.timepoint}, {wanted}",
                )
            check_pixel_type(image.dtype)
            images.append(image)
            first = images[0]
            if (image.n("y"), image.n("x"), image.dtype) != (first.n("y"), first.n("x"), first.dtype):
                raise _zarr_changed(
                    f"{image.n('y')} x {image.n('x')} pixels of {image.dtype}",
                    f"{first.n('y')} x {first.n('x')} of {first.dtype}, as in the first cycle",
                )
    with _told(site, "", site.image_paths[0]):
        n_channels = sum(image.n("c") for image in images)
        if n_channels != len(site.channels):
            raise _zarr_changed(
                f"{n_channels} channels in the image", f"{len(site.channels)} ({', '.join(site.channels)})"
            )
        whole = check_window(window, images[0].n("y"), images[0].n("x"))
        check_budget(n_channels * whole[2] * whole[3] * images[0].dtype.itemsize, bytes_max)
        # chunks are decoded whole: a small window of huge ones must not slip through
        check_budget(max(image.bytes_in_work(planes, whole) for image in images), bytes_max)
    return images, planes, whole


def _zarr_changed(found: str, expected: str) -> ImageFileError:
    return ImageFileError(
        "shape_mismatch", found, expected, "The image changed after it was listed; ingest the plate again."
    )


def _read_files(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    pixels_CHW: np.ndarray | None = None
    shape: tuple[int, int] = (0, 0)
    types: list[np.dtype[Any]] = []
    n_channels = len(site.channels)
    first = 0
    for i, (channel, n_planes) in enumerate(zip(site.channels, site.planes or (1,) * n_channels, strict=True)):
        for plane, path in enumerate(site.image_paths[first : first + n_planes]):
            with _told(site, channel, path):
                pixels_HW, found = read_plane(path, window, bytes_max // n_channels)
                if pixels_CHW is None:
                    shape = found
                    pixels_CHW = np.empty((n_channels, *pixels_HW.shape), pixels_HW.dtype)
                if found != shape:
                    raise ImageFileError(
                        "shape_mismatch",
                        f"{found[0]} x {found[1]} pixels",
                        f"{shape[0]} x {shape[1]}, as in channel {site.channels[0]}",
                        "All channels of a site must be one size; export them again, or list them as two sites.",
                    )
                if pixels_HW.dtype != pixels_CHW.dtype:
                    common = _common_type(pixels_CHW.dtype, pixels_HW.dtype, site.channels[0])
                    check_budget(pixels_CHW.size * common.itemsize, bytes_max)
                    pixels_CHW = pixels_CHW.astype(common, copy=False)
                if plane:
                    types[i] = _common_type(types[i], pixels_HW.dtype, channel)
                else:
                    types.append(pixels_HW.dtype)
            if plane:
                np.maximum(pixels_CHW[i], pixels_HW, out=pixels_CHW[i])
            else:
                pixels_CHW[i] = pixels_HW
        first += n_planes
    assert pixels_CHW is not None  # _check_paths: at least one channel of at least one plane
    return RecordedSite(site=site, pixels=pixels_CHW, shape=shape, types=tuple(types))


def _common_type(one: np.dtype[Any], other: np.dtype[Any], of: str) -> np.dtype[Any]:
    """The type that holds every value of both exactly, such as uint16 for uint8 and uint16; `of` is the channel of one.

    Raises:
        ImageFileError: `mixed_pixel_type`: there is none, as for 64-bit whole numbers and floats.
    """
    common = np.result_type(one, other)
    digits = np.finfo(common).nmant + 1 if common.kind == "f" else 64
    if any(each.kind in "iu" and each.itemsize * 8 > digits for each in (one, other)):
        raise ImageFileError(
            "mixed_pixel_type",
            str(other),
            f"{one}, as in channel {of}, or another type that can be widened to a common one without rounding",
            "Export all channels of a site with the same bit depth.",
        )
    return common


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
                Problem(
                    screen=site.screen,
                    plate=site.plate,
                    well=site.well,
                    site=site.site,
                    channel=channel,
                    file=path if site.reader != "files" or not site.planes else "",
                    problem="not_a_number",
                    found=f"{n_bad} of {pixels_HW.size} pixels are NaN or infinite ({n_nan} NaN)",
                    expected="numbers in every pixel",
                    next_step="Write the image again without them. Crops that hold such a pixel are left out.",
                )
            )
    return problems


def _read_colour(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    with _told(site, "", site.image_paths[0]):
        pixels_CHW, shape = read_colour(site.image_paths[0], len(site.channels), window, bytes_max)
    return RecordedSite(site=site, pixels=pixels_CHW, shape=shape, types=(pixels_CHW.dtype,) * len(site.channels))


def _read_stacks(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    read = _stack_planes(site, window, bytes_max)
    pixels_CHW, shape = next(read)
    for following, _ in read:
        np.maximum(pixels_CHW, following, out=pixels_CHW)
    return RecordedSite(site=site, pixels=pixels_CHW, shape=shape, types=(pixels_CHW.dtype,) * len(site.channels))


def _stack_planes(
    site: SiteImage, window: Window | None, bytes_max: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """(C, H, W) of each focal plane, with the channels of all files of the site, and the (H, W) of the whole."""
    n_planes = max(site.planes, default=0)
    plane = 0 if n_planes or not site.z else int(site.z)
    for z in range(plane, plane + max(n_planes, 1)):
        parts: list[np.ndarray] = []
        shape = (0, 0)
        for path in site.image_paths:
            with _told(site, "", path):
                timepoint = site.timepoint
                ((part_CHW, found),) = read_stack_planes(
                    path, site.reader, timepoint, range(z, z + 1), window, bytes_max // len(site.image_paths)
                )
                shape = shape if parts else found
                if found != shape or (parts and part_CHW.dtype != parts[0].dtype):
                    raise ImageFileError(
                        "shape_mismatch",
                        f"{found[0]} x {found[1]} pixels of {part_CHW.dtype}",
                        f"{shape[0]} x {shape[1]} of {parts[0].dtype if parts else part_CHW.dtype}",
                        "All files of a site must be one size and type; export them again.",
                    )
                parts.append(part_CHW)
        with _told(site, "", site.image_paths[0]):
            n_channels = sum(len(part) for part in parts)
            if n_channels != len(site.channels):
                raise ImageFileError(
                    "shape_mismatch",
                    f"{n_channels} channels in its files",
                    f"{len(site.channels)} ({', '.join(site.channels)})",
                    "The file has another structure than the others of its plate; export it like them.",
                )
        yield parts[0] if len(parts) == 1 else np.concatenate(parts), shape


def _focus_of_planes(site: SiteImage, bytes_max: int) -> list[list[PlaneFocus]]:
    """What is measured of each plane of each channel."""
    if site.reader == "ome-zarr":
        images, planes, whole = _open_zarr(site, None, bytes_max)
        focus = [[measure_focus(plane_HW) for plane_HW in p] for p in _zarr_planes(site, images, planes, whole)]
        return [list(of_channel) for of_channel in zip(*focus, strict=True)]
    if site.reader != "files":
        series = [[measure_focus(plane_HW) for plane_HW in p] for p, _ in _stack_planes(site, None, bytes_max)]
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
        # all channels at once, so that those of another size or type are told by name
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
        with _told(site, site.channels[i], path):
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
    """What tells one content of a function image from a later one of the same path."""
    if is_uri(path):
        return stored_file(path), 0
    status = Path(path).stat()
    return StoredFile(status.st_size), status.st_mtime_ns


@lru_cache(maxsize=16)  # a plate has one for each channel, and every site of the plate wants them
def _function_image(path: str, shape: tuple[int, int], bytes_max: int, file: StoredFile, changed: int) -> np.ndarray:
    return read_function_image(path, shape, bytes_max)


@contextmanager
def _told(site: SiteImage, channel: str, path: str) -> Iterator[None]:
    """Tells what is wrong with a file as a problem of its site."""
    try:
        yield
        return
    except ImageFileError as error:
        told = error
    except FileNotFoundError as error:
        told = ImageFileError("missing_file", one_line(error), "the file that was listed", "Copy it back.")
    except OSError as error:
        told = not_read(error)
    _fail(site, told.problem, told.found, told.expected, told.next_step, channel=channel, file=path)


def _fail(
    site: SiteImage, problem: str, found: str, expected: str, next_step: str, *, channel: str = "", file: str = ""
) -> NoReturn:
    raise ScreenError(
        Problem(
            screen=site.screen,
            plate=site.plate,
            well=site.well,
            site=site.site,
            channel=channel or (site.channels[0] if site.reader == "files" and len(site.channels) == 1 else ""),
            file=file,
            problem=problem,
            found=found,
            expected=expected,
            next_step=next_step,
        )
    )
