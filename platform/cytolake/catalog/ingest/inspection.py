"""What a folder holds, before anything is written: which layout fits, what an ingest would take, and what it would not.

Names, tables and metadata are read as an ingest reads them; so are the pixels of a few sites, of small plates of all.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytolake.catalog.ingest.sampled_sites import PlateSample, sample_plates
from cytolake.screens.channel_names import ARROW, canonical, without_cycle
from cytolake.screens.label_advice import advice_on_labels
from cytolake.screens.label_vocabulary import fold_column
from cytolake.screens.layouts import BUILT_IN, LayoutPreset, screen_files, try_layout
from cytolake.screens.path_prefixes import below_screen
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.screen_folder import open_folder, unreadable_folder
from cytolake.screens.sources import (
    AUTO,
    REGEX,
    OpenScreen,
    ScreenSource,
    complete_plates,
    no_images,
    open_screen,
    plates_as_found,
    reader_failed,
)
from cytolake.screens.well_labels import ColumnUse, PlateLabels, read_labels
from cytolake.storage.files import is_uri
from cytolake.storage.natural_order import natural_order
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

if TYPE_CHECKING:
    from rich.console import Console

N_FOCUS_SITES = 4
"""Of a screen with z = sharpest: their planes are read."""
_N_PREFIX_TRIALS = 20
_N_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutFound:
    """One layout, and whether the folder looks like it."""

    layout: str
    about: str
    fits: bool
    is_used: bool
    said: str
    """What was found if it fits, else why it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelFound:
    """One channel name of the source."""

    found: str
    """As the source spells it."""
    name: str
    """As the catalog will have it."""
    is_known: bool
    """Whether catalog/channels.yaml has it; an encoder has no identity of its own for other stains."""
    n_sites: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFound:
    """One column of the plate map, or of the tables that list the images."""

    column: str
    becomes: str
    """`label gene`, `place`, `annotation`, or `nothing` where all its cells are empty."""
    n_plates: int
    n_values: int
    """Different values, of the plate with the most."""
    example: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PlateFound:
    """One plate as an ingest would take it."""

    plate: str
    batch: str
    channels: tuple[str, ...]
    n_wells: int
    """Wells with images or in the plate map."""
    n_sites: int
    """Sites that an ingest would have rows of: those listed, less those that were looked at and cannot be read."""
    n_timepoints: int
    n_planes: int
    """Focal planes of the site with the most; 1 where there are none to tell."""
    wells_in_map: int
    """Wells of which the plate map, or the table that lists the images, says something."""
    wells_with_images_in_map: int
    pixel_size_um: float | None
    sizes: tuple[str, ...]
    """Height x width and pixel type of the sampled images, the most frequent first; empty where none was sampled."""
    n_crops: int
    """Crops, if the other sites are like those that were read; 0 where none was."""
    n_bytes: int
    """Bytes of pixels that an ingest decodes, on the same condition."""
    n_problems: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemFound:
    """Problems of one kind: rows that the `quarantine` table would get."""

    problem: str
    n: int
    example: str
    """The first of them, told whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What `inspect_screen` found."""

    screen: str
    path: str
    layout: str
    """The layout that was used; empty where none fits."""
    layouts: tuple[LayoutFound, ...]
    plates: tuple[PlateFound, ...]
    channels: tuple[ChannelFound, ...]
    columns: tuple[ColumnFound, ...]
    """What is said about wells, and what each column of it becomes."""
    problems: tuple[ProblemFound, ...]
    crop_size: int
    advice: tuple[str, ...]
    """What could be set to have more, or to have it better."""
    source: dict[str, Any]
    """The fields of `ScreenSource` that give these plates, without those that have their default."""

    @property
    def can_ingest(self) -> bool:
        """Whether an ingest would take any site."""
        return self.total("n_sites") > 0

    @property
    def recipe(self) -> str:
        """The source as a recipe has it."""
        values = ", ".join(f"{name}={value!r}" for name, value in self.source.items())
        return f"ScreenSource({values})"

    @property
    def assignment(self) -> str:
        """The source as `--set` takes it."""
        return f"screens.sources={json.dumps([self.source], ensure_ascii=False)}"

    def total(self, name: str) -> int:
        """Sum over the plates of one of their counts, such as `n_sites`."""
        return sum(getattr(plate, name) for plate in self.plates)


