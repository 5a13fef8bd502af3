"""Commits one plate whose wells are all staged: its rows first, its row of `plates` last."""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cytolake.catalog.declared import table_contract
from cytolake.catalog.errors import CatalogError, ClaimedError
from cytolake.catalog.ids import PlateIds
from cytolake.catalog.ingest.differences import copied_plate, written_elsewhere
from cytolake.catalog.ingest.labels import labels_hash
from cytolake.catalog.ingest.plate_content import PlateContent, content_number
from cytolake.catalog.ingest.screen_problems import quarantine_rows
from cytolake.catalog.ingest.staging import Staging
from cytolake.catalog.ingest.wells import well_rows
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import VISIBLE
from cytolake.screens.plate import Plate, Problem, SiteImage

STAGED_TABLES = ("sites", "crops", "qc_metrics")
STAGING = "staging"
"""Folder next to the catalog's tables that holds the wells of plates in work."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A plate to read, and what to do with its rows."""

    plate: Plate
    content: PlateContent
    of: PlateIds
    key: str
    """Identifies the staged rows by their content."""
    known: Mapping[str, Any] | None = None
    """Its row of `plates`, where it is read again for comparison only."""
    replaces: Mapping[str, Any] | None = None
    """The row of `plates` of the acquisition that it replaces."""
    acquisition: int = 1
    labels: Mapping[str, Mapping[str, Any]] | None = None
    """Rows of `wells`, by well, whose labels stay in place of the source's; None: take those of the source."""


def ids_of(row: Mapping[str, Any]) -> PlateIds:
    """Ids of an acquisition that is in the catalog."""
    return PlateIds(*json.loads(row["id_names"])) if row["id_names"] else PlateIds(row["screen"], row["plate"])


def free_ids(screen: str, plate: str, taken: Collection[str]) -> PlateIds:
    """Ids of a new plate, from its names, unless a plate that was renamed since has these ids."""
    number, of = 1, PlateIds(screen, plate)
    while of.plate_id in taken:
        number += 1
        of = PlateIds(screen, f"{plate}#{number}")
    return of


def sites_of_wells(plate: Plate) -> dict[str, list[SiteImage]]:
    """Sites of each well, in the order of the listing."""
    wells: dict[str, list[SiteImage]] = defaultdict(list)
    for site in plate.sites:
        wells[site.well].append(site)
    return wells


def commit_incoming(catalog: Catalog, incoming: Incoming, staging: Staging, crop_size: int) -> dict[str, Any] | Problem:
    """Commit one plate whose wells are all staged, `plates` last. A repetition, or a second process, changes nothing.

    Returns:
        The row of `plates`, or why the plate was refused: another process ingested other content under its name.

    Raises:
        CatalogError: Staged rows are damaged or missing, or the commit failed; nothing of the plate shows then.
    """
    identity = incoming.of.plate_id
    try:
        _commit_tables(catalog, incoming, staging, crop_size)
    except Exception as error:
        # two drivers on one plate: the other one may have committed it all and removed what was staged
        if _row_of_plate(catalog, identity) is None and not isinstance(error, ClaimedError):
            raise
    there = _row_of_plate(catalog, identity)
    if there is None:
        return written_elsewhere(incoming.plate)
    staging.remove()
    return there if there["content_hash"] == incoming.content.content_hash else written_elsewhere(incoming.plate)


def _row_of_plate(catalog: Catalog, identity: str) -> dict[str, Any] | None:
    rows = catalog.visibility().plates.to_pylist()
    return next((row for row in rows if row["plate_id"] == identity), None)


