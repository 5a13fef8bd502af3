"""A small simulated screen in a catalog, a quarter of its sites spoilt: three plates of twelve sites."""

from __future__ import annotations

from pathlib import Path

from tests.catalog.small_plate import commit_plate

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.catalog.ingest.plate_content import content_hash
from cytolake.catalog.ingest.plates import IngestConfig, stage_well, staging_of
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource, list_plates

SCREEN = SimulatedScreen(
    n_plates=3, n_batches=1, n_pathways=1, genes_per_pathway=2, n_compounds=0, n_positive_controls=0,
    sites_per_well=1, site_size_px=64, artefact_share=0.25, seed=11,
)  # fmt: skip


def ingest_screen(root: Path) -> Catalog:
    """Simulate the screen below a folder and take it into `<folder>/catalog`."""
    simulate_screen(SCREEN, root / "screens")
    catalog, config = cytolake.catalog.open(root / "catalog", create=True), IngestConfig(crop_size=32)
    for plate in list_plates(ScreenSource(screen="simulated", path=str(root / "screens" / "simulated"))):
        staging = staging_of(catalog, plate, content_hash(plate), config)
        for site in plate.sites:  # one of each well
            stage_well(staging, [site], plate.batch, config.crop_size)
        commit_plate(catalog, plate, content_hash(plate), config)
    return catalog
