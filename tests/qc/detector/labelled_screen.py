"""A small simulated screen in a catalog, a quarter of its sites spoilt: three plates of twelve sites."""

from __future__ import annotations

from pathlib import Path

from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit

from cytolake.catalog import Catalog
from cytolake.catalog.ingest.plates import IngestConfig
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource, list_plates

SCREEN = SimulatedScreen(
    n_plates=3, n_batches=1, n_pathways=1, genes_per_pathway=2, n_compounds=0, n_positive_controls=0,
    sites_per_well=1, site_size_px=64, artefact_share=0.25, seed=11,
)  # fmt: skip


def ingest_screen(root: Path, screen: SimulatedScreen = SCREEN) -> Catalog:
    """Simulate the screen below a folder and take it into `<folder>/catalog`."""
    simulate_screen(screen, root / "screens")
    catalog, config = empty_catalog(root / "catalog"), IngestConfig(crop_size=32)
    for plate in list_plates(ScreenSource(screen="simulated", path=str(root / "screens" / "simulated"))):
        commit(catalog, plate, config)
    return catalog
