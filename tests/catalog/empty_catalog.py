"""New catalogs for tests: copies of one empty catalog, since creating 18 Delta tables takes 20 times as long."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import cytolake.catalog
from cytolake.catalog import Catalog


def empty_catalog(root: str | Path) -> Catalog:
    """A catalog without rows in a folder. Its tables have the ids of those of every other such catalog."""
    shutil.copytree(_template() / "tables", Path(root) / "tables")
    return cytolake.catalog.open(root)


@lru_cache(maxsize=1)
def _template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="cytolake-empty-catalog-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    cytolake.catalog.open(folder, create=True)
    return folder
