"""Reads wells and embeddings of published screens; their images are not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa

from cytolake.exchange.vector_tables import ExternalTable
from cytolake.screens.plate import ScreenError
from cytolake.screens.plate_map import read_plate_map
from cytolake.screens.rxrx import read_rxrx1, read_rxrx1_wells, read_rxrx3_core, read_rxrx3_core_wells
from cytolake.storage.source_folder import SourceFolder

Release = Literal["rxrx3-core", "rxrx1"]

_READERS = {"rxrx3-core": (read_rxrx3_core_wells, read_rxrx3_core), "rxrx1": (read_rxrx1_wells, read_rxrx1)}


def read_release(
    release: Release, metadata: str | Path, embeddings: str | Path, *, screen: str = "", allow_missing: bool = False
) -> tuple[pa.Table, ExternalTable]:
    """Wells of a public screen, and embeddings of them.

    Args:
        release: Which screen.
        metadata: Its table of wells (RxRx3-core) or sites (RxRx1), as published.
        embeddings: Parquet with an id of the well or site and the vector; see `screens/rxrx.py`.
        screen: Name in the catalog; the release's where empty.
        allow_missing: Leave out vectors without a well, and take wells without a vector; else they are an error.

    Returns:
        All wells of the metadata, as `import_wells` takes them, and the vectors of those that have one, as
        `import_embeddings` does.

    Raises:
        ValueError: A file that is not in the published layout, or wells and vectors that do not belong together.
    """
    read_wells, read_both = _READERS[release]
    wells = read_wells(metadata)
    vectors, found = read_both(metadata, embeddings, allow_missing=allow_missing)
    name = screen or release
    labels = {column: tuple(found[column].to_pylist()) for column in ("plate", "well")}
    table = ExternalTable(str(embeddings), vectors, {"screen": (name,) * len(vectors), **labels})
    return wells.append_column("screen", pa.repeat(name, wells.num_rows)), table


def read_wells_of_plate_map(path: Path, screen: str) -> pa.Table:
    """Wells of a plate map, as `import_wells` takes them.

    Args:
        path: As an ingest reads it, with a column for the plate.
        screen: Of all wells.

    Raises:
        ScreenError: A file that cannot be read, or rows that name no well; with what to do.
        ValueError: No screen, or a map without plates.
    """
    found = read_plate_map(SourceFolder(path.parent), path.name, screen)
    if found.problems:
        raise ScreenError(*found.problems)
    if not screen or not found.has_plates:
        raise ValueError(
            f"{path}: found screen {screen!r} and {'a' if found.has_plates else 'no'} column of plates, expected both: "
            "there are no images that show where the wells are. Give --screen, and a column plate."
        )
    names: dict[str, list[str]] = {}  # a list of maps and its maps may both have a column, in other letters
    for name in dict.fromkeys(name for row in found.rows for name in row.cells):
        names.setdefault(name.lower(), []).append(name)
    names.pop("screen", None)
    columns = {
        same[0]: pa.array([next(filter(None, map(row.cells.get, same)), "") for row in found.rows], pa.string())
        for same in names.values()
    }
    plates = pa.array([row.plate for row in found.rows], pa.string())
    return pa.table({"screen": pa.repeat(screen, len(found.rows)), "plate": plates, **columns})