def inspect_screen(
    source: ScreenSource,
    vocabulary: Mapping[str, str] | None = None,
    presets: Sequence[LayoutPreset] = (),
    crop_size: int = 64,
) -> Inspection:
    """Look at a screen as an ingest would, and read a few sites (`sampled_sites`). Writes nothing.

    With `z` sharpest the planes of up to four sites are read too.

    A screen that cannot be ingested is an answer, not an error: then `plates` is empty and `problems` says why.

    Args:
        source: The screen, with whatever is known already; its path alone will do.
        vocabulary: Folded spelling -> declared channel name, from `channel_names.alias_table`.
        presets: The declared layouts.
        crop_size: Edge of the crops to be counted, pixels.

    Raises:
        ScreenError: The folder is missing, empty or cannot be listed.
    """
    vocabulary, presets = vocabulary or {}, presets or BUILT_IN
    try:
        folder = open_folder(source.screen, source.path)
        files = screen_files(folder)
        trials = [(each, try_layout(each, source.screen, folder, files, source.index)) for each in presets]
    except (OSError, PathRefusedError) as error:
        raise ScreenError(unreadable_folder(source.screen, source.path, error)) from error
    opened: OpenScreen | None = None
    raw: list[Plate] = []
    plates: list[Plate] = []
    try:
        opened = replace(open_screen(source, presets, folder), files=files)
        raw, others = plates_as_found(opened)
        if raw:
            listing = complete_plates(opened, raw, others, vocabulary)
            plates = list(listing.plates)
            problems = [*(problem for plate in plates for problem in plate.problems), *listing.problems]
        else:
            problems = [no_images(opened, "See the other problems, or correct path and layout."), *others]
    except ScreenError as error:
        raw, plates, problems = [], [], list(error.problems)
    except (OSError, PathRefusedError) as error:
        raw, plates, problems = [], [], [unreadable_folder(source.screen, source.path, error)]
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # as `list_plates` reports it
        raw, plates, problems = [], [], [reader_failed(source, error)]

    labels = [read_labels(plate) for plate in plates]
    problems += [problem for each in labels for problem in each.problems]
    used = opened.preset.name if opened else ""
    sampled = sample_plates(plates, crop_size)
    problems = list(dict.fromkeys([*problems, *(problem for sample in sampled for problem in sample.problems)]))
    prefix = _prefix_that_helps(folder, source, problems)
    # A recipe's paths start at its own root, so an absolute path is the one that is right in every recipe.
    resolved = source if is_uri(source.path) else replace(source, path=_absolute(source.path))
    if used and plates and source.layout == AUTO:
        resolved = replace(resolved, layout=used)
    return Inspection(
        screen=source.screen,
        path=source.path,
        layout=used,
        layouts=tuple(
            LayoutFound(
                layout=preset.name, about=preset.about, fits=trial.fits, is_used=preset.name == used, said=trial.said
            )
            for preset, trial in trials
        ),
        plates=tuple(
            _plate_found(plate, sample, len(of_plate.problems))
            for plate, sample, of_plate in zip(plates, sampled, labels, strict=True)
        ),
        channels=_channels(raw, plates, vocabulary),
        columns=_columns(labels, source.label_columns),
        problems=_by_kind(problems),
        crop_size=crop_size,
        advice=(*_advice(source, trials, used, plates, vocabulary, prefix), *advice_on_labels(plates, labels)),
        source=_fields_that_differ(resolved),
    )


def render(inspection: Inspection, console: Console) -> None:
    """Print an inspection for a person."""
    from rich.markup import escape
    from rich.table import Table

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
                f"[{colour}]{column.becomes}[/]",
                f"{column.n_plates:,}",
                f"{column.n_values:,}",
                escape(column.example[:40]),
            )
        console.print()
        console.print(columns)

    if inspection.problems:
        problems = table("rows", "problem", "the first one", right=("rows",))
        for problem in inspection.problems:
            problems.add_row(f"{problem.n:,}", problem.problem, escape(problem.example))
        console.print(f"\n[yellow]{'Into quarantine' if inspection.can_ingest else 'Why nothing can be ingested'}[/]")
        console.print(problems)
    for advice in inspection.advice:
        console.print(f"\n[cyan]Hint[/]  {escape(advice)}")

    if inspection.can_ingest:
        n_crops = inspection.total("n_crops")
        n_wells, n_sites = inspection.total("n_wells"), inspection.total("n_sites")
        console.print(
            f"\n[green]An ingest would take[/] {_count(len(inspection.plates), 'plate')}, {_count(n_wells, 'well')}, "
            f"{_count(n_sites, 'site')}"
            + (f", about {n_crops:,} crops of {inspection.crop_size} px" if n_crops else "")
            + (f", {_size(inspection.total('n_bytes'))} of pixels" if inspection.total("n_bytes") else "")
        )
        console.print(f"\n[dim]in a recipe[/]\n  {escape(inspection.recipe)}", soft_wrap=True)  # to be copied whole
        quoted = inspection.assignment.replace("'", "'\\''")
        console.print(f"[dim]on the command line[/]\n  --set '{escape(quoted)}'", soft_wrap=True)
    else:
        console.print("\n[red]An ingest would take nothing.[/]")


