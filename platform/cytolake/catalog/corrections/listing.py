"""Lists every acquisition of every plate of a catalog."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from cytolake.catalog.corrections.plate_rows import acquisition_of
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import state_of


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedPlate:
    """One acquisition of a plate."""

    plate_id: str
    screen: str
    plate: str
    state: str
    """visible, retracted, replaced, purging or purged."""
    why: str
    acquisition: int
    n_wells: int
    n_sites: int
    n_crops: int
    source: str
    labels_source: str
    """A plate map that was given to `annotate`, or the plate's source."""
    labelled_at: datetime.datetime | None
    ingested_at: datetime.datetime | None


def list_catalog_plates(catalog: Catalog) -> list[ListedPlate]:
    """All acquisitions, hidden ones too, by screen, plate and acquisition."""
    found = [
        ListedPlate(
            plate_id=row["plate_id"],
            screen=row["screen"],
            plate=row["plate"],
            state=state_of(row),
            why=row["why"] or "",
            acquisition=acquisition_of(row),
            n_wells=row["n_wells"] or 0,
            n_sites=row["n_sites"] or 0,
            n_crops=row["n_crops"] or 0,
            source=row["source"] or "",
            labels_source=row["labels_source"] or row["source"] or "",
            labelled_at=row["labelled_at"] or row["ingested_at"],
            ingested_at=row["ingested_at"],
        )
        for row in catalog.visibility().plates.to_pylist()
    ]
    return sorted(found, key=lambda each: (each.screen, each.plate, each.acquisition))
