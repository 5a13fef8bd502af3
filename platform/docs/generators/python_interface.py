"""Pages of the Python API: what each room exports, rendered by mkdocstrings from the docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

from generators.markdown import cell, code, first_line, table

PACKAGE = Path(__file__).resolve().parents[2] / "cytolake"

ROOMS = {
    "catalog": "Open a catalog, query it, read embeddings and pixels, correct plates.",
    "client": "Call a running service from Python. Needs numpy and httpx alone.",
    "recipes": "Complete, typed configs by name.",
    "packs": "Read a pack of crops, and the order in which training reads it.",
    "models": "Encoders, objectives and augmentations. Needs torch, timm, numpy and safetensors.",
    "benchmark": "Linear probes, relations, retrieval, profiles, transcriptomics.",
    "statistics": "Intervals, permutation tests, false discovery rate. Needs numpy and SciPy.",
    "exchange": "Import and export of other tools' tables.",
    "serving": "The service as an ASGI application and as a Ray Serve deployment.",
}
"""Rooms that are meant to be called from Python by people, in the order of the navigation."""

WHOLE = {"benchmark", "statistics", "exchange"}
"""Rooms without one list of exports: the public functions and classes of all their modules are shown."""


def pages() -> dict[str, str]:
    """Address -> Markdown."""
    made = {f"reference/python/{room}.md": _room_page(room, about) for room, about in ROOMS.items()}
    rows = ([f"[`cytolake.{room}`]({room}.md)", cell(about)] for room, about in ROOMS.items())
    made["reference/python/index.md"] = "\n".join(
        [
            "# Python API\n",
            "What is meant to be imported. Rooms that are not listed here are called by the commands and jobs; their "
            "modules are documented in the code and may change without notice.\n",
            table(["package", "for"], rows),
        ]
    )
    return made


def _room_page(room: str, about: str) -> str:
    folder = PACKAGE / room
    parts = [f"# `cytolake.{room}`\n", f"{about}\n"]
    modules = [_module(path) for path in sorted(folder.rglob("*.py")) if not path.name.startswith("_")]
    exporting = [path.parent for path in sorted(folder.rglob("__init__.py")) if _exports(path)]
    for each in exporting:
        parts += [f"::: {_module(each)}", "    options:", "      show_submodules: false", "      members:"]
        names = _exports(each / "__init__.py")
        # A function that has the name of its module is hidden by it.
        hidden = [name for name in names if (each / f"{name}.py").is_file()]
        parts += [f"        - {name}" for name in names if name not in hidden]
        parts.append("")
        parts += [f"::: {_module(each)}.{name}.{name}\n    options: {{heading_level: 3}}\n" for name in hidden]
    if room in WHOLE:
        inside = tuple(f"{_module(each)}." for each in exporting)
        for module in modules:
            if not module.startswith(inside) and _has_public(module):
                parts.append(f"::: {module}\n")
    elif not exporting:
        raise RuntimeError(f"cytolake.{room} has no __init__.py with __all__: add it to WHOLE or correct ROOMS.")
    parts += [
        "## Modules { #modules }\n",
        table(["module", "subject"], ([code(module), cell(_subject(module))] for module in modules)),
    ]
    return "\n".join(parts)


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def _tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE.parent / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8"))


def _subject(module: str) -> str:
    return first_line(ast.get_docstring(_tree(module)))


def _has_public(module: str) -> bool:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(each, kinds) and not each.name.startswith("_") for each in _tree(module).body)


def _exports(init: Path) -> list[str]:
    """Names of `__all__`."""
    for statement in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(statement.value)]
    return []