def _plate_found(plate: Plate, sample: PlateSample, n_label_problems: int) -> PlateFound:
    wells = {site.well for site in plate.sites}
    in_map = {row["well"] for row in plate.wells}
    planes_of: dict[tuple[str, str, int], int] = {}
    for site in plate.sites:
        place = (site.well, site.site, site.timepoint)
        planes_of[place] = max(planes_of.get(place, 0) + bool(site.z), *(site.planes or (1,)))
    return PlateFound(
        plate=plate.plate,
        batch=plate.batch,
        channels=plate.channels,
        n_wells=len(wells | in_map),
        n_sites=sample.n_sites,
        n_timepoints=len({site.timepoint for site in plate.sites}),
        n_planes=max(planes_of.values()),
        wells_in_map=len(in_map),
        wells_with_images_in_map=len(in_map & wells),
        pixel_size_um=plate.pixel_size_um,
        sizes=tuple(f"{height} x {width} {dtype}" for height, width, dtype, _ in sample.sizes),
        n_crops=sample.n_crops,
        n_bytes=sample.n_bytes,
        n_problems=sum(1 for problem in plate.problems if problem.plate in ("", plate.plate))
        + len(sample.problems)
        + n_label_problems,
    )


def _columns(labels: Sequence[PlateLabels], declared: Mapping[str, str]) -> tuple[ColumnFound, ...]:
    """Columns of all plates; one that the user declared for a label is that label, not the copy under its name."""
    found: dict[str, list[ColumnUse]] = {}
    for of_plate in labels:
        names = {fold_column(column): label for label, column in declared.items()}
        there = {fold_column(use.column) for use in of_plate.columns}
        for use in of_plate.columns:
            label = names.get(fold_column(use.column))
            if use.column in declared and fold_column(declared[use.column]) in there - {fold_column(use.column)}:
                continue
            found.setdefault(use.column, []).append(replace(use, becomes=f"label {label}") if label else use)
    order = ("label", "annotation", "place", "nothing")
    columns = [
        ColumnFound(
            column=column,
            becomes=" or ".join(dict.fromkeys(use.becomes for use in uses)),
            n_plates=len(uses),
            n_values=max(use.n_values for use in uses),
            example=next((use.example for use in uses if use.example), ""),
        )
        for column, uses in found.items()
    ]
    return tuple(sorted(columns, key=lambda each: order.index(each.becomes.partition(" ")[0])))


def _channels(raw: Sequence[Plate], plates: Sequence[Plate], vocabulary: Mapping[str, str]) -> tuple[ChannelFound, ...]:
    declared = set(vocabulary.values())
    counts: dict[tuple[str, str], int] = {}
    for before, after in zip(raw, plates, strict=True):
        spelled = dict(zip(after.channels, before.channels, strict=True))
        n_sites = Counter(channel for site in after.sites for channel in site.channels)
        for name, found in spelled.items():
            counts[found, name] = counts.get((found, name), 0) + n_sites[name]
    return tuple(
        ChannelFound(found=found, name=name, is_known=without_cycle(name) in declared, n_sites=n)
        for (found, name), n in counts.items()
    )


def _by_kind(problems: Sequence[Problem]) -> tuple[ProblemFound, ...]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.problem, []).append(problem)
    return tuple(ProblemFound(problem=kind, n=len(each), example=str(each[0])) for kind, each in kinds.items())


def _prefix_that_helps(folder: SourceFolder, source: ScreenSource, problems: Sequence[Problem]) -> str:
    """Beginning of the refused absolute paths that the screen's folder stands for: without it their rest is there."""
    helped: Counter[str] = Counter()
    refused = [problem.file for problem in problems if problem.problem == "path_outside_screen"]
    for file in refused[:_N_PREFIX_TRIALS]:
        path = below_screen(file, folder.root, source.path_prefix)
        parts = path.split("/")
        if ".." in parts or not (path.startswith("/") or ":" in parts[0]):
            continue
        for i in range(1, len(parts)):
            rest = "/".join(parts[i:])
            if rest and folder.exists(rest):
                helped["/".join(parts[:i])] += 1
                break
    return helped.most_common(1)[0][0] if helped else ""


