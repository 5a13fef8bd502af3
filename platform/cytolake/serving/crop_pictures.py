"""Pictures of crops as PNG: one crop, or a montage of several with one contrast.

Shapes: C channels, S side of a crop in pixels, B crops.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import Response
from numpy.typing import NDArray
from PIL import Image

from cytolake.catalog import Catalog
from cytolake.screens.images.compositing import add_colours, percentile_limits, stretch
from cytolake.serving.problems import ServingError
from cytolake.serving.stored_crops import read_crops

BLACK_PERCENTILE, WHITE_PERCENTILE = 1.0, 99.8
"""Percentiles of the pixels that are black and white where the request gives no limits."""

STAIN_COLOURS = {
    "DNA": "#3f8cff", "ER": "#00c08b", "RNA": "#ffd23f", "AGP": "#ff8c1a", "Actin": "#ff8c1a", "Mito": "#e0559f",
}  # fmt: skip
OTHER_COLOURS = ("#c8c8c8", "#8ad8ff", "#d5a6ff", "#ffb0a0", "#b5e06b")
"""Colours of other stains, in turn. All colours can be distinguished with each common colour blindness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelView:
    """Contrast and colour of one channel."""

    name: str
    black: float | None = None
    """Raw intensity shown as black; None for a percentile."""
    white: float | None = None
    """Raw intensity shown in full colour, above `black`."""
    colour: str = ""
    """#rrggbb; empty for the colour of the stain."""

    def __post_init__(self) -> None:
        for value in (self.black, self.white):
            if value is not None and not math.isfinite(value):
                raise ServingError(status=422, detail=f"channel {self.name}: black and white must be finite numbers.")
        if self.black is not None and self.white is not None and self.white <= self.black:
            raise ServingError(
                status=422, detail=f"channel {self.name}: white {self.white:g} is not above black {self.black:g}."
            )
        if self.colour and not re.fullmatch(r"#[0-9a-fA-F]{6}", self.colour):
            raise ServingError(status=422, detail=f"channel {self.name}: {self.colour[:20]!r}, expected #rrggbb.")


def parse_views(text: str) -> tuple[ChannelView, ...]:
    """Read `DNA:0:2000:#00aaff,ER::900,RNA`: name, black, white and colour of each channel; only the name is required.

    Raises:
        ServingError: 422.
    """
    views = []
    for part in text.split(",") if text.strip() else ():
        name, *rest = part.strip().split(":")
        if not name or len(rest) > 3:
            raise ServingError(status=422, detail=f"channels: {part[:80]!r}, expected name:black:white:#rrggbb.")
        black, white, colour = [*rest, "", "", ""][:3]
        try:
            limits = [float(limit) if limit else None for limit in (black, white)]
        except ValueError as error:
            raise ServingError(status=422, detail=f"channels: {part[:80]!r}, black and white are numbers.") from error
        colour = colour if colour.startswith("#") or not colour else f"#{colour}"
        views.append(ChannelView(name=name, black=limits[0], white=limits[1], colour=colour))
    return tuple(views)


def crop_picture(catalog: Catalog, crop_id: str, views: Sequence[ChannelView]) -> bytes:
    """One stored crop as a PNG file.

    Args:
        views: Channels to show; empty shows all.

    Raises:
        ServingError: 404, an unknown crop; 422, an unknown channel; 503, an image that cannot be read.
    """
    crops, channels = read_crops(catalog, [crop_id])
    return _png(_render(crops[0], channels[0], _contrast(crops, channels, views)))


