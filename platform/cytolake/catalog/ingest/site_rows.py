"""Reads one site once and measures it: its row, its QC metrics and its grid of crops."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import google_crc32c
import numpy as np

from cytolake.catalog import ids
from cytolake.catalog.errors import CatalogError
from cytolake.cropping.grid import crop_grid as crop_grid
from cytolake.cropping.grid import finite_crops, smaller_than_crop
from cytolake.qc.metrics import foreground_shares, measure_site, measure_with_windows
from cytolake.screens.images.image_errors import STORAGE_FAILED
from cytolake.screens.images.pixels import correct, read_recorded
from cytolake.screens.plate import Problem, ScreenError, SiteImage


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteRows:
    """Rows of one site; none but `problems` where it could not be read."""

    sites: list[dict[str, Any]]
    crops: list[dict[str, Any]]
    qc_metrics: list[dict[str, Any]]
    problems: list[Problem]


def read_site_rows(site: SiteImage, batch: str, crop_size: int, plate_ids: ids.PlateIds | None = None) -> SiteRows:
    """Read one site and measure it. An unreadable site gives problems and no rows.

    What is wrong with pixels that can be read (chunks that are not stored, NaN) is among the problems of a site that
    has its rows; crops that hold a pixel that is not finite are left out.

    QC metrics are of the counts as recorded: a function image that brightens the corners would hide an uneven lamp and
    what is clipped. Foreground is of the corrected pixels, which every later reader of the crop gets.

    Args:
        site: Where the pixels are.
        batch: Of its plate.
        crop_size: Edge of a crop, pixels.
        plate_ids: Of the acquisition; by default of the first one under the site's names.

    Raises:
        CatalogError: The storage failed. In quarantine that would pass for a fault of the plate, for ever: the next
            ingest would find the plate unchanged and skip it.
    """
    try:
        read = read_recorded(site)
        site, recorded = read.site, read.pixels
        is_corrected = any(site.illumination_paths)
        pixels = correct(replace(read, pixels=recorded.copy())) if is_corrected else recorded
    except ScreenError as error:
        for problem in error.problems:
            if problem.problem == STORAGE_FAILED:
                raise CatalogError(
                    f"well {site.well}, site {site.site}, {problem.file}: {problem.found} {problem.next_step} It then "
                    "goes on with the wells that are missing."
                ) from error
        return SiteRows(sites=[], crops=[], qc_metrics=[], problems=list(error.problems))

    n_channels, height, width = pixels.shape
    of = plate_ids or ids.PlateIds(site.screen, site.plate)
    where = (site.well, site.site, site.timepoint, site.z)
    keys = {
        "site_id": of.site_id(*where),
        "well_id": of.well_id(site.well),
        "plate_id": of.plate_id,
        "screen": site.screen,
        "plate": site.plate,
        "batch": batch,
        "well": site.well,
        "site": site.site,
    }
    corners = finite_crops(pixels, crop_size)
    windows = [(y, x, crop_size) for y, x in corners]
    if pixels is recorded:
        metrics_of_channels, shares = measure_with_windows(recorded, windows, site.channels, read.types)
    else:
        metrics_of_channels, shares = (
            measure_site(recorded, site.channels, read.types),
            foreground_shares(pixels, windows, site.channels),
        )
    return SiteRows(
        sites=[
            keys
            | {
                "timepoint": site.timepoint,
                "z": site.z,
                "reader": site.reader,
                "channels": list(site.channels),
                "image_paths": list(site.image_paths),
                "planes": list(site.planes),
                "illumination_paths": list(site.illumination_paths),
                "height": height,
                "width": width,
                "dtype": pixels.dtype.name,
                "checksum": checksum(recorded),
            }
        ],
        crops=[
            keys
            | {
                "crop_id": of.crop_id(*where, y=y, x=x, size=crop_size),
                "n_channels": n_channels,
                "y": y,
                "x": x,
                "size": crop_size,
                "foreground_share": share,
            }
            for (y, x), share in zip(corners, shares.tolist(), strict=True)
        ],
        qc_metrics=[
            {"site_id": keys["site_id"], "plate_id": keys["plate_id"], "channel": channel, "channel_index": index}
            | metrics
            for index, (channel, metrics) in enumerate(zip(site.channels, metrics_of_channels, strict=True))
        ],
        problems=[*read.problems, *smaller_than_crop(site, height, width, crop_size)],
    )


def checksum(pixels: np.ndarray[Any, Any]) -> str:
    """CRC-32C of each channel of (C, H, W) pixels, as hex digits: 2.6 GB/s, and one in 2**32 for each changed channel
    that a change is not seen."""
    return "-".join(f"{google_crc32c.value(np.ascontiguousarray(channel).tobytes()):08x}" for channel in pixels)
