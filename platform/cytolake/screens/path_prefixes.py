"""Absolute paths in a screen's tables, which are of the machine that wrote them, and what they stand for here."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

ARROW = " -> "


def below_screen(path: str, root: str, prefixes: Sequence[str]) -> str:
    """A path as the screen's folder knows it: relative where it starts with a prefix or the folder's own path.

    Any other path comes back as it is, and `SourceFolder.find` refuses it where it is absolute.

    Args:
        path: As a table has it: relative, absolute (also of Windows), `file:` or another URL.
        root: The screen's folder, absolute.
        prefixes: `OLD` stands for the screen's folder; `OLD -> NEW` for the folder NEW below it.
    """
    text = path.strip().replace("\\", "/")
    if text.lower().startswith("file:"):
        text = "/" + unquote(text[len("file:") :]).lstrip("/")
    for prefix in (*prefixes, root):
        old, _, new = prefix.partition(ARROW)
        old = old.strip().replace("\\", "/").rstrip("/")
        if old and (text == old or text.startswith(old + "/")):
            return "/".join(part for part in (new.strip().strip("/"), text[len(old) :].strip("/")) if part)
    return text
