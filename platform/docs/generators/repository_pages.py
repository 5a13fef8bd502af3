"""Pages that are files of the repository: changelog, benchmarks, contributing, and the index of decisions."""

from __future__ import annotations

import re
from pathlib import Path

from generators.markdown import cell, table

ROOT = Path(__file__).resolve().parents[3]
DECISIONS = ROOT / "platform" / "decisions"

FILES = {"changelog.md": "CHANGELOG.md", "benchmarks.md": "BENCHMARKS.md", "contributing.md": "CONTRIBUTING.md"}


def pages() -> dict[str, str]:
    """Address -> Markdown."""
    made = {address: _linked((ROOT / name).read_text(encoding="utf-8")) for address, name in FILES.items()}
    rows = []
    for path in sorted(DECISIONS.glob("[0-9]*.md")):
        text = path.read_text(encoding="utf-8")
        number, _, title = text.splitlines()[0].removeprefix("# ").partition(" ")
        dated = re.search(r"^Date: (\S+?)\. Status: (.+?)\.(?: (.+))?$", text, re.MULTILINE)
        date, status = (dated[1], dated[2]) if dated else ("", "")
        rows.append([number, f"[{cell(title)}](decisions/{path.name})", date, status])
        made[f"decisions/{path.name}"] = text
    made["decisions.md"] = "\n".join(
        [
            "# Decisions\n",
            "Choices that cost more than a day to undo, with their reasons and figures. A decision is never rewritten; "
            "a later one supersedes it. The files are in `platform/decisions/`.\n",
            table(["number", "decision", "date", "status"], rows),
        ]
    )
    return made


def _linked(text: str) -> str:
    """Links of a file in the repository's root, as links within the site."""
    links = {"CHANGELOG.md": "changelog.md", "BENCHMARKS.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md"}
    for name, address in links.items():
        text = text.replace(f"]({name}", f"]({address}")
    return text.replace("](platform/docs/pages/", "](").replace("](platform/decisions/", "](decisions/")
