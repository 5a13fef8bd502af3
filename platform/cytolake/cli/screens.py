"""Commands about screens on disk: simulate one, inspect one, write a recipe for one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import set_option
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import RECIPE_FILE


def recipes() -> None:
    """List the recipes that --recipe takes."""
    from cytolake.recipes import RECIPES

    table = Table("recipe", "what it is for", box=None, header_style="dim")
    for name, build in RECIPES.items():
        table.add_row(name, escape((build.__doc__ or "").strip().splitlines()[0]))
    Console().print(table)


def simulate(
    folder: Annotated[
        Path, typer.Argument(help="Where the plates go: <folder>/<screen>/<plate>.zarr and platemap.csv.")
    ],
    set_: Annotated[list[str] | None, set_option("Such as --set n_plates=8 --set seed=1.")] = None,
) -> None:
    """Write a simulated screen with known biology, batch effects and artefacts as OME-Zarr HCS plates."""
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.screens.simulated.plate_files import simulate_screen
    from cytolake.screens.simulated.screen import SimulatedScreen

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), stage_progress("simulate", console) as report:
        plates = simulate_screen(apply_overrides(SimulatedScreen(), set_ or []), folder, report)
    console.print(f"{count(len(plates), 'plate')} in {escape(str(plates[0].parent))}")


def inspect(
    path: Annotated[str, typer.Argument(help="Folder of a screen, or s3://bucket/folder.")],
    set_: Annotated[list[str] | None, set_option("A field of ScreenSource, such as --set layout=phenix.")] = None,
    crop_size: Annotated[int, typer.Option(help="Edge of the crops to be counted, pixels.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what a screen holds, which layout fits, and what an ingest would take. Writes nothing."""
    from cytolake.catalog.declared import channel_vocabulary, layout_presets
    from cytolake.catalog.ingest.inspection import inspect_screen
    from cytolake.cli.print_inspection import print_inspection
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.screens.sources import ScreenSource
    from cytolake.storage.files import is_uri

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    with exits_on_bad_input():
        name = path.rstrip("/").rsplit("/", 1)[-1] if is_uri(path) else Path(path).expanduser().resolve().name
        source = apply_overrides(ScreenSource(screen=name or "screen", path=path), set_ or [])
        found = inspect_screen(source, channel_vocabulary().aliases, layout_presets(), crop_size)
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(found), indent=2))
        else:
            print_inspection(found, console)
    if not found.can_ingest:
        raise typer.Exit(1)


def init(
    path: Annotated[str, typer.Argument(help="Folder of a screen, or s3://bucket/folder.")],
    set_: Annotated[list[str] | None, set_option("A field of ScreenSource, such as --set layout=phenix.")] = None,
    recipe_file: Annotated[Path, typer.Option(help="Where the recipe goes.")] = Path(RECIPE_FILE),
) -> None:
    """Look at a screen and write a recipe for it: layout, channels, crop size, label and split."""
    from cytolake.pipeline.first_recipe import check_free, propose_recipe, recipe_name, recipe_text, write_recipe
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.recipes import build_recipe
    from cytolake.screens.sources import ScreenSource
    from cytolake.storage.files import is_uri

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input():
        check_free(recipe_file)  # before the screen is looked at, which may take minutes
        folder = path if is_uri(path) else str(Path(path).expanduser().resolve())
        name = recipe_name(folder)
        source = apply_overrides(ScreenSource(screen=name, path=path), set_ or [])
        proposal = propose_recipe(source, name)
        text = recipe_text(proposal, str(recipe_file))
        write_recipe(recipe_file, text)
        build_recipe(str(recipe_file))
    console.print(escape(text), end="")
    for problem in proposal.inspection.problems:
        console.print(f"[yellow]{problem.n:,} x {escape(problem.problem)}[/]  {escape(problem.example)}")
    for advice in proposal.inspection.advice:
        console.print(f"[cyan]Hint[/]  {escape(advice)}")
    option = "" if recipe_file == Path(RECIPE_FILE) else f" --recipe {recipe_file}"
    console.print(f"\nwritten to {escape(str(recipe_file))}. Next: cytolake ingest{escape(option)}")
