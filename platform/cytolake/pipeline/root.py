"""Where a catalog is when no command and no recipe names a place."""

from __future__ import annotations

import os

DEFAULT_ROOT = "cytolake_data"
"""Folder of the catalog, below the working directory."""
RECIPE_FILE = "cytolake.yaml"
"""Taken where no recipe is named and the working directory has it; `cytolake init` writes it."""


def default_root() -> str:
    """The root that CYTOLAKE_ROOT names, else DEFAULT_ROOT."""
    return os.environ.get("CYTOLAKE_ROOT") or DEFAULT_ROOT