def _commit_tables(catalog: Catalog, incoming: Incoming, staging: Staging, crop_size: int) -> None:
    """One transaction for each table; `plates` only where this content is what all of them hold."""
    plate, identity = incoming.plate, incoming.of.plate_id
    number = content_number(incoming.key, crop_size)
    order = list(sites_of_wells(plate))
    now = datetime.datetime.now(datetime.UTC)
    problems: list[Problem] = []
    with_images: set[str] = set()
    checksums: set[str] = set()
    n_rows = dict.fromkeys(STAGED_TABLES, 0)
    for parts in staging.read_together(order, (*STAGED_TABLES, "problems")):
        problems += [Problem(**row) for row in parts["problems"].to_pylist()]
        with_images.update(parts["sites"].column("well").to_pylist())
        checksums.update(parts["sites"].column("checksum").to_pylist())
        for name in STAGED_TABLES:
            n_rows[name] += parts[name].num_rows
    wells, map_problems = well_rows(plate, frozenset(with_images))
    if incoming.labels is not None:
        wells = _with_labels(wells, incoming.labels)
    for row in wells:
        row |= {"well_id": incoming.of.well_id(row["well"]), "plate_id": identity}
    copied = copied_plate(catalog, plate, incoming.content, identity, checksums) if incoming.replaces is None else None
    remarks = [] if copied is None else [copied]
    quarantine = quarantine_rows(identity, [*plate.problems, *map_problems, *problems, *remarks], now)
    catalog.claim_plate(identity, number)
    for name in STAGED_TABLES:
        catalog.write_plate(name, partial(staging.read, order, name), plate_id=identity, content=number)
    small = {"wells": table_contract("wells").rows(wells), "quarantine": quarantine}
    for name, table in small.items():
        catalog.write_plate(name, table, plate_id=identity, content=number)
    if any(catalog.plate_content(name, identity) != number for name in (*n_rows, *small)):
        return
    names = (incoming.of.screen, incoming.of.plate, incoming.of.acquisition)
    row = {
        "plate_id": identity,
        "screen": plate.screen,
        "plate": plate.plate,
        "batch": plate.batch,
        "source": plate.source,
        "reader": plate.reader,
        "content_hash": incoming.content.content_hash,
        "channels": list(plate.channels),
        "pixel_size_um": plate.pixel_size_um,
        "n_wells": len(wells),
        "n_sites": n_rows["sites"],
        "n_crops": n_rows["crops"],
        "n_quarantined": quarantine.num_rows,
        "ingested_at": now,
        "state": VISIBLE,
        "acquisition": incoming.acquisition,
        "id_names": None if names == (plate.screen, plate.plate, "") else json.dumps(names),
        "pixels_hash": incoming.content.pixels_hash,
        "files_hash": incoming.content.files_hash,
        "labels_hash": labels_hash(wells, plate.batch),
        "labels_source": None,
        "labelled_at": now,
    }
    contract = table_contract("plates")
    old = incoming.replaces
    if old is None:
        catalog.show_plate(contract.rows([row]), plate_id=identity, content=number)
        return
    if incoming.labels is not None:
        row |= {name: old[name] for name in ("labels_source", "labelled_at")}
    hidden = dict(old) | {"state": "replaced", "why": f"by acquisition {incoming.acquisition}", "changed_at": now}
    row["changed_at"] = now
    if not n_rows["sites"]:
        raise CatalogError(
            f"plate {plate.screen}/{plate.plate}: found no readable site at {plate.source}, expected at least one. The "
            "acquisition that is there stays. Look at the files, then run the command again."
        )
    catalog.change_plates(contract.rows([old]), contract.rows([hidden, row]), shows={identity: number})


def _with_labels(wells: Sequence[dict[str, Any]], labels: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the labels of other rows of the same wells, where there are such."""
    own = ("well_id", "plate_id", "screen", "plate", "batch", "has_images", "edition")
    found = []
    for row in wells:
        other = labels.get(row["well"])
        kept = {name: row.get(name) for name in own}
        found.append(row if other is None else {**other, **kept})
    missing = [dict(other) for well, other in labels.items() if well not in {row["well"] for row in wells}]
    return found + [row | {"has_images": False, "edition": None} for row in missing]
