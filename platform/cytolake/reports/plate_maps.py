"""Small pictures of a plate: one pixel for each well, coloured by a value."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from cytolake.screens.plate_format import plate_format


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateMap:
    """One small plate: a picture with one pixel for each well."""

    picture: str
    """Data URI of a PNG."""
    says: str
    """Alternative text, shown by a pointer that rests on it."""
    note: str
    n_failed: int = 0


class PlateGrid:
    """Draws one value for each well of a plate."""

    def __init__(self, wells: list[dict[str, Any]]) -> None:
        self.place = {
            row["well_id"]: (row["row"], row["column"]) for row in wells if None not in (row["row"], row["column"])
        }
        rows, columns = zip(*self.place.values(), strict=True) if self.place else ((0,), (0,))
        self.shape = plate_format(max(rows), max(columns))

    def map(
        self,
        values: dict[str, float | None],
        colour: Callable[[float], tuple[int, int, int]],
        says: str,
        note: str,
        n_failed: int = 0,
    ) -> PlateMap | None:
        """The map, None where no well with a value has a place. Wells without one are left clear."""
        pixels = np.zeros((*self.shape, 4), np.uint8)
        placed = [(self.place[well], value) for well, value in values.items() if well in self.place]
        if not placed:
            return None
        for (row, column), value in placed:
            pixels[row, column] = (*(colour(value) if value is not None else NO_LIMIT_COLOUR), 255)
        return PlateMap(picture=data_uri(Image.fromarray(pixels), "png"), says=says, note=note, n_failed=n_failed)


NO_LIMIT_COLOUR = (150, 156, 162)
CALM, NEAR, BEYOND, FAR = ((198, 213, 226), (44, 120, 178), (240, 140, 30), (165, 20, 30))

# Readers with any colour vision see it alike: Nunez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239.
CIVIDIS = ((0, 34, 78), (66, 78, 108), (125, 124, 120), (187, 175, 113), (254, 232, 56))


def limit_colour(score: float) -> tuple[int, int, int]:
    """Pale to blue up to the limit, orange to red from there to three times as far."""
    return _between(CALM, NEAR, score) if score <= 1 else _between(BEYOND, FAR, (score - 1) / 2)


def share_colour(share: float) -> tuple[int, int, int]:
    return CALM if share == 0 else _between(BEYOND, FAR, share)


def measured_colour(share: float) -> tuple[int, int, int]:
    place = min(1.0, max(0.0, share)) * (len(CIVIDIS) - 1)
    index = min(int(place), len(CIVIDIS) - 2)
    return _between(CIVIDIS[index], CIVIDIS[index + 1], place - index)


def _between(first: tuple[int, int, int], last: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    share = min(1.0, max(0.0, share))
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
    return red, green, blue


def data_uri(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
