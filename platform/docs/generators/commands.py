"""The page of the command line, from the application itself: every command with its arguments and options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer

from generators.markdown import anchor, cell, code, first_line, table

JOBS = Path(__file__).resolve().parents[3] / "jobs"


@cache
def application() -> Any:
    """The `cytolake` command."""
    from cytolake.cli.main import app

    return typer.main.get_command(app)


def commands_below(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(full name, command) of a command and of those below it; a group that runs nothing by itself is left out."""
    below = getattr(command, "commands", None)
    if below is None or getattr(command, "invoke_without_command", False):
        yield name, command
    for each in (below or {}).values():
        if not each.hidden:
            yield from commands_below(each, f"{name} {each.name}")


def page() -> str:
    """Markdown of the page."""
    root = application()
    listed = sorted(commands_below(root, "cytolake"), key=lambda each: each[0])
    parts = [
        "# Command line\n",
        "Every command with its arguments and options. `cytolake COMMAND --help` prints the same. "
        "An exit status of 0 means success, 2 bad input (one sentence says what to change), 1 any other failure or, "
        "for `ingest` and `catalog check`, a finding that needs a person.\n",
        table(
            ["command", "purpose"],
            ([f"[`{name}`](#{anchor(name)})", cell(first_line(command.help))] for name, command in listed),
        ),
        "## Scripts in `jobs/` { #jobs }\n",
        "Each stage is also a script, for `ray job submit`; it takes the same options as the command of its name.\n",
        table(["script", "purpose"], ([code(f"jobs/{path.name}"), cell(about)] for path, about in _jobs())),
    ]
    for name, command in listed:
        parts += _section(name, command)
    return "\n".join(parts)


def _jobs() -> Iterator[tuple[Path, str]]:
    for path in sorted(JOBS.glob("*.py")):
        if not path.name.startswith("_"):
            yield path, first_line(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))


def _section(name: str, command: Any) -> list[str]:
    shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *(_argument(each) for each in arguments)])
    parts = [f"## `{name}` {{ #{anchor(name)} }}\n", f"{cell(command.help or '')}\n", f"```text\n{usage}\n```\n"]
    if arguments:
        rows = ([code(_argument(each)), cell(getattr(each, "help", "") or "")] for each in arguments)
        parts.append(table(["argument", "meaning"], rows))
    if options:
        rows = ([_names(each), cell(getattr(each, "help", "") or ""), _default(each)] for each in options)
        parts.append(table(["option", "meaning", "default"], rows))
    return parts


def _argument(parameter: Any) -> str:
    """Such as `QC_ID`, `PATHS...`, and `[QC_ID]` where it may be left out."""
    shown = parameter.metavar or (parameter.name or "").upper()
    if not shown.endswith("...") and parameter.nargs != 1:
        shown = f"{shown}..."
    return shown if parameter.required else f"[{shown}]"


VALUES = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "Path": "PATH", "bool": "true|false"}
"""Python type -> what the help calls a value of it."""


def _value(option: Any) -> str:
    """The kind of an option's value, in words of the help; of a repeated option the kind of one value."""
    kind = option.type_descriptor
    if option.metavar or kind.is_choice:
        return option.metavar or "|".join(map(str, kind.choices))
    names = re.findall(r"[A-Za-z_]\w*", option.bare_type())
    return VALUES[names[-1]]


def _names(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if getattr(option, "is_flag", False):
        return code(names)
    again = " …" if option.multiple else ""
    return f"{code(names)} {code(_value(option))}{again}"


def _default(option: Any) -> str:
    if option.required:
        return "required"
    value = option.default
    if callable(value) or value in (None, "", False, (), []):
        return ""
    return code(value)
