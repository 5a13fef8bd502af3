"""Options that several commands share: `--root` with its default, and `--set`."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from cytolake.pipeline.root import DEFAULT_ROOT, RECIPE_FILE

UNKNOWN_RECIPE = "NAME"
"""Stands for the name of the recipe in a command, where a catalog does not record it."""


def root_here() -> str:
    """Root of the recipe file of the working directory, else DEFAULT_ROOT. The jobs report a file that is broken."""
    if not Path(RECIPE_FILE).is_file():
        return DEFAULT_ROOT
    import yaml

    try:
        given = yaml.safe_load(Path(RECIPE_FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return DEFAULT_ROOT
    root = given.get("root") if isinstance(given, dict) else None
    return root if isinstance(root, str) and root else DEFAULT_ROOT


def root_of_command(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """The root that was given, also to the group, as in `cytolake plates --root R retract P`; else `root_here`."""
    name = parameter.name or ""
    if not _is_default(context, name):
        if not value.strip():
            raise typer.BadParameter("found an empty name, expected a folder; `.` is the working directory")
        return value
    group = context.parent
    return root_here() if group is None or _is_default(group, name) else str(group.params[name])


def _is_default(context: Any, name: str) -> bool:
    source = context.get_parameter_source(name)  # of Typer's own copy of Click, so it is compared by its name
    return source is None or source.name == "DEFAULT"


Root = Annotated[
    str,
    typer.Option(
        envvar="CYTOLAKE_ROOT",
        help=f"Catalog root, or the URI of its tables; by default the root of {RECIPE_FILE} here, where there is one.",
        callback=root_of_command,
    ),
]


def finite(value: float) -> float:
    """Callback of an option that is a number: refuses nan and infinity, which compare as nothing does."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"found {value}, expected a finite number")
    return value


def set_option(about: str) -> Any:
    """`--set FIELD=VALUE`, which may be repeated, with its help."""
    return typer.Option("--set", metavar="FIELD=VALUE", help=about)


def job_options(root: str, recipe: str = "") -> str:
    """The options, after a space, with which a job works on this catalog; empty where it finds the catalog without.

    Args:
        root: The catalog's.
        recipe: The recipe that the catalog was made with, where it is known. A recipe file of the working directory
            with the same root is preferred, and with another root it is the second choice.
    """
    given = f" --set root={shlex.quote(root)}"
    is_here = Path(RECIPE_FILE).is_file()
    if is_here and Path(root_here()).absolute() == Path(root).absolute():
        return ""
    if recipe or not is_here:
        return f" --recipe {shlex.quote(recipe or UNKNOWN_RECIPE)}{given}"
    return given
