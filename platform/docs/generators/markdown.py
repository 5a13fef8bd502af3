"""Pieces of Markdown: tables, code that holds any character, links to a heading."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def code(text: object) -> str:
    """Inline code, in which a bar does not end a cell of a table. Empty text stays empty."""
    shown = str(text).replace("\n", " ")
    fence = "``" if "`" in shown else "`"
    return f"{fence}{shown}{fence}" if shown else ""


def cell(text: object) -> str:
    """Prose for a cell of a table: one line, bars escaped, nothing read as an HTML tag."""
    shown = re.sub(r"\s+", " ", str(text)).strip()
    parts = re.split(r"(`[^`]*`)", shown)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def anchor(text: str) -> str:
    """The id that a heading gets by `{ #... }`."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def first_line(docstring: str | None) -> str:
    """The first sentence or line of a docstring."""
    return (docstring or "").strip().split("\n")[0].strip()
