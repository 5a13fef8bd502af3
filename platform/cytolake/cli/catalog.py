"""`cytolake catalog`: whether a catalog is sound, and how other programs read it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root, finite
from cytolake.cli.stale import print_stale
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT

catalog = typer.Typer(help="Soundness of a catalog, and its views for other programs.", no_args_is_help=True)

EXIT_FINDINGS = 1


@catalog.command()
def check(
    repair: Annotated[bool, typer.Option("--repair", help="Delete what killed runs left; finish purges.")] = False,
    older_than_h: Annotated[
        float, typer.Option(callback=finite, help="Leave what is younger: a run may be writing it.")
    ] = 24.0,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Look for rows, files and plates that refer to what does not exist. Ends with 1 where something is wrong."""
    import cytolake.catalog
    from cytolake.catalog.corrections.check import check_catalog

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        found = check_catalog(cytolake.catalog.open(root), is_repair=repair, older_than_h=older_than_h)
        for each in found:
            state = "[green]repaired[/]" if each.is_repaired else "[yellow]found[/]"
            console.print(f"{state} {escape(each.what)}. {escape(each.next_step)}")
        n_open = sum(not each.is_repaired for each in found)
        console.print(
            f"{count(len(found), 'finding')}, {n_open} to be mended" if found else "everything refers to what exists"
        )
        print_stale(console, root)
    if n_open:
        raise typer.Exit(EXIT_FINDINGS)


@catalog.command()
def views(
    form: Annotated[Literal["duckdb", "polars"], typer.Option("--format", help="SQL, or Python.")] = "duckdb",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Print a script by which DuckDB or Polars sees what this program shows, also while an ingest is running."""
    import cytolake.catalog
    from cytolake.catalog.views import view_text

    with exits_on_bad_input():
        print(view_text(cytolake.catalog.open(root), form), end="")
