"""The `cytolake` command: every job, and a look at a catalog, without a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import cytolake.catalog
from cytolake.line import stages
from cytolake.line.command import bad_input_told, job_command
from cytolake.line.config import DEFAULT_ROOT
from cytolake.line.overrides import apply_overrides
from cytolake.line.progress import stage_progress
from cytolake.recipes import RECIPES
from cytolake.screens.simulated import SimulatedScreen, simulate_screen

app = typer.Typer(help=cytolake.__doc__, no_args_is_help=True, add_completion=False)
Root = Annotated[str, typer.Option(envvar="CYTOLAKE_ROOT", help="Catalog root.")]

for _job in stages.JOBS:
    app.command(_job.__name__)(job_command(_job, _job.__doc__))


@app.command()
def recipes() -> None:
    """List the recipes that --recipe takes."""
    table = Table("recipe", "what it is for", box=None, header_style="dim")
    for name, build in RECIPES.items():
        table.add_row(name, (build.__doc__ or "").strip().splitlines()[0])
    Console().print(table)


@app.command()
def simulate(
    folder: Annotated[
        Path, typer.Argument(help="Where the plates go: <folder>/<screen>/<plate>.zarr and platemap.csv.")
    ],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Such as --set n_plates=8 --set seed=1.")
    ] = None,
) -> None:
    """Write a simulated screen with known biology, batch effects and artefacts as OME-Zarr HCS plates."""
    console = Console(highlight=False, soft_wrap=True)
    with bad_input_told(), stage_progress("simulate", console) as report:
        plates = simulate_screen(apply_overrides(SimulatedScreen(), set_ or []), folder, report)
    console.print(f"{len(plates)} plates in {plates[0].parent}")


@app.command()
def tables(root: Root = DEFAULT_ROOT) -> None:
    """List the tables of a catalog with their rows and Delta versions."""
    with bad_input_told():
        catalog = cytolake.catalog.open(root)
        versions = catalog.versions()
        shown = Table("table", "rows", "version", box=None, header_style="dim")
        for name in cytolake.catalog.table_names():
            rows = catalog.sql(f"select count(*) n from {name}")["n"][0].as_py()
            shown.add_row(name, f"{rows:,}", str(versions.get(name, "-")))
        Console().print(shown)


@app.command()
def sql(query: str, root: Root = DEFAULT_ROOT, rows: Annotated[int, typer.Option(help="Rows to print.")] = 40) -> None:
    """Run one read-only SQL query over the tables of a catalog."""
    with bad_input_told():
        found = cytolake.catalog.open(root).sql(query)
        shown = Table(*found.column_names, box=None, header_style="dim")
        for row in found.slice(0, rows).to_pylist():
            shown.add_row(*(str(value) for value in row.values()))
        Console().print(shown)
        if found.num_rows > rows:
            Console().print(f"[dim]{found.num_rows - rows:,} more rows[/]")