def montage_picture(catalog: Catalog, crop_ids: Sequence[str], views: Sequence[ChannelView] | None) -> Response:
    """Stored crops on one PNG, with one contrast for all; the headers describe tiles and channels.

    Args:
        views: Channels to show; None shows all. Channels that these crops do not have are left out, because the page
            keeps its settings from one selection to the next.

    Raises:
        ServingError: As `crop_picture`.
    """
    crops, channels = read_crops(catalog, crop_ids)
    all_views = _contrast(crops, channels, ())
    present = {name for names in channels for name in names}
    wanted = None if views is None else [view for view in views if view.name in present]
    shown = all_views if wanted is None else _contrast(crops, channels, wanted) if wanted else {}
    sheet, tile, n_columns = _sheet([_render(*each, shown) for each in zip(crops, channels, strict=True)])
    listed = [
        {"name": name, "is_on": name in shown}
        | {part: getattr(shown.get(name, view), part) for part in ("black", "white", "colour")}
        for name, view in all_views.items()
    ]
    headers = {"X-Tile": str(tile), "X-Columns": str(n_columns), "X-Channels": json.dumps(listed)}
    return Response(_png(sheet), media_type="image/png", headers=headers)


def _contrast(
    crops: Sequence[NDArray[Any]], channels: Sequence[Sequence[str]], views: Sequence[ChannelView]
) -> dict[str, ChannelView]:
    """Views with all limits and colours; missing limits are percentiles over all crops that have the channel.

    Args:
        crops: B crops, each (C, S, S), raw intensities.
        channels: Stains of each crop.
        views: Channels to show; empty shows all.

    Raises:
        ServingError: 422, a channel that none of the crops has, or one that is named twice.
    """
    present = list(dict.fromkeys(name for names in channels for name in names))
    views = views or [ChannelView(name=name) for name in present]
    unknown = [view.name for view in views if view.name not in present]
    if unknown or len({view.name for view in views}) < len(views):
        raise ServingError(
            status=422,
            detail=f"channels: found {', '.join(view.name[:40] for view in views)}; expected each once, of those that "
            f"the crops have: {', '.join(present)}.",
        )
    full = {}
    for view in views:
        of_channel = [
            crop[names.index(view.name)].ravel()
            for crop, names in zip(crops, channels, strict=True)
            if view.name in names
        ]
        low, high = percentile_limits(np.concatenate(of_channel), BLACK_PERCENTILE, WHITE_PERCENTILE)
        black = low if view.black is None else view.black
        white = max(high, black + 1) if view.white is None else view.white
        colour = view.colour or _colour_of(view.name, present)
        full[view.name] = ChannelView(name=view.name, black=min(black, white - 1e-9), white=white, colour=colour)
    return full


def _colour_of(name: str, present: Sequence[str]) -> str:
    """Colour of a stain; stains without their own take the others in turn."""
    others = [each for each in present if each not in STAIN_COLOURS]
    return STAIN_COLOURS.get(name) or OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]


def _render(crop: NDArray[Any], channels: Sequence[str], views: Mapping[str, ChannelView]) -> NDArray[np.uint8]:
    """(S, S, 3) picture of one crop: the sum of its channels on black.

    Args:
        crop: (C, S, S) raw intensities.
        channels: Its C stains.
        views: Result of `_contrast`, by channel; other channels are not shown.
    """
    brightness, colours = [], []
    for name, pixels in zip(channels, crop, strict=True):
        view = views.get(name)
        if view is None or view.black is None or view.white is None:
            continue
        brightness.append(stretch(pixels.astype(np.float64), view.black, view.white))
        colours.append([int(view.colour[i : i + 2], 16) for i in (1, 3, 5)])
    picture = add_colours(brightness, colours, crop.shape[1:])
    return np.asarray(np.rint(np.clip(picture, 0, 255)), dtype=np.uint8)


def _sheet(pictures: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], int, int]:
    """All pictures on one, row by row; a smaller picture is at the upper left of its tile.

    Returns:
        (H, W, 3), the edge of a tile in pixels, and the number of tiles in a row.
    """
    tile = max(max(picture.shape[:2]) for picture in pictures)
    n_columns = min(len(pictures), 20)
    joined = np.zeros((-(-len(pictures) // n_columns) * tile, n_columns * tile, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // n_columns * tile, i % n_columns * tile
        joined[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return joined, tile, n_columns


def _png(picture: NDArray[np.uint8]) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
