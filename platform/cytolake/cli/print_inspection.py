"""Prints the inspection of a screen for a person."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cytolake.catalog.ingest.inspection import Inspection
from cytolake.pipeline.counts import count
from cytolake.screens.sources import REGEX

_N_SHOWN = 12
_EXAMPLE_WIDTH = 40
"""Characters of a value of the plate map; of a longer one the beginning and "…" are shown."""


def print_inspection(inspection: Inspection, console: Console) -> None:
    """Print an inspection for a person."""

    def table(*columns: str, right: Sequence[str] = ()) -> Table:
        shown = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for column in columns:
            shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
        return shown

    console.print(f"[bold]{escape(inspection.screen)}[/]  {escape(inspection.path)}\n")
    layouts = table("", "layout", "what was found, or why not")
    for each in sorted(inspection.layouts, key=lambda each: (not each.is_used, not each.fits)):
        mark = "[green]used[/]" if each.is_used else "[yellow]fits too[/]" if each.fits else "[dim]no[/]"
        layouts.add_row(mark, escape(each.layout), escape(each.said) if each.fits else f"[dim]{escape(each.said)}[/]")
    if inspection.layout == REGEX:
        layouts.add_row("[green]used[/]", REGEX, escape(inspection.source.get("pattern", "")))
    console.print(layouts)

    if inspection.plates:
        numbers = ("wells", "in map", "sites", "times", "planes", "um/pixel", "crops", "problems")
        plates = table("plate", "batch", "channels", *numbers, "image", right=numbers)
        for plate in inspection.plates[:_N_SHOWN]:
            plates.add_row(
                *(escape(each) for each in (plate.plate, plate.batch, ", ".join(plate.channels))),
                f"{plate.n_wells:,}",
                f"{plate.wells_with_images_in_map:,}" if plate.wells_in_map else "-",
                f"{plate.n_sites:,}",
                str(plate.n_timepoints),
                str(plate.n_planes),
                f"{plate.pixel_size_um:.4g}" if plate.pixel_size_um else "-",
                f"{plate.n_crops:,}" if plate.n_crops else "-",
                f"[yellow]{plate.n_problems:,}[/]" if plate.n_problems else "0",
                escape("; ".join(plate.sizes)) or "-",
            )
        console.print()
        console.print(plates)
        if len(inspection.plates) > _N_SHOWN:
            console.print(f"[dim]{len(inspection.plates) - _N_SHOWN:,} more plates[/]")

        channels = table("channel in the source", "in the catalog", "sites", right=("sites",))
        for channel in inspection.channels[: 2 * _N_SHOWN]:
            name = escape(channel.name) + ("" if channel.is_known else " [yellow](unknown stain)[/]")
            channels.add_row(escape(channel.found), name, f"{channel.n_sites:,}")
        console.print()
        console.print(channels)

    if inspection.columns:
        columns = table("column of the plate map", "becomes", "plates", "values", "such as", right=("plates", "values"))
        for column in inspection.columns[: 4 * _N_SHOWN]:
            colour = "green" if column.becomes.startswith("label") else "dim"
            columns.add_row(
                escape(column.column),
                f"[{colour}]{escape(column.becomes)}[/]",
                f"{column.n_plates:,}",
                f"{column.n_values:,}",
                escape(_cut(column.example)),
            )
        console.print()
        console.print(columns)

    if inspection.problems:
        problems = table("rows", "problem", "the first one", right=("rows",))
        for problem in inspection.problems:
            problems.add_row(f"{problem.n:,}", escape(problem.problem), escape(problem.example))
        console.print(f"\n[yellow]{'Into quarantine' if inspection.can_ingest else 'Why nothing can be ingested'}[/]")
        console.print(problems)
    for advice in inspection.advice:
        console.print(f"\n[cyan]Hint[/]  {escape(advice)}")

    if inspection.can_ingest:
        n_crops = inspection.total("n_crops")
        n_wells, n_sites = inspection.total("n_wells"), inspection.total("n_sites")
        console.print(
            f"\n[green]An ingest would take[/] {count(len(inspection.plates), 'plate')}, {count(n_wells, 'well')}, "
            f"{count(n_sites, 'site')}"
            + (f", about {n_crops:,} crops of {inspection.crop_size} px" if n_crops else "")
            + (f", {_size(inspection.total('n_bytes'))} of pixels" if inspection.total("n_bytes") else "")
        )
        console.print(f"\n[dim]in a recipe[/]\n  {escape(inspection.recipe)}", soft_wrap=True)  # to be copied whole
        quoted = inspection.assignment.replace("'", "'\\''")
        console.print(f"[dim]on the command line[/]\n  --set '{escape(quoted)}'", soft_wrap=True)
    else:
        console.print("\n[red]An ingest would take nothing.[/]")


def _cut(text: str) -> str:
    return text if len(text) <= _EXAMPLE_WIDTH else f"{text[: _EXAMPLE_WIDTH - 1]}…"


def _size(n_bytes: int) -> str:
    value = n_bytes / 1024**2
    for unit in ("MiB", "GiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} TiB"
