from __future__ import annotations

import ast
import re

from fences import CHECKOUT

PACKAGE = CHECKOUT / "platform" / "cytolake"


def wrong_entries(text: str) -> list[str]:
    """Entries of a docstring's section Raises that are not `Type: what failed`, which the site cannot show."""
    found = re.search(r"^Raises:\n((?: +.*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^ {4}(?! )(.*)$", found[1], re.MULTILINE) if found else []
    return [entry for entry in entries if not re.match(r"[\w.]+(, [\w.]+)*: ", entry)]


def test_every_entry_of_a_raises_section_names_a_type():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
                wrong += [f"{path.name}: {entry}" for entry in wrong_entries(ast.get_docstring(node) or "")]
    assert wrong == []


def test_an_entry_without_a_type_is_noticed():
    assert wrong_entries("Do.\n\nRaises:\n    ValueError: no.\n        More.\n    What `read` raises.\n") == [
        "What `read` raises."
    ]
