from __future__ import annotations

from pathlib import Path

import pytest
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.small_plate import commit, write_plate

from cytolake.catalog import Catalog


@pytest.fixture(autouse=True)
def without_ray(ray_in_process: None) -> None:
    """Wells are staged in this process."""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """One plate, S/P1, of the source folder in `tmp_path`."""
    catalog = empty_catalog(tmp_path / "catalog")
    commit(catalog, write_plate(tmp_path / "source"))
    return catalog
