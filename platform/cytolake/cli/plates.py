"""`cytolake plates`: list the plates of a catalog and correct them."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cytolake.cli.bad_input import exits_on_bad_input
from cytolake.cli.options import Root, set_option
from cytolake.cli.stale import print_stale
from cytolake.pipeline.counts import count
from cytolake.pipeline.root import DEFAULT_ROOT
from cytolake.screens.plate import Problem

if TYPE_CHECKING:
    import cytolake.catalog
    from cytolake.catalog.corrections.purge import PurgePreview

plates = typer.Typer(help="Plates of a catalog: list and correct them.", invoke_without_command=True)

Name = Annotated[str, typer.Argument(metavar="PLATE", help="SCREEN/PLATE, a plate's name, or a plate_id.")]
Why = Annotated[str, typer.Option(help="The reason, which is kept.")]
MAX_CHANGES_PRINTED = 40
MAX_LISTED = 24
"""Representations that the preview of a purge names."""
LOG_WIDTH = 180
"""Characters of a line where no person looks at a terminal: nothing is cut off for a program that reads it."""


@plates.callback()
def list_plates(context: typer.Context, root: Root = DEFAULT_ROOT) -> None:
    """List every acquisition of every plate, with its state, its labels, and what is stale since a correction."""
    if context.invoked_subcommand is not None:
        return
    import cytolake.catalog
    from cytolake.catalog.corrections import list_catalog_plates
    from cytolake.catalog.stale import stale_artefacts

    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        stale = stale_artefacts(catalog)
        n_stale = Counter(name for each in stale for name in each.plates)
        names = ("plate", "state", "acquisition", "wells", "sites", "crops", "labels from", "labelled", "stale", "why")
        columns = [Column(name, overflow="fold", min_width=9 if name == "state" else None) for name in names]
        shown = Table(*columns, box=None, header_style="dim")
        for each in list_catalog_plates(catalog):
            name = f"{each.screen}/{each.plate}"
            when = f"{each.labelled_at:%Y-%m-%d %H:%M}" if each.labelled_at else ""
            numbers = (each.acquisition, f"{each.n_wells:,}", f"{each.n_sites:,}", f"{each.n_crops:,}")
            texts = (name, each.state, *numbers, each.labels_source, when, n_stale.get(name, 0), each.why)
            shown.add_row(*(escape(str(text)) for text in texts))
        console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else LOG_WIDTH)
        console.print(shown)
        print_stale(console, root, stale)


@plates.command()
def annotate(
    plate: Annotated[str, typer.Argument(metavar="PLATE_OR_SCREEN", help="SCREEN/PLATE, a plate, or a screen.")],
    plate_map: Annotated[Path, typer.Option(help="CSV or TSV of what was done to each well.")],
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=COLUMN",
            help="A column of the map with a name of its own, such as --label control=well_type; may be repeated. As "
            "label_columns of a recipe, which are not read here.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and stop.")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Take the labels of wells from a plate map, without reading a pixel. Crops, embeddings and QC stay valid."""
    import cytolake.catalog
    from cytolake.catalog.corrections import annotate as annotate_plates

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        declared = _label_columns(label or [])
        found = annotate_plates(catalog, plate, plate_map, label_columns=declared, is_dry_run=True)
        shown = Table("plate", "well", "column", "before", "after", box=None, header_style="dim")
        for each in found.changes[:MAX_CHANGES_PRINTED]:
            name = f"{each.screen}/{each.plate}"
            shown.add_row(*map(escape, (name, each.well or "all", each.column, each.before, each.after)))
        if found.changes:
            console.print(shown)
        if len(found.changes) > MAX_CHANGES_PRINTED:
            console.print(f"[dim]{len(found.changes) - MAX_CHANGES_PRINTED:,} more changes[/]")
        _print_problems(console, found.problems, "map")
        if found.not_in_map:
            names = ", ".join(found.not_in_map[:8]) + (" and more" if len(found.not_in_map) > 8 else "")
            console.print(f"  not in the map, with the labels of before: {escape(names)}")
        if dry_run or not found.changes:
            state = "nothing was written" if dry_run else "the catalog has these labels already"
            console.print(f"{count(len(found.changes), 'change')} in {count(len(found.plates), 'plate')}; {state}")
            return
        found = annotate_plates(catalog, plate, plate_map, label_columns=declared)
        console.print(f"{count(len(found.changes), 'change')} in {count(len(found.plates), 'plate')} committed")
        print_stale(console, root)