def _advice(
    source: ScreenSource,
    trials: Sequence[tuple[LayoutPreset, Any]],
    used: str,
    plates: Sequence[Plate],
    vocabulary: Mapping[str, str],
    prefix: str,
) -> list[str]:
    told = []
    if prefix:
        told.append(
            f"The tables have absolute paths that begin with {prefix}, where this screen's folder was: set "
            f"path_prefix to {[prefix]!r}."
        )
    if not used and source.layout == AUTO:
        told.append(
            "No layout fits. Set layout to regex and pattern to a regular expression over the paths below this folder, "
            r"such as '(?P<plate>[^/]+)/(?P<well>[A-P][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif'. "
            r"Without wells, sample stands for them, and files with all channels need no group channel: "
            r"'(?P<sample>[^/]+)\.tif'."
        )
    others = [preset.name for preset, trial in trials if trial.fits and preset.name != used]
    if used and others:
        told.append(f"The folder also looks like {', '.join(others)}; set layout to have it read so.")
    declared = set(vocabulary.values())
    channels = dict.fromkeys(channel for plate in plates for channel in plate.channels)
    unknown = [channel for channel in channels if without_cycle(canonical(channel, vocabulary)) not in declared]
    if unknown and declared:
        shown = sorted(unknown, key=natural_order)[:_N_SHOWN]
        told.append(
            f"Unknown stains: {', '.join(shown)}. If you know what they show, set channel_names to pairs such as "
            f"{[shown[0] + ARROW + 'DNA']!r}."
        )
    if source.z == "keep" and any(site.z for plate in plates for site in plate.sites):
        told.append("Each focal plane is a site of its own; set z to max (projection) or sharpest to have one.")
    if source.z == "sharpest":
        told += _focus_advice(plates)
    return told


def _focus_advice(plates: Sequence[Plate]) -> list[str]:
    """On how many of some sites, whose planes are read, the measures of focus disagree."""
    from cytolake.screens.images.focus import MEASURES  # scipy takes a moment to import
    from cytolake.screens.images.pixels import choose_plane

    series = [site for plate in plates for site in plate.sites if site.z == "sharpest" and max(site.planes) > 1]
    if not series:
        return []
    last = len(series) - 1
    sampled = [series[i] for i in sorted({round(i * last / max(N_FOCUS_SITES - 1, 1)) for i in range(N_FOCUS_SITES)})]
    n_read, split = 0, []
    for site in sampled:
        try:
            chosen, choice = choose_plane(site)
        except ScreenError:  # an ingest puts such a site into quarantine
            continue
        n_read += 1
        if choice is not None and not choice.is_unanimous:
            names = [site.plane_names[plane] for plane in choice.of_measures]
            of_each = ", ".join(f"{m.replace('_', ' ')} {name}" for m, name in zip(MEASURES, names, strict=True))
            split.append(f"plate {site.plate}, well {site.well}, site {site.site}: {of_each}; {chosen.z} is taken")
    if not n_read:
        return []
    if not split:
        return [f"Sharpest plane: all measures of focus agree on {_count(n_read, 'sampled site')}."]
    return [
        f"Sharpest plane: the measures of focus disagree on {len(split)} of {_count(n_read, 'sampled site')}. The "
        f"plane with the best median rank is taken there: {split[0]}. Where planes far apart are named, look at the "
        "images, or set z to max."
    ]


def _absolute(path: str) -> str:
    """An absolute path without `..`, unless a link would make that another folder."""
    whole = Path(path).expanduser().absolute()
    short = Path(os.path.normpath(whole))
    return str(short if short.exists() and short.samefile(whole) else whole)


def _fields_that_differ(source: ScreenSource) -> dict[str, Any]:
    usual = ScreenSource(screen=source.screen, path=source.path)
    values = {each.name: (getattr(source, each.name), getattr(usual, each.name)) for each in fields(source)}
    return {
        name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for name, (value, default) in values.items()
        if value != default or name in ("screen", "path")
    }


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _size(n_bytes: int) -> str:
    value = n_bytes / 1024**2
    for unit in ("MiB", "GiB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:,.3g} TiB"
