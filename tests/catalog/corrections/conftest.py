from __future__ import annotations

from pathlib import Path

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit, write_plate

from cytolake.catalog import Catalog, ids
from cytolake.catalog.ingest import plates as ingesting


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """One plate, S/P1, of the source folder in `tmp_path`."""
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, write_plate(tmp_path / "source"))
    return catalog


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    """Wells are staged in this process."""

    def read_wells(tasks, config):
        for task in tasks:
            sites = [ingesting._site_from_json(site) for site in task["sites"]]
            of = ids.PlateIds(*task["of"])
            ingesting.stage_well(ingesting.Staging(task["staging"]), sites, task["batch"], config.crop_size, of)
            yield {"plate": task["plate"], "well": task["well"], "n_sites": len(sites), "error": ""}

    monkeypatch.setattr(ingesting, "_read_wells", read_wells)