@plates.command()
def label_objects(
    plate: Annotated[str, typer.Argument(metavar="PLATE_OR_SCREEN", help="SCREEN/PLATE, a plate, or a screen.")],
    table: Annotated[Path, typer.Argument(help="CSV, TSV or Parquet: plate, well, site, object, y and x, and labels.")],
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=COLUMN", help="A column with a name of its own: --label guide=call."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change, and stop.")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Label cells or other objects of a pooled screen: their labels count in place of their well's."""
    import cytolake.catalog
    from cytolake.catalog.corrections import annotate_objects

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        found = annotate_objects(catalog, plate, table, label_columns=_label_columns(label or []), is_dry_run=dry_run)
        shown = ", ".join(f"{name} from {escape(column)}" for name, column in found.columns.items())
        console.print(f"[dim]{shown}[/]")
        _print_problems(console, found.problems, "table")
        console.print(
            f"objects: {found.n_objects:,} of {count(found.n_perturbations, 'perturbation')} ({found.n_before:,} "
            f"labelled before), {found.n_outside:,} in no crop"
        )
        console.print(f"crops: {found.n_crops:,} of one kind of object, {found.n_mixed:,} of several, without a label")
        if found.n_mixed > found.n_crops:
            console.print("  [yellow]beware[/] most crops show several kinds: ingest with a smaller ingest.crop_size")
        if not found.is_committed:
            state = "nothing was written" if dry_run else "the catalog has these labels already"
            console.print(f"{count(len(found.plates), 'plate')} with other labels; {state}")
            return
        console.print(f"{count(len(found.plates), 'plate')} committed")
        print_stale(console, root)


