"""Small screens in the layouts of catalog/layouts: real images of a few pixels, each with a number of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import Plate
from cytolake.screens.sources import ScreenSource, list_plates

SHAPE = (6, 8)


@pytest.fixture
def write_images() -> Callable[..., dict[str, int]]:
    """Writes an image for each path below a folder; all pixels of one image are its number, which the dict gives."""

    def write(folder: Path, paths: Iterable[str], first: int = 1) -> dict[str, int]:
        numbers = {}
        for number, path in enumerate(paths, first):
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full(SHAPE, number, np.uint8 if file.suffix.lower() == ".jp2" else np.uint16)
            if file.suffix.lower() == ".png":
                file.write_bytes(imagecodecs.png_encode(pixels))
            elif file.suffix.lower() == ".jp2":
                file.write_bytes(imagecodecs.jpeg2k_encode(pixels, reversible=True))
            else:
                tifffile.imwrite(file, pixels, photometric="minisblack")
            numbers[path] = number
        return numbers

    return write


@pytest.fixture
def listed() -> Callable[..., list[Plate]]:
    """Plates of a folder under the declared presets; other fields of the source by name."""

    def list_folder(folder: Path, **fields: object) -> list[Plate]:
        source = ScreenSource(**{"screen": "s", "path": str(folder), **fields})  # type: ignore[arg-type]
        return list_plates(source, channel_vocabulary().aliases, layout_presets())

    return list_folder


@pytest.fixture
def numbers_read() -> Callable[[Plate], Mapping[tuple[str, str, int, str, str], int]]:
    """Well, site, timepoint, plane, channel -> the number that is read there, for every channel of every site."""

    def read(plate: Plate) -> Mapping[tuple[str, str, int, str, str], int]:
        found = {}
        for site in plate.sites:
            for channel, pixels in zip(site.channels, read_site(site), strict=True):
                assert pixels.shape == SHAPE
                assert (pixels == pixels[0, 0]).all()
                found[site.well, site.site, site.timepoint, site.z, channel] = int(pixels[0, 0])
        return found

    return read
