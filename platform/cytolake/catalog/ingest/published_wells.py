"""Imports wells from a published table: rows of `wells` and `plates` of a screen without images.

Embeddings that others publish come with a table that says what was done to each well, and benchmarks of profiles need
no more. The wells of a plate come in together, and all plates of a table in one transaction for each catalog table,
`plates` last: 1,744 plates of 128 wells take a minute, and a run that is killed leaves nothing to be seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cytolake.catalog import ids
from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ingest.plate_content import content_number
from cytolake.catalog.ingest.screen_problems import quarantine_rows
from cytolake.catalog.ingest.wells import well_rows
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import INGESTED_TABLES
from cytolake.screens.plate import WELLS_ONLY, Plate, Problem
from cytolake.screens.plate_annotation import default_batch
from cytolake.screens.positions import well_name
from cytolake.screens.well_labels import TEXT_LABELS

FACTS = ("batch", "perturbation", *TEXT_LABELS, "dose", "control")
"""Columns of `wells` in which a well of the table must agree with one that is there."""


@dataclass(frozen=True, slots=True)
class _PlateOfWells:
    plate: Plate
    rows: list[dict[str, Any]]
    """Of `wells`."""
    problems: list[Problem]
    """Cells that could not be parsed: their wells lack that label."""
    content_hash: str


def import_wells(catalog: Catalog, table: pa.Table, source: str = "a table of wells") -> int:
    """Write the wells of a published table, those of plates that are not there yet.

    A well that is there, from its images or from another table, stays as it is. The images of a plate that came in so
    cannot be ingested under its name any more.

    Args:
        catalog: Where the rows go.
        table: One row for each well: `screen`, `plate` and `well`, perhaps `batch` (else the plate is one), and
            `perturbation`, `gene`, `pathway`, `guide`, `compound`, `dose`, `replicate` and `control` as in a plate map.
            Other columns are kept as annotations. A cell that is not understood costs its well that label, and is a
            row of `quarantine`.
        source: The table's file, for errors and `plates.source`.

    Returns:
        Wells that came in; 0 where all were there.

    Raises:
        ValueError: A row that names no well, a well that comes twice, a plate of two batches; a well that is there with
            other facts, or a plate that is there without the well.
        CatalogError: Another process writes one of the plates now, or the rows cannot be written.
    """
    plates = _read_plates(table, source)
    shown = _shown(catalog)
    _check_facts(catalog, {identity: each for identity, each in plates.items() if identity in shown}, source)
    fresh = {identity: each for identity, each in plates.items() if identity not in shown}
    if fresh:
        _commit(catalog, fresh, source)
    return sum(len(each.rows) for each in fresh.values())


def _read_plates(table: pa.Table, source: str) -> dict[str, _PlateOfWells]:
    """The plates of the table by id, checked."""
    columns = {
        name.strip().lower(): ["" if value is None else str(value) for value in table.column(i).to_pylist()]
        for i, name in enumerate(table.column_names)
    }
    if not {"screen", "plate", "well"} <= columns.keys() or len(columns) < table.num_columns:
        raise ValueError(
            f"{source}: found the columns {', '.join(table.column_names) or 'none'}, expected each once, and screen, "
            "plate and well among them. Rename them."
        )
    wells: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for number, values in enumerate(zip(*columns.values(), strict=True)):
        cells = dict(zip(columns, values, strict=True))
        screen, plate, well = cells["screen"], cells["plate"], well_name(cells["well"])
        if not (screen and plate and well):
            raise ValueError(
                f"{source}, row {number}: found screen {screen!r}, plate {plate!r} and well {cells['well']!r}, "
                "expected two names and a position such as B03. Correct the row."
            )
        of_plate = wells.setdefault((screen, plate), {})
        if well in of_plate:
            raise ValueError(
                f"{source}, row {number}: well {well} of plate {plate} comes a second time, expected once. Leave one "
                "of the rows out."
            )
        of_plate[well] = cells | {"well": well}
    if not wells:
        raise ValueError(f"{source}: found no rows, expected one for each well. Give another table.")
    return {
        ids.plate_id(screen, plate): _plate(screen, plate, list(of_plate.values()), source)
        for (screen, plate), of_plate in wells.items()
    }


def _plate(screen: str, name: str, wells: Sequence[dict[str, str]], source: str) -> _PlateOfWells:
    batches = {cells.get("batch", "") for cells in wells}
    if len(batches) > 1:
        raise ValueError(
            f"{source}: plate {name} has wells of the batches {', '.join(sorted(map(repr, batches)))}, expected one. "
            "Correct the column batch."
        )
    plate = Plate(
        screen=screen,
        plate=name,
        batch=batches.pop() or default_batch(screen, name),
        source=source,
        reader=WELLS_ONLY,
        channels=(),
        sites=(),
        wells=tuple(wells),
    )
    rows, problems = well_rows(plate, frozenset())
    return _PlateOfWells(plate, rows, problems, ids.content_id("published wells", json.dumps(rows, sort_keys=True)))


def _commit(catalog: Catalog, plates: Mapping[str, _PlateOfWells], source: str) -> None:
    """Append all rows of plates that are not visible yet, `plates` last.

    Another process may write the same plates at once: their rows are there once.
    """
    contents = {identity: content_number(each.content_hash, 0) for identity, each in plates.items()}
    wells = table_contract("wells").rows(row for each in plates.values() for row in each.rows)
    now = datetime.now(UTC)
    problems = [quarantine_rows(identity, each.problems, now) for identity, each in plates.items() if each.problems]
    try:
        catalog.claim_plates(contents)
        if problems:
            catalog.write_plates("quarantine", pa.concat_tables(problems), contents)
        for name in INGESTED_TABLES:  # those without rows too: a killed ingest may have left some
            catalog.write_plates(name, wells if name == "wells" else table_contract(name).empty(), contents)
        if all(catalog.have_contents(name, contents) for name in INGESTED_TABLES):
            catalog.show_plates(table_contract("plates").rows(map(_plates_row, plates.values())), contents)
    except CatalogError:
        if not contents.keys() & _shown(catalog):  # else another process showed some of them meanwhile
            raise
    if not contents.keys() <= _shown(catalog):
        raise CatalogError(
            f"{source}: another process writes wells or images of the same plates now. Let it end, then import again."
        )
    _check_facts(catalog, plates, source)


def _plates_row(each: _PlateOfWells) -> dict[str, Any]:
    return {
        "plate_id": ids.plate_id(each.plate.screen, each.plate.plate),
        "screen": each.plate.screen,
        "plate": each.plate.plate,
        "batch": each.plate.batch,
        "source": each.plate.source,
        "reader": each.plate.reader,
        "content_hash": each.content_hash,
        "channels": [],
        "pixel_size_um": None,
        "n_wells": len(each.rows),
        "n_sites": 0,
        "n_crops": 0,
        "n_quarantined": len(each.problems),
        "ingested_at": datetime.now(UTC),
    }


def _check_facts(catalog: Catalog, plates: Mapping[str, _PlateOfWells], source: str) -> None:
    """That the catalog has every well of these plates, with the same facts.

    Raises:
        ValueError: It has not; with the first such well.
    """
    if not plates:
        return
    table = catalog.table("wells", columns=["well_id", "plate_id", *FACTS])
    is_wanted = pc.is_in(table["plate_id"], value_set=pa.array(plates, pa.string()))
    there = {row["well_id"]: row for row in table.filter(is_wanted).to_pylist()}
    for each in plates.values():
        for row in each.rows:
            place = f"well {row['well']} of plate {row['plate']}, screen {row['screen']}"
            found = there.get(row["well_id"])
            if found is None:
                raise ValueError(
                    f"{source}: {place}: found no such well in the catalog, which has the plate; expected the plate "
                    "with all of its wells. Give the screen another name (--screen), or use another catalog root."
                )
            if found["batch"] == each.plate.plate and row["batch"] == default_batch(row["screen"], row["plate"]):
                found = {**found, "batch": row["batch"]}  # as a batch without a name was called before
            for name in FACTS:
                if _comparable(found[name]) != _comparable(row[name]):
                    raise ValueError(
                        f"{source}: {place}: found {name} {found[name]!r} in the catalog, expected {row[name]!r} as in "
                        "the table. A well that is there keeps its facts: correct the table, or give the screen "
                        "another name (--screen)."
                    )


def _comparable(fact: str | float | None) -> str | float | None:
    """None where the plate map says nothing."""
    return None if fact == "" else fact


def _shown(catalog: Catalog) -> set[str]:
    return set(catalog.table("plates", columns=["plate_id"])["plate_id"].to_pylist())
