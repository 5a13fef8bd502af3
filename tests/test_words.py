"""Plain words (HOUSE_STYLE, Prose): what people read is without the words that readers had to guess at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

READ = ("README.md", "CHANGELOG.md", "BENCHMARKS.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")
FOLDERS = ("platform/cytolake", "platform/docs", "jobs", "serve", "catalog", "infra")
SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".html", ".js", ".css", ".json", ".sh", ".txt", ".ipynb", ""}
BUILT = ("platform/docs/site/",)

DIALECT = re.compile(
    r"(?<![a-z])(told|tells?|asked|asks|spelled|whoever|foretells?|beside|by lot)(?![a-z])", re.IGNORECASE
)
"""Instead: report, return, say, predict (told, tells); request, query (asked); written (spelled); anyone who (whoever);
next to, compared with (beside); at random (by lot). A name in code counts as text."""

ALLOWED = (r"\.tell\(", r"def tell\(")  # of a file
"""Patterns that are taken out of a line first."""

ALLOWED_IN = {
    "platform/cytolake/serving/qc_verdict.py": "asked",  # a field of the HTTP API
    "serve/openapi.json": "[Aa]sked",
    "serve/page/api.js": "[Aa]sks",  # a person
}
"""By file, a pattern that is taken out of its lines first: such as a question that a person really asks."""


def texts() -> Iterator[Path]:
    yield from (ROOT / name for name in READ if (ROOT / name).is_file())
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in SUFFIXES and "__pycache__" not in path.parts:
                yield path


def dialect() -> Iterator[str]:
    """`file:line: word` of each."""
    for path in texts():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(BUILT):
            continue
        ignored = re.compile("|".join((*ALLOWED, *filter(None, [ALLOWED_IN.get(name)]))))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for found in DIALECT.findall(ignored.sub("", line)):
                yield f"{name}:{number}: {found}"


def test_texts_are_in_plain_words():
    assert list(dialect()) == []
