"""One planted catalog for all tests of curations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.curation.planted_catalog import planted_catalog

import cytolake.catalog
from cytolake.catalog import Catalog


@pytest.fixture(scope="session")
def screen(tmp_path_factory) -> Catalog:
    """The planted catalog; read only, but for curations of names of their own."""
    return planted_catalog(tmp_path_factory.mktemp("planted") / "catalog")


@pytest.fixture
def own(screen: Catalog, tmp_path: Path) -> Catalog:
    """A copy of the planted catalog to add rows to."""
    shutil.copytree(screen.root, tmp_path / "own")
    return cytolake.catalog.open(tmp_path / "own")
