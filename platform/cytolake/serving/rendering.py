"""Crops as pictures: channels with a colour and a contrast each, added up on black.

Shapes: C channels, S side of a crop in pixels, B crops.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cytolake.serving.problems import ServingError

BLACK_PERCENTILE, WHITE_PERCENTILE = 1.0, 99.8
"""Of the pixels shown, where no contrast is given."""

STAIN_COLOURS = {
    "DNA": "#3f8cff", "ER": "#00c08b", "RNA": "#ffd23f", "AGP": "#ff8c1a", "Actin": "#ff8c1a", "Mito": "#e0559f",
}  # fmt: skip
OTHER_COLOURS = ("#c8c8c8", "#8ad8ff", "#d5a6ff", "#ffb0a0", "#b5e06b")
"""For stains without one of their own, in turn. All can be told apart with any of the usual colour blindnesses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelView:
    """How one channel is shown."""

    name: str
    black: float | None = None
    """Raw intensity shown as black; None means a percentile."""
    white: float | None = None
    """Raw intensity shown in full colour, above `black`."""
    colour: str = ""
    """#rrggbb; empty means the stain's."""

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
    """Read `DNA:0:2000:#00aaff,ER::900,RNA`: name, black, white, colour, of which all but the name may be left out.

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


def contrast(
    crops: Sequence[NDArray[Any]], channels: Sequence[Sequence[str]], views: Sequence[ChannelView]
) -> dict[str, ChannelView]:
    """The views with nothing left open: limits are percentiles over the pixels of all crops that have the channel.

    Args:
        crops: B crops, each (C, S, S), raw intensities.
        channels: Stains of each crop.
        views: What to show; empty means every channel.

    Raises:
        ServingError: 422, a channel that none of the crops has, or one named twice.
    """
    there = list(dict.fromkeys(name for names in channels for name in names))
    views = views or [ChannelView(name=name) for name in there]
    unknown = [view.name for view in views if view.name not in there]
    if unknown or len({view.name for view in views}) < len(views):
        raise ServingError(
            status=422,
            detail=f"channels: found {', '.join(view.name[:40] for view in views)}; expected each once, of those that "
            f"the crops have: {', '.join(there)}.",
        )
    full = {}
    for view in views:
        of_channel = [
            crop[names.index(view.name)].ravel()
            for crop, names in zip(crops, channels, strict=True)
            if view.name in names
        ]
        low, high = np.percentile(np.concatenate(of_channel), [BLACK_PERCENTILE, WHITE_PERCENTILE])
        black = float(low) if view.black is None else view.black
        white = max(float(high), black + 1) if view.white is None else view.white
        colour = view.colour or colour_of(view.name, there)
        full[view.name] = ChannelView(name=view.name, black=min(black, white - 1e-9), white=white, colour=colour)
    return full


def colour_of(name: str, there: Sequence[str]) -> str:
    """The stain's colour."""
    others = [each for each in there if each not in STAIN_COLOURS]
    return STAIN_COLOURS.get(name) or OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]


def render(crop: NDArray[Any], channels: Sequence[str], views: Mapping[str, ChannelView]) -> NDArray[np.uint8]:
    """(S, S, 3) picture of one crop.

    Args:
        crop: (C, S, S) raw intensities.
        channels: Its C stains.
        views: What `contrast` gave.
    """
    added = np.zeros((*crop.shape[1:], 3))
    for name, pixels in zip(channels, crop, strict=True):
        view = views.get(name)
        if view is None or view.black is None or view.white is None:
            continue
        share = np.clip((pixels.astype(np.float64) - view.black) / (view.white - view.black), 0, 1)
        colour = [int(view.colour[i : i + 2], 16) for i in (1, 3, 5)]
        added += share[..., None] * np.array(colour)
    return np.asarray(np.rint(np.clip(added, 0, 255)), dtype=np.uint8)


def sheet(pictures: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.uint8], int, int]:
    """All pictures on one, row by row; a smaller one lies at the upper left of its tile.

    Returns:
        (H, W, 3), the edge of a tile in pixels, and tiles in a row.
    """
    tile = max(max(picture.shape[:2]) for picture in pictures)
    n_columns = min(len(pictures), 20)
    joined = np.zeros((-(-len(pictures) // n_columns) * tile, n_columns * tile, 3), np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // n_columns * tile, i % n_columns * tile
        joined[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    return joined, tile, n_columns


def png(picture: NDArray[np.uint8]) -> bytes:
    """The picture as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "PNG", compress_level=3)
    return stream.getvalue()
