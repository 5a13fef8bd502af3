"""Reads the pixels of stored crops for an answer; failures become problem documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from cytolake.catalog import Catalog, CatalogError
from cytolake.serving.problems import ServingError, first_lines


def read_crops(catalog: Catalog, crop_ids: Sequence[str]) -> tuple[Sequence[NDArray[Any]], Sequence[tuple[str, ...]]]:
    """Pixels of stored crops, each (C, S, S), and the C stains of each, in the order of the ids.

    Raises:
        ServingError: 404, unknown crops; 503, source images that cannot be read.
    """
    try:
        channels = catalog.channels_of(crop_ids)
    except CatalogError as error:
        raise ServingError(status=404, detail=first_lines(error)) from error
    try:
        return catalog.crop_pixels(crop_ids), channels
    except (OSError, ValueError) as error:
        raise ServingError(
            status=503, detail=f"the source images of these crops cannot be read: {first_lines(error)}"
        ) from error
