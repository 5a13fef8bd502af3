"""A small plate with verdicts."""

from __future__ import annotations

from pathlib import Path

from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit, write_plate

from cytolake.catalog import Catalog
from cytolake.qc.verdicts import QcConfig, judge_sites
from cytolake.screens.plate import Plate


def judged_plate(folder: Path) -> tuple[Catalog, Plate]:
    """Six sites, ingested and judged: too few for limits relative to their plate."""
    plate = write_plate(folder / "source")
    catalog = empty_catalog(folder / "catalog")
    commit(catalog, plate)
    judge_sites(catalog, QcConfig())
    return catalog, plate
