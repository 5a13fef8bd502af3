"""Pictures of failed sites for the page of quality control, each with a usual site of the same plate."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from cytolake.catalog import Catalog
from cytolake.reports.plate_maps import data_uri
from cytolake.screens.images.compositing import grey_levels, percentile_limits, stretch
from cytolake.screens.images.pixels import read_site, site_image
from cytolake.screens.plate import ScreenError

Row = dict[str, Any]

THUMBNAIL_PX = 220
WHITE_SHARE = 0.5
"""Of a picture's pixels: where more would be white, it shows nothing and looks like a missing one."""
FINE_DETAIL = {"focus_slope", "laplacian_variance", "tenengrad", "noise_share"}
"""Metrics whose failure shows only at full resolution: the picture is the middle of the field then."""


def in_turn(rows: list[Row], n: int) -> list[Row]:
    """The n sites to show: the worst of each rule, then the second of each; every site once."""
    by_rule: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (-row["score"], row["site_id"], row["channel"])):
        by_rule[row["rule"]].append(row)
    queues = [iter(by_rule[rule]) for rule in sorted(by_rule)]
    chosen: dict[str, Row] = {}
    while queues and len(chosen) < n:
        for queue in list(queues):
            found = next((row for row in queue if row["site_id"] not in chosen), None)
            if found is None:
                queues.remove(queue)
            elif len(chosen) < n:
                chosen[found["site_id"]] = found
    return list(chosen.values())


def pictures_of(catalog: Catalog, chosen: list[Row], typical: dict[str, str]) -> list[Row]:
    """The chosen verdicts with pictures (data URIs) of the failed site and of its plate's usual one.

    Args:
        catalog: Where the sites and their pixels are.
        chosen: Failed verdicts of level site.
        typical: Plate to its usual site.
    """
    if not chosen:
        return []
    plates = sorted({row["plate_id"] for row in chosen})
    wanted = {row["site_id"] for row in chosen} | {typical[plate] for plate in plates if plate in typical}
    sites = {
        row["site_id"]: row
        for row in catalog.sql(
            "select s.*, w.perturbation, w.control from sites s join shown using (site_id) "
            "left join wells w using (well_id)",
            shown=pa.table({"site_id": sorted(wanted)}),
        ).to_pylist()
    }
    contrasts = _contrasts(catalog, plates)
    calm: dict[str, NDArray[Any]] = {}
    pictures = []
    for row in chosen:
        site = sites.get(row["site_id"])
        if site is None:  # verdicts of a site that is in the catalog no more
            continue
        picture = row | {"plate": site["plate"], "well": site["well"], "site": site["site"], "problem": ""}
        picture["treatment"] = treatment(site)
        picture["is_middle"] = row["metric"] in FINE_DETAIL
        picture["failed"] = picture["typical"] = picture["note"] = ""
        try:
            pixels = read_site(site_image(site), is_corrected=False)
            picture["failed"], picture["note"] = _thumbnail(pixels, site, row, contrasts)
            other = typical.get(row["plate_id"], "")
            if other in sites:
                if other not in calm:
                    calm = {other: read_site(site_image(sites[other]), is_corrected=False)}  # one at a time in memory
                picture["typical"], _ = _thumbnail(calm[other], sites[other], row, contrasts)
        except (ScreenError, OSError) as error:
            picture["problem"] = str(error)
        pictures.append(picture)
    return pictures


def treatment(well: Row) -> str:
    """What a well holds, for people."""
    control = f"{well['control']} control" if well.get("control") else ""
    return " · ".join(part for part in (well.get("perturbation"), control) if part)


def _contrasts(catalog: Catalog, plates: list[str]) -> dict[tuple[str, str], tuple[float, float]]:
    """Counts drawn black and white, by plate and stain: the same for all its sites, so an empty one looks empty."""
    rows = catalog.sql(
        "select plate_id, channel, median(p01) as low, quantile_cont(p99, 0.8) as high from qc_metrics "
        "join drawn using (plate_id) group by all",
        drawn=pa.table({"plate_id": plates}),
    ).to_pylist()
    return {(row["plate_id"], row["channel"]): (row["low"], row["high"]) for row in rows}


def _thumbnail(
    pixels: NDArray[Any], site: Row, verdict: Row, contrasts: dict[tuple[str, str], tuple[float, float]]
) -> tuple[str, str]:
    """The failed channel, or the mean of all of them, as a picture of at most THUMBNAIL_PX.

    Returns:
        The picture as a data URI, and a note where it has not the plate's contrast, in which it would be white.
    """
    names = list(site["channels"])
    if verdict["channel"] in names:
        index = names.index(verdict["channel"])
        names, pixels = names[index : index + 1], pixels[index : index + 1]
    height, width = pixels.shape[1:]
    if verdict["metric"] in FINE_DETAIL:
        size = min(THUMBNAIL_PX, height, width)
        top, left = (height - size) // 2, (width - size) // 2
        pixels = pixels[:, top : top + size, left : left + size]
    stretched, note = [], ""
    for name, channel in zip(names, pixels, strict=True):
        low, high = contrasts.get((verdict["plate_id"], name), (float(channel.min()), float(channel.max())))
        brightness = stretch(channel.astype(np.float32), low, high)
        if len(pixels) == 1 and float(np.mean(brightness >= 1)) > WHITE_SHARE:
            low, high = percentile_limits(channel, 1, 99.7)
            note = f"brighter than the plate's white, so in a contrast of its own: {low:,.0f} to {high:,.0f} counts"
            brightness = stretch(channel.astype(np.float32), low, high)
        stretched.append(brightness)
    picture = Image.fromarray(grey_levels(np.mean(stretched, axis=0)))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX)
    return data_uri(picture, "jpeg"), note