@plates.command()
def replace(
    plate: Name,
    path: Annotated[str, typer.Option(help="The screen's folder; by default where the plate is.")] = "",
    set_: Annotated[list[str] | None, set_option("Of the screen: --set layout=phenix.")] = None,
    found_as: Annotated[str, typer.Option("--found-as", help="The plate's name there, where it is another.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Read a plate again as a new acquisition. What was computed from the old one is hidden, not deleted."""
    import cytolake.catalog
    from cytolake.catalog.corrections import replace_plate
    from cytolake.catalog.corrections.replace import plate_in_source, plate_to_replace
    from cytolake.pipeline.overrides import apply_overrides
    from cytolake.pipeline.progress import stage_progress
    from cytolake.pipeline.session import RayConfig, ray_session
    from cytolake.screens.sources import ScreenSource

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        row = plate_to_replace(catalog, plate)
        if not (path or row["source"]):
            raise ValueError(f"plate {plate}: the catalog does not say where it is. Give --path.")
        source = apply_overrides(ScreenSource(screen=row["screen"], path=path or row["source"]), set_ or [])
        listed = plate_in_source(source, found_as or row["plate"])
        with ray_session(RayConfig()), stage_progress("replace", console) as report:
            new = replace_plate(catalog, plate, listed, progress=report)
        console.print(
            f"plate {_name(new)}: acquisition {new['acquisition']} is visible, "
            f"{count(new['n_sites'], 'site')}, {count(new['n_crops'], 'crop')}, "
            f"{count(new['n_quarantined'], 'row')} in quarantine"
        )
        print_stale(console, root)


@plates.command()
def retract(plate: Name, why: Why, root: Root = DEFAULT_ROOT) -> None:
    """Hide a plate and all that was computed from it. Nothing is deleted; an ingest leaves it out."""
    import cytolake.catalog
    from cytolake.catalog.corrections import retract as retract_plate
    from cytolake.catalog.corrections.plate_rows import name_of

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        row = retract_plate(cytolake.catalog.open(root), plate, why)
        again = escape(shlex.quote(name_of(row)))
        console.print(f"plate {_name(row)} is hidden. To have it back: cytolake plates restore {again}")
        print_stale(console, root)


@plates.command()
def restore(
    plate: Name,
    acquisition: Annotated[int | None, typer.Option(help="Which; 1 is the first. Default: the newest hidden.")] = None,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Show a plate that was retracted, or an acquisition that was replaced."""
    import cytolake.catalog
    from cytolake.catalog.corrections import restore as restore_plate

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        row = restore_plate(catalog, plate, acquisition)
        console.print(f"plate {_name(row)}: acquisition {row['acquisition'] or 1} is visible")
        others = [each for each in catalog.visibility().plates.to_pylist() if each["plate_id"] != row["plate_id"]]
        if any(each["source"] == row["source"] and each["state"] == "replaced" for each in others):
            console.print(
                f"  [yellow]beware[/] another acquisition was read from {escape(row['source'])} too: crops are read "
                "from there, so put the files of this one back, then run the ingest, which compares them"
            )
        print_stale(console, root)


@plates.command()
def rename(
    plate: Annotated[str, typer.Argument(metavar="PLATE_OR_SCREEN", help="SCREEN/PLATE, a plate, or a screen.")],
    screen: Annotated[str, typer.Option(help="New name of the screen.")] = "",
    new_plate: Annotated[str, typer.Option("--plate", help="New name of the plate.")] = "",
    root: Root = DEFAULT_ROOT,
) -> None:
    """Give a plate or a screen another name. Ids stay, and with them embeddings, profiles, scores and verdicts."""
    import cytolake.catalog
    from cytolake.catalog.corrections import rename as rename_plates

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        rows = rename_plates(cytolake.catalog.open(root), plate, screen=screen, plate=new_plate)
        names = ", ".join(map(_name, rows[:8]))
        console.print(f"{count(len(rows), 'plate')} renamed: {names}{' ...' if len(rows) > 8 else ''}")


@plates.command()
def purge(
    plate: Name,
    why: Why,
    acquisition: Annotated[int | None, typer.Option(help="Only this one; by default all.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without, what would be lost is printed.")] = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Delete a plate's rows, in older versions too. It cannot be undone; image files and packs are not touched."""
    import cytolake.catalog
    from cytolake.catalog.corrections import purge as purge_plate
    from cytolake.catalog.corrections.purge import preview_purge

    console = Console(soft_wrap=True, highlight=False)
    with exits_on_bad_input():
        catalog = cytolake.catalog.open(root)
        if not yes:
            _print_preview(console, catalog, preview_purge(catalog, plate, acquisition))
            return
        found = purge_plate(catalog, plate, why, acquisition)
        rows_text = ", ".join(f"{n:,} of {name}" for name, n in found.n_rows.items())
        console.print(f"{count(len(found.plates), 'acquisition')} purged: {rows_text or 'no rows were left'}")
        console.print(
            f"{count(found.n_files, 'file')} of older versions removed: these versions no longer have the plate"
        )
        for pack in found.packs:
            console.print(f"  [yellow]pack {pack} holds its crops[/]: delete {escape(str(catalog.root))}/packs/{pack}")
        if found.representations:
            n = count(len(found.representations), "representation")
            console.print(f"  [yellow]{n}[/] of encoders of these packs")


def _print_preview(console: Console, catalog: cytolake.catalog.Catalog, found: PurgePreview) -> None:
    console.print(f"would delete {escape('; '.join(found.plates))}, from this and every older version")
    console.print("  rows: " + (", ".join(f"{n:,} of {name}" for name, n in found.n_rows.items()) or "none"))
    for each in found.vectors[:MAX_LISTED]:
        console.print(f"  vectors of representation {escape(each)}")
    if len(found.vectors) > MAX_LISTED:
        console.print(f"  [dim]and of {len(found.vectors) - MAX_LISTED} more[/]")
    for pack in found.packs:
        console.print(
            f"  [yellow]would stay[/] pack {pack}, which holds its crops: {escape(str(catalog.root))}/packs/{pack}"
        )
    console.print("nothing was deleted. Scores that were computed with the plate stay. To delete: add --yes.")


def _print_problems(console: Console, problems: Sequence[Problem], of: str) -> None:
    for problem in problems[:8]:
        console.print(f"  [yellow]{escape(str(problem))}[/]")
    if len(problems) > 8:
        console.print(f"  [dim]{len(problems) - 8:,} more problems of the {of}[/]")


def _label_columns(options: list[str]) -> dict[str, str]:
    for option in options:
        if not all(part.strip() for part in option.partition("=")[::2]):
            raise ValueError(f"--label {option}: expected LABEL=COLUMN, such as --label control=well_type.")
    return {label.strip(): column.strip() for label, _, column in (option.partition("=") for option in options)}


def _name(row: Mapping[str, Any]) -> str:
    """screen/plate, for a console that reads markup."""
    return escape(f"{row['screen']}/{row['plate']}")
