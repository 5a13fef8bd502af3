"""Commands about the tables of a catalog: list them, query them, name a state of them, remove orphaned files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root, finite
from cytolake.cli.rows_out import Format, write_rows
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT


def tables(root: Root = DEFAULT_ROOT) -> None:
    """List the tables of a catalog with their rows and Delta versions."""
    import cytolake.catalog

    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        versions = catalog.versions()
        shown = Table("table", "rows", "version", box=None, header_style="dim")
        for name in cytolake.catalog.table_names():
            rows = catalog.sql(f"select count(*) n from {name}")["n"][0].as_py()
            shown.add_row(name, f"{rows:,}", str(versions.get(name, "-")))
        Console().print(shown)


def sql(
    query: str,
    root: Root = DEFAULT_ROOT,
    rows: Annotated[int, typer.Option(min=0, help="Rows of a table to print; the other formats have all.")] = 40,
    format_: Annotated[
        Format | None, typer.Option("--format", help="By default what the output's name ends in, else a table.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file: .csv, .json (lines) or .parquet.")] = None,
) -> None:
    """Run one read-only SQL query over the tables of a catalog."""
    import cytolake.catalog

    with exits_on_bad_input():
        write_rows(cytolake.catalog.open(root).sql(query), format_, output, rows)


def tag(
    name: Annotated[str, typer.Argument(help="Such as paper-2026.")],
    note: Annotated[str, typer.Option(help="What the tag is for.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Give the catalog as it is now a name: `cytolake.catalog.open(root).at(name)` reads it so for ever."""
    import cytolake.catalog

    with exits_on_bad_input():
        versions = cytolake.catalog.open(root).tag(name, note)
    Console(highlight=False).print(
        f"{escape(name)}: {count(sum(versions.values()), 'commit')} of {count(len(versions), 'table')}"
    )


def vacuum(
    older_than_h: Annotated[
        float, typer.Option(callback=finite, help="Leave what is younger, hours: a run may be writing it.")
    ] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Remove what killed runs left behind. Every version of every table stays readable."""
    import cytolake.catalog
    from cytolake.catalog.corrections.vacuum import vacuum as remove_orphans

    with exits_on_bad_input():
        report = remove_orphans(cytolake.catalog.open(root), older_than_h, is_dry_run=dry_run)
    console = Console(highlight=False, soft_wrap=True)
    for path in (*report.files, *report.staged):
        console.print(f"  {escape(path)}", style="dim")
    console.print(
        f"{len(report.files)} orphaned files and {len(report.staged)} staging folders "
        f"{'would be' if dry_run else 'were'} removed, {report.n_bytes / 1e6:,.1f} MB; {report.n_too_young} more are "
        f"younger than {older_than_h:g} h"
    )
