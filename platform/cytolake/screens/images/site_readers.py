"""Readers of one site's counts, one for each kind of source: OME-Zarr, plain files, stacks and colour files.

Letters: C channels of the site, H height and W width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from cytolake.screens.images.colour_files import read_colour
from cytolake.screens.images.image_errors import (
    ImageFileError,
    Window,
    check_budget,
    check_pixel_type,
    check_window,
    not_read,
    one_line,
)
from cytolake.screens.images.image_files import read_plane
from cytolake.screens.images.tiff_stacks import read_stack_planes
from cytolake.screens.plate import Problem, ScreenError, SiteImage

if TYPE_CHECKING:
    from cytolake.screens.images.zarr_images import ZarrImage


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RecordedSite:
    """Counts of a site as stored in its files."""

    site: SiteImage
    """The site, with its focal plane chosen."""
    pixels: np.ndarray
    """(C, H, W), in the smallest type that holds the values of every channel exactly."""
    shape: tuple[int, int]
    """(H, W) of the whole field of view."""
    types: tuple[np.dtype[Any], ...]
    """Pixel type of each channel's own files."""
    problems: tuple[Problem, ...] = ()
    """Problems of pixels that could be read: `missing_chunk`, `not_a_number`."""
    is_empty: bool = False
    """No chunk of the image is stored: every pixel is a fill value."""


def read_counts(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    """Counts of a site whose focal plane is chosen.

    Raises:
        ScreenError: As for `pixels.read_site`.
    """
    check_paths(site)
    readers = {"ome-zarr": _read_zarr, "files": _read_files, "colour": _read_colour}
    return readers.get(site.reader, _read_stacks)(site, window, bytes_max)


def check_paths(site: SiteImage) -> None:
    """Check that a site has as many paths, planes and illumination functions as its channels need.

    Raises:
        ScreenError: `shape_mismatch`.
    """
    n_paths, n_channels = len(site.image_paths), len(site.channels)
    planes = site.planes or (1,) * n_channels
    expected = {"files": sum(planes), "colour": 1}.get(site.reader, max(n_paths, 1))
    if n_paths != expected or len(planes) != n_channels or not n_channels or min(planes) < 1:
        refuse_site(
            site,
            "shape_mismatch",
            f"{n_paths} paths for {n_channels} channels" + (f" of {site.planes} planes" if site.planes else ""),
            "images (ome-zarr), one image (colour), or one file for each channel and plane",
            "List the plate again.",
        )
    if site.illumination_paths and len(site.illumination_paths) != n_channels:
        refuse_site(
            site,
            "shape_mismatch",
            f"{len(site.illumination_paths)} illumination functions for {n_channels} channels",
            "one for each channel, or none",
            "List the plate again.",
        )


def _read_zarr(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    from cytolake.screens.images.missing_chunks import is_nothing_stored, missing_chunks

    images, planes, whole = open_zarr(site, window, bytes_max)
    read = zarr_planes(site, images, planes, whole)
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


def zarr_planes(site: SiteImage, images: Sequence[ZarrImage], planes: range, window: Window) -> Iterator[np.ndarray]:
    """(C, H, W) of each focal plane, with the channels of all images of the site."""
    from cytolake.screens.images.zarr_images import read_planes

    read = [read_planes(image, site.timepoint, planes, window) for image in images]
    for _ in planes:
        parts = []
        for image, of_image in zip(images, read, strict=True):
            with file_problems(site, "", image.path):
                parts.append(next(of_image))
        yield parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_zarr(site: SiteImage, window: Window | None, bytes_max: int) -> tuple[list[ZarrImage], range, Window]:
    """The images of a site, its focal planes and its window, checked against the metadata of the images.

    A site has several images where its channels were taken in several multiplexing cycles.
    """
    from cytolake.screens.images.zarr_images import open_image  # zarr takes 0.5 s to import

    images: list[ZarrImage] = []
    n_planes = max(site.planes, default=0)
    plane = 0 if n_planes or not site.z else int(site.z)
    planes = range(plane, plane + max(n_planes, 1))
    for path in site.image_paths:
        with file_problems(site, "", path):
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
    with file_problems(site, "", site.image_paths[0]):
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
            with file_problems(site, channel, path):
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


def _read_colour(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    with file_problems(site, "", site.image_paths[0]):
        pixels_CHW, shape = read_colour(site.image_paths[0], len(site.channels), window, bytes_max)
    return RecordedSite(site=site, pixels=pixels_CHW, shape=shape, types=(pixels_CHW.dtype,) * len(site.channels))


def _read_stacks(site: SiteImage, window: Window | None, bytes_max: int) -> RecordedSite:
    read = stack_planes(site, window, bytes_max)
    pixels_CHW, shape = next(read)
    for following, _ in read:
        np.maximum(pixels_CHW, following, out=pixels_CHW)
    return RecordedSite(site=site, pixels=pixels_CHW, shape=shape, types=(pixels_CHW.dtype,) * len(site.channels))


def stack_planes(
    site: SiteImage, window: Window | None, bytes_max: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """(C, H, W) of each focal plane, with the channels of all files of the site, and the (H, W) of the whole."""
    n_planes = max(site.planes, default=0)
    plane = 0 if n_planes or not site.z else int(site.z)
    for z in range(plane, plane + max(n_planes, 1)):
        parts: list[np.ndarray] = []
        shape = (0, 0)
        for path in site.image_paths:
            with file_problems(site, "", path):
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
        with file_problems(site, "", site.image_paths[0]):
            n_channels = sum(len(part) for part in parts)
            if n_channels != len(site.channels):
                raise ImageFileError(
                    "shape_mismatch",
                    f"{n_channels} channels in its files",
                    f"{len(site.channels)} ({', '.join(site.channels)})",
                    "The file has another structure than the others of its plate; export it like them.",
                )
        yield parts[0] if len(parts) == 1 else np.concatenate(parts), shape


@contextmanager
def file_problems(site: SiteImage, channel: str, path: str) -> Iterator[None]:
    """Report an error of reading a file as a problem of its site.

    Raises:
        ScreenError: The block raised an ImageFileError or OSError.
    """
    try:
        yield
        return
    except ImageFileError as error:
        refused = error
    except FileNotFoundError as error:
        refused = ImageFileError("missing_file", one_line(error), "the file that was listed", "Copy it back.")
    except OSError as error:
        refused = not_read(error)
    refuse_site(site, refused.problem, refused.found, refused.expected, refused.next_step, channel=channel, file=path)


def refuse_site(
    site: SiteImage, problem: str, found: str, expected: str, next_step: str, *, channel: str = "", file: str = ""
) -> NoReturn:
    """Raise a ScreenError with one problem of a site."""
    raise ScreenError(
        site.problem(
            channel=channel or (site.channels[0] if site.reader == "files" and len(site.channels) == 1 else ""),
            file=file,
            problem=problem,
            found=found,
            expected=expected,
            next_step=next_step,
        )
    )
