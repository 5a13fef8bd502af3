"""mkdocs hook: pages of the site that are made from the code when it is built, so that they cannot become false."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS))
sys.path.insert(0, str(DOCS.parent))  # the package, also where it is not installed

from generators import (  # noqa: E402
    commands,
    config_fields,
    dependencies,
    example_pages,
    http_interface,
    python_interface,
    repository_pages,
    rooms,
    served_metrics,
    table_contracts,
)

_sources: Path | None = None


def on_startup(command: str, dirty: bool) -> None:
    """Called by mkdocs before it reads anything: libraries that log while they are imported are quiet."""
    logging.getLogger("ray").setLevel(logging.ERROR)


@event_priority(100)  # before mkdocstrings reads where the sources are
def on_config(config: Any) -> Any:
    """Called by mkdocs when its config is read: give mkdocstrings a copy of the sources that it can read.

    Folders of the package without `__init__.py` are packages to Python, not to griffe; the copy has one in each.
    """
    global _sources
    _sources = Path(tempfile.mkdtemp(prefix="cytolake-docs-"))
    shutil.copytree(DOCS.parent / "cytolake", _sources / "cytolake", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (path for path in (_sources / "cytolake").rglob("*") if path.is_dir()):
        (folder / "__init__.py").touch()
    config.plugins["mkdocstrings"].config["handlers"]["python"]["paths"] = [str(_sources)]
    return config


def on_post_build(config: Any) -> None:
    """Called by mkdocs at the end of a build."""
    _remove_sources()


def on_build_error(error: Exception) -> None:
    """Called by mkdocs when a build fails."""
    _remove_sources()


def _remove_sources() -> None:
    if _sources is not None:
        shutil.rmtree(_sources, ignore_errors=True)


def on_files(files: Files, config: Any) -> Files:
    """Called by mkdocs when it has listed the pages of docs_dir: add the generated ones."""
    made = {
        "reference/commands.md": commands.page(),
        "reference/recipes.md": config_fields.recipes_page(),
        "reference/config.md": config_fields.fields_page(),
        "reference/tables.md": table_contracts.page(),
        "reference/http.md": http_interface.page(),
        "reference/dependencies.md": dependencies.page(),
        "reference/metrics.md": served_metrics.page(),
        "architecture.md": rooms.page(),
        **python_interface.pages(),
        **example_pages.pages(),
        **repository_pages.pages(),
    }
    for address, content in made.items():
        files.append(File.generated(config, address, content=content))
    for picture in sorted((DOCS.parents[1] / "infra" / "pictures").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", abs_src_path=str(picture)))
    return files
