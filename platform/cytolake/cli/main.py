"""The `cytolake` command: every job, and what people do with screens and catalogs, without a checkout.

Its modules import nothing heavy, so that help and completion are instant: a command imports what it needs when it runs.
"""

from __future__ import annotations

from collections.abc import Callable

import typer

import cytolake
from cytolake.cli import benchmarks, exchange, representations, screens, tables
from cytolake.cli.catalog import catalog
from cytolake.cli.curations import curation, pack
from cytolake.cli.jobs import JOBS, job_command
from cytolake.cli.keys import keys
from cytolake.cli.plates import plates
from cytolake.cli.qc import qc

app = typer.Typer(help=cytolake.__doc__, no_args_is_help=True, add_completion=False)

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Screens and recipes": (screens.inspect, screens.init, screens.recipes, screens.simulate),
    "Jobs: stages of a recipe": tuple(job_command(name) for name in JOBS),
    "Catalog": (tables.tables, tables.sql, tables.tag, tables.vacuum),
    "Representations": (
        *(benchmarks.score, benchmarks.linear_probe, benchmarks.recall, benchmarks.leaderboard),
        *(benchmarks.transcriptomics, representations.align, representations.audit),
        *(exchange.export, exchange.import_),
    ),
}
"""Panel of the help -> its commands; a command is named as its function."""

GROUPS = {"plates": plates, "qc": qc, "curation": curation, "pack": pack, "catalog": catalog, "keys": keys}
"""Groups of commands, which are in the panel of the catalog or, for keys, in one of their own."""

for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(_command.__name__.rstrip("_").replace("_", "-"), rich_help_panel=_panel)(_command)
for _name, _group in GROUPS.items():
    app.add_typer(_group, name=_name, rich_help_panel="Serving" if _name == "keys" else "Catalog")
