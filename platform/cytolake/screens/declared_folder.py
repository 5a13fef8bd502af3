"""Where the declared files of the folder catalog/ lie: at the top of a checkout, inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def declared_folder() -> Path:
    """The folder catalog/ of the checkout, or its copy in an installed wheel."""
    inside_wheel = _PACKAGE / "catalog" / "_declared"
    return inside_wheel if inside_wheel.is_dir() else _PACKAGE.parents[1] / "catalog"
