"""Files of the explorer page, and the headers that they are sent with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from fastapi import Response

from cytolake.serving.problems import ServingError

PAGE_FILE = re.compile(r"(?:vendor/)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.(html|css|js|svg|txt)")
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml", "txt": "text/plain; charset=utf-8",
}  # fmt: skip
PAGE_HEADERS = {
    # unsafe-eval: the scatter plot's regl compiles drawing functions with `Function`; only the page's own scripts run.
    # blob: pictures that were fetched with the key, and the worker of the plot's spatial index.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-eval'; worker-src 'self' blob:; "
    "img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_folder(environment: Mapping[str, str]) -> Path:
    """Folder of the page: `CYTOLAKE_PAGE`, or serve/page of a checkout, or its copy in an installed wheel."""
    named = environment.get("CYTOLAKE_PAGE", "")
    if named:
        return Path(named).expanduser().resolve()
    in_wheel = Path(__file__).resolve().parent / "_page"
    return in_wheel if in_wheel.is_dir() else Path(__file__).resolve().parents[3] / "serve" / "page"


def page_file(page: Path, name: str) -> Response:
    """One file of the page.

    Raises:
        ServingError: 404, a file that is not part of the page.
    """
    match = PAGE_FILE.fullmatch(name)
    path = (page / name).resolve() if match else page
    if not match or not path.is_relative_to(page.resolve()) or not path.is_file():
        hint = "" if page.is_dir() else f" There is no folder {page.name} with the page; set CYTOLAKE_PAGE to it."
        raise ServingError(status=404, detail=f"the page has no file {name[:80]!r}; it starts at /explore/.{hint}")
    return Response(path.read_bytes(), media_type=MEDIA_TYPES[match[1]], headers=PAGE_HEADERS)
