"""pyproject.toml against what the package imports: nothing undeclared, nothing declared in vain, all pinned."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OPTIONAL = ("transcriptomics", "scvi", "text")
"""Extras beyond `all` whose packages the product imports."""


def names_of(*extras: str) -> set[str]:
    """Names of the packages of some extras, normalised; those that one extra takes from another included."""
    found: set[str] = set()
    for extra in extras:
        for line in EXTRAS[extra]:
            name = re.split(r"[\[<>=~ ]", line)[0].lower().replace("_", "-")
            if name == "cytolake":
                found |= names_of(*re.findall(r"\[(.*)\]", line)[0].split(","))
            else:
                found.add(name)
    return found


@cache
def modules_of(path: Path) -> set[str]:
    """Top-level modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


installed_packages = cache(packages_distributions)
"""Packages that bring a module: reads the list of files of each, for seconds."""


def imported(*folders: str) -> set[str]:
    """Packages of other people that the files import, by the name under which they are installed."""
    modules = {module for folder in folders for path in (ROOT / folder).rglob("*.py") for module in modules_of(path)}
    installed = installed_packages()
    others = modules - sys.stdlib_module_names - {"cytolake"}
    # Of several packages that bring one module (mlflow, mlflow-skinny), the one of its name.
    found = [sorted(installed.get(module, [module]), key=lambda name, own=module: name != own)[0] for module in others]
    return {name.lower().replace("_", "-") for name in found}


def test_what_the_product_imports_is_declared_and_nothing_else():
    declared = names_of("all", *OPTIONAL)
    assert imported("platform/cytolake") - declared - {"scvi"} == set()
    assert names_of("all") - imported("platform/cytolake", "serve") == set()


def test_the_client_needs_numpy_and_httpx_alone():
    assert names_of("client") == imported("platform/cytolake/client") == {"numpy", "httpx"}


def test_every_declared_package_is_pinned():
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    assert names_of(*EXTRAS) - pinned == set()
