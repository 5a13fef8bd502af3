"""Writing of a page: one self-contained HTML file, replaced at once when it is whole."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

import cytolake
from cytolake.storage.atomic_write import write_text

REPORT_FOLDER = "report"
"""Folder of all pages, below the root of a catalog."""
REPORT_FILE = f"{REPORT_FOLDER}/index.html"


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Render a template of this folder into a file and return its path.

    Args:
        path: Where the page goes; a page that is there is replaced at once.
        template: File in this folder. It is given `version` and `written` (UTC) too, and fails on a value it lacks.
        values: What else it is given.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = environment.get_template(template).render(version=cytolake.__version__, written=written, **values)
    write_text(path, page)
    return path
