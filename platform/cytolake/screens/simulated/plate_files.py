"""Writing the simulated screen: OME-Zarr plates and their plate map."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import ngio
import zarr

from cytolake.screens.plate import Problem, ScreenError
from cytolake.screens.simulated.cells import CHANNELS
from cytolake.screens.simulated.screen import (
    SimulatedScreen,
    SimulatedWell,
    plate_map_columns,
    plate_name,
    simulated_site,
    simulated_wells,
)
from cytolake.storage.atomic_write import atomic_folder, write_text

_ATTRIBUTE: Final = "cytolake_simulated_screen"
_LATER_OPTIONS: Final = ("n_inactive_genes", "bad_well_share", "copy_share")


def simulate_screen(
    config: SimulatedScreen,
    root: str | Path,
    progress: Callable[[str, int, int], None] | None = None,
    *,
    executor: Executor | None = None,
) -> list[Path]:
    """Write a simulated screen: `<root>/<screen>/<plate>.zarr` for each plate and `<root>/<screen>/platemap.csv`.

    A plate becomes visible when it is whole. Plates already written for the same config are left as they are.

    Args:
        root: Folder of screens; made where it does not exist.
        progress: Called with ("simulate", wells done, wells in all).
        executor: Where wells are drawn; as many threads as there are cores where None.

    Returns:
        Paths of the plates.

    Raises:
        ScreenError: The folder holds a plate or plate map of another config.
    """
    folder = Path(root) / config.screen
    wells = simulated_wells(config)
    _write_plate_map(config, folder / "platemap.csv", wells)
    n_done = 0

    def advance(n: int) -> None:
        nonlocal n_done
        n_done += n
        if progress is not None:
            progress("simulate", n_done, len(wells))

    paths = []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) if executor is None else _Borrowed(executor) as pool:
        for number in range(config.n_plates):
            path = folder / f"{plate_name(number)}.zarr"
            of_plate = [well for well in wells if well.plate_number == number]
            if _is_written(config, path):
                advance(len(of_plate))
            else:
                _write_plate(config, path, of_plate, pool, advance)
            paths.append(path)
    return paths


class _Borrowed:
    """Context of a caller's executor, which is not shut down."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    def __enter__(self) -> Executor:
        return self.executor

    def __exit__(self, *_: object) -> None:
        return None


def _write_plate_map(config: SimulatedScreen, path: Path, wells: Sequence[SimulatedWell]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, plate_map_columns(config), lineterminator="\n")
    writer.writeheader()
    writer.writerows(well.row for well in wells)
    if not path.exists():
        write_text(path, text.getvalue())
    elif path.read_bytes() != text.getvalue().encode("utf-8"):
        raise ScreenError(_other_config(config, str(path), "another plate map", "the plate map of this config"))


def _written_config(config: SimulatedScreen) -> dict[str, Any]:
    """The config stored in a plate. Later options are stored only if used, so that older plates stay valid."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return {name: value for name, value in values.items() if value or name not in _LATER_OPTIONS}


def _is_written(config: SimulatedScreen, path: Path) -> bool:
    """True for a whole plate of this config, False where there is none."""
    if not path.exists():
        return False
    found = zarr.open_group(str(path), mode="r").attrs.get(_ATTRIBUTE)
    expected = _written_config(config)
    if found == expected:
        return True
    if not isinstance(found, dict):
        raise ScreenError(
            _other_config(config, str(path), "a plate that was not simulated", "nothing, or this config's")
        )
    names = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    raise ScreenError(
        _other_config(
            config,
            str(path),
            ", ".join(f"{name}={found.get(name)!r}" for name in names),
            ", ".join(f"{name}={expected.get(name)!r}" for name in names),
        )
    )


def _other_config(config: SimulatedScreen, file: str, found: str, expected: str) -> Problem:
    return Problem(
        screen=config.screen,
        file=file,
        problem="other_simulation",
        found=found,
        expected=expected,
        next_step="Delete the folder, or give the new screen another name or root.",
    )


def _write_plate(
    config: SimulatedScreen,
    path: Path,
    wells: Sequence[SimulatedWell],
    pool: Executor,
    advance: Callable[[int], None],
) -> None:
    images = [
        ngio.ImageInWellPath(row=well.row["well"][0], column=well.row["well"][1:], path=str(site))
        for well in wells
        for site in range(1, config.sites_per_well + 1)
    ]
    unfinished = path.with_name(f".{path.stem}.part.zarr")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
    with atomic_folder(path, building=unfinished) as part:
        ngio.create_empty_plate(str(part), name=path.stem, images=images, ngff_version=_version(config))
        for _ in pool.map(_write_well, [config] * len(wells), wells, [str(part)] * len(wells)):
            advance(1)
        zarr.open_group(str(part), mode="r+").attrs[_ATTRIBUTE] = _written_config(config)


def _write_well(config: SimulatedScreen, well: SimulatedWell, plate_path: str) -> None:
    """Draw a well and write its images; a function of its arguments alone, so that any executor can run it."""
    size = config.site_size_px
    for site in range(1, config.sites_per_well + 1):
        pixels = simulated_site(config, well, site)
        container = ngio.create_empty_ome_zarr(
            str(Path(plate_path) / well.row["well"][0] / well.row["well"][1:] / str(site)),
            shape=pixels.shape,
            pixelsize=config.pixel_size_um,
            axes_names=("c", "y", "x"),
            levels=1,
            channels_meta=list(CHANNELS),
            ngff_version=_version(config),
            chunks=(1, size, size),
            dtype="uint16",
            overwrite=True,
        )
        container.get_image().set_array(pixels)


def _version(config: SimulatedScreen) -> Any:
    return config.ome_zarr_version
