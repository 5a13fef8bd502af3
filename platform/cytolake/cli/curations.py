"""`cytolake curation` and `cytolake pack`: list and compare curations, verify packs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT

curation = typer.Typer(help="Curations of a catalog, and the differences between two.", no_args_is_help=True)
pack = typer.Typer(help="Packs of crops.", no_args_is_help=True)


@curation.command("list")
def curation_list(root: Root = DEFAULT_ROOT) -> None:
    """List the curations of a catalog, newest first."""
    import cytolake.catalog

    with exits_on_bad_input():
        runs = cytolake.catalog.open(root).table("curation_runs").sort_by([("curated_at", "descending")]).to_pylist()
    shown = Table("curation", "id", "made", "kept", "of", box=None, header_style="dim")
    for run in runs:
        shown.add_row(
            escape(run["curation"]),
            run["curation_id"][:12],
            f"{run['curated_at']:%Y-%m-%d %H:%M}",
            f"{run['n_kept']:,}",
            f"{run['n_considered']:,}",
        )
    Console().print(shown)


@curation.command("diff")
def curation_diff(
    first: Annotated[str, typer.Argument(help="Id, its beginning, or a name: the newest of it.")],
    second: Annotated[str, typer.Argument(help="The same; the same name twice compares its newest two.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Say which crops came in and went between two curations, and by which rule."""
    import cytolake.catalog
    from cytolake.cli.curation_diff import print_curation_diff
    from cytolake.curation.diff import diff_curations

    with exits_on_bad_input():
        print_curation_diff(diff_curations(cytolake.catalog.open(root), first, second), Console(highlight=False))


@pack.command("verify")
def pack_verify(
    path: Annotated[str, typer.Argument(metavar="PACK", help="Folder of a pack, or a pack_id; or its beginning.")],
    root: Root = DEFAULT_ROOT,
) -> None:
    """Compare every file of a pack with its checksum."""
    from cytolake.packs.find import pack_folder
    from cytolake.packs.pack import Pack
    from cytolake.pipeline.progress import stage_progress

    console = Console(highlight=False, soft_wrap=True)
    with exits_on_bad_input(), stage_progress("verify", console) as report:
        opened = Pack.open(pack_folder(path, root))
        problems = opened.verify(report)
    for problem in problems:
        console.print(f"[red]damaged[/] {escape(problem)}")
    if problems:
        raise typer.Exit(1)
    console.print(f"{count(opened.n_crops, 'crop')}, every file as it was written")
