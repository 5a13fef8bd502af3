"""The page of dependencies, from the extras of pyproject.toml and the comment next to each package."""

from __future__ import annotations

import re
from pathlib import Path

from generators.markdown import cell, code, table

ROOT = Path(__file__).resolve().parents[3]

EXTRAS = {
    "client": "call a running service",
    "ingest": "read plates, keep a catalog, judge, curate, import and export",
    "train": "train, embed, probe, promote",
    "serve": "serve a representation",
    "all": "everything above; what `make install` takes",
    "dev": "tests, lint and types",
}
"""What the groups of packages are for; the other extras say it in their own line."""


def page() -> str:
    """Markdown of the page."""
    pinned = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    versions = {_normal(name): version for name, version in pinned.items()}
    parts = [
        "# Dependencies\n",
        "cytolake installs nothing by default: choose an extra, such as `pip install '.[client]'` in a checkout. An "
        "extra includes the packages of the extras that it names. `constraints.txt` pins the versions that the tests "
        "ran with.\n",
    ]
    for extra, lines in _extras().items():
        parts.append(f"## `{extra}` {{ #{extra} }}\n")
        if extra in EXTRAS:
            parts.append(f"For: {EXTRAS[extra]}.\n")
        rows = [[code(package), cell(about), code(versions.get(_name(package), ""))] for package, about in lines]
        parts.append(table(["package", "purpose", "tested version"], rows))
    return "\n".join(parts)


def _extras() -> dict[str, list[tuple[str, str]]]:
    """Extra -> (requirement, comment on its line) of each package. Read as text: TOML readers drop comments."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]\n", 1)[1].split("\n[", 1)[0]
    found: dict[str, list[tuple[str, str]]] = {}
    extra = ""
    for line in section.splitlines():
        if named := re.match(r"([\w-]+) = \[", line):
            extra = named[1]
            found[extra] = []
        if line.lstrip().startswith("#"):
            continue
        _, _, about = line.partition(" # ")
        found[extra] += [(package, about) for package in re.findall(r'"([^"]+)"', line.partition(" # ")[0])]
    return found


def _name(requirement: str) -> str:
    return _normal(re.split(r"[\[<>=~ ;]", requirement)[0])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
