"""Fenced blocks of Markdown, with the mark above each that says why it is not run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGES = CHECKOUT / "platform" / "docs" / "pages"

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>not run|not parsed): (?P<reason>.+?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Fence:
    """One block."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """`not run`, `not parsed` or empty."""

    @property
    def place(self) -> str:
        """page:line, for messages."""
        return f"{self.page}:{self.line}"


def fences(path: Path) -> list[Fence]:
    """The blocks of one page, in order."""
    text = path.read_text(encoding="utf-8")
    page = str(path.relative_to(CHECKOUT))
    return [
        Fence(page, text[: found.start()].count("\n") + 1, found["language"], found["text"], found["mark"] or "")
        for found in _FENCE.finditer(text)
    ]


def command_lines(text: str) -> list[list[str]]:
    """Words of each command of a block of bash: lines that go on are joined, comments and redirections left out."""
    found: list[list[str]] = []
    pending = ""
    for line in text.splitlines():
        pending = f"{pending}\n{line}" if pending else line
        if pending.endswith("\\"):
            pending = pending[:-1]
            continue
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quote that is closed on a later line
            continue
        pending = ""
        if words:
            end = next((i for i, word in enumerate(words) if word in (">", ">>", "|", "&")), len(words))
            found.append(words[:end])
    assert not pending, f"a quote is never closed: {pending}"
    return found
