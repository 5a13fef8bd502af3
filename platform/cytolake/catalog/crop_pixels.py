"""Reads the pixels of crops from their source; the catalog itself stores no pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cytolake.catalog.errors import CatalogError
from cytolake.screens.images.pixels import read_site, site_image

if TYPE_CHECKING:
    from cytolake.catalog.tables import Catalog


def read_crops(catalog: Catalog, crop_ids: Sequence[str]) -> list[np.ndarray[Any, Any]]:
    """Pixels of each crop: (C, size, size), in the source's dtype, in the order of the ids.

    A site is read once for all its crops, and only the rectangle that holds them.
    """
    crops = _crops(catalog, crop_ids, "c.y, c.x, c.size, s.*")
    of_site: dict[str, list[int]] = defaultdict(list)
    for position, crop in enumerate(crops):
        of_site[crop["site_id"]].append(position)
    pixels: list[np.ndarray[Any, Any]] = [np.empty(0)] * len(crops)
    for positions in of_site.values():
        windows = [(crops[i]["y"], crops[i]["x"], crops[i]["size"]) for i in positions]
        top, left = min(y for y, _, _ in windows), min(x for _, x, _ in windows)
        bottom, right = max(y + size for y, _, size in windows), max(x + size for _, x, size in windows)
        site = site_image(crops[positions[0]])
        rectangle = read_site(site, (top, left, bottom - top, right - left))
        for i, (y, x, size) in zip(positions, windows, strict=True):
            window = rectangle[:, y - top : y - top + size, x - left : x - left + size]
            pixels[i] = window.copy() if len(positions) > 1 else window  # a view would keep the whole rectangle alive
    return pixels


def channels_of(catalog: Catalog, crop_ids: Sequence[str]) -> list[tuple[str, ...]]:
    """Stain names of each crop's channels, in pixel order."""
    return [tuple(crop["channels"]) for crop in _crops(catalog, crop_ids, "s.channels")]


def _crops(catalog: Catalog, crop_ids: Sequence[str], columns: str) -> list[dict[str, Any]]:
    wanted = pa.table(
        {"crop_id": pa.array(list(crop_ids), pa.string()), "position": pa.array(range(len(crop_ids)), pa.int64())}
    )
    rows: list[dict[str, Any]] = catalog.sql(
        f"SELECT w.position, w.crop_id, {columns} FROM wanted_crops w JOIN crops c ON c.crop_id = w.crop_id "
        "JOIN sites s ON s.site_id = c.site_id ORDER BY w.position",
        wanted_crops=wanted,
    ).to_pylist()
    if len(rows) != len(crop_ids):
        there = {row["crop_id"] for row in rows}
        missing = [crop for crop in crop_ids if crop not in there]
        raise CatalogError(
            f"crop {', '.join(missing[:5])}: {len(missing)} of {len(crop_ids)} crop ids are not in the catalog at "
            f"{catalog.root}. Take ids from the table crops of this catalog."
        )
    return rows
