"""Small real screens: OME-Zarr plates that ngio writes, and TIFF images with an index CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from ngio import ImageInWellPath, create_empty_plate, create_ome_zarr_from_array

from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.screens.plate import Plate, Problem
from cytolake.screens.sources import ScreenSource, list_screen

HEIGHT, WIDTH = 24, 32
INDEX_COLUMNS = ("path", "plate", "well", "site", "channel", "z", "timepoint", "treatment")


def written_pixels(
    *place: str, n_channels: int = 2, axes: str = "cyx", sizes: Mapping[str, int] | None = None
) -> np.ndarray:
    """Different uint16 pixels for each place; `sizes` gives the lengths of t and z."""
    lengths = {"c": n_channels, "y": HEIGHT, "x": WIDTH, **(sizes or {})}
    seed = np.frombuffer("/".join(place).encode(), np.uint8)
    shape = [lengths[axis] for axis in axes]
    return np.random.default_rng(seed).integers(1, 60_000, shape, dtype=np.uint16)


@pytest.fixture
def site_pixels() -> Callable[..., np.ndarray]:
    """The pixels that `write_zarr_plate` writes for (plate, well path, image path)."""
    return written_pixels


@pytest.fixture
def write_zarr_plate() -> Callable[..., Path]:
    """Writes an OME-Zarr HCS plate through ngio; `wells` are paths such as B/03."""

    def write(
        path: Path,
        version: str,
        *,
        wells: Sequence[str] = ("B/02", "B/03", "C/02"),
        sites: Sequence[str] = ("0", "1"),
        labels: Sequence[str] | None = ("Hoechst 33342", "GFP"),
        axes: str = "cyx",
        sizes: Mapping[str, int] | None = None,
        compressors: Any = "auto",
    ) -> Path:
        images = [ImageInWellPath(row=w.split("/")[0], column=w.split("/")[1], path=s) for w in wells for s in sites]
        plate = create_empty_plate(str(path), name="ignored", images=images, ngff_version=version)
        for image in images:
            create_ome_zarr_from_array(
                plate.get_image_store(row=image.row, column=image.column, image_path=image.path),
                written_pixels(path.stem, f"{image.row}/{image.column}", image.path, axes=axes, sizes=sizes),
                axes_names=list(axes),
                pixelsize=0.65,
                levels=1,
                channels_meta=labels,
                ngff_version=version,
                compressors=compressors,
            )
        return path

    return write


@pytest.fixture
def write_indexed_screen() -> Callable[..., Path]:
    """Writes TIFF images and index.csv; each row gives the index columns, `path` defaults to the other cells joined."""

    def write(
        folder: Path,
        rows: Sequence[Mapping[str, str]],
        columns: Sequence[str] = INDEX_COLUMNS,
        absent: Sequence[str] = (),
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for row in rows:
            cells = {"plate": "P1", "well": "B02", "site": "1", "channel": "DNA", **row}
            names = (cells.get(name, "") for name in ("plate", "well", "site", "timepoint", "z", "channel"))
            cells.setdefault("path", "images/" + "_".join(name for name in names if name) + ".tif")
            file = folder / cells["path"]
            if cells["path"] not in absent and file.resolve().is_relative_to(folder.resolve()):
                file.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(file, written_pixels(cells["path"], n_channels=1)[0], photometric="minisblack")
            written.append(cells)
        with (folder / "index.csv").open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(written)
        return folder

    return write


@pytest.fixture
def codes() -> Callable[[Plate], list[str]]:
    """Problem codes of a plate, in order."""
    return lambda plate: [problem.problem for problem in plate.problems]


@pytest.fixture
def of_screen() -> Callable[..., tuple[Problem, ...]]:
    """What is wrong with a screen outside of its plates; other fields of the source by name."""

    def problems(folder: Path | str, **fields: object) -> tuple[Problem, ...]:
        source = ScreenSource(**{"screen": "s", "path": str(folder), **fields})  # type: ignore[arg-type]
        return list_screen(source, channel_vocabulary().aliases, layout_presets()).problems

    return problems
