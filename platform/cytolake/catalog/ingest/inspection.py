"""Inspects the folder of a screen: which layout fits, what an ingest would take and what it would refuse.

Names, tables and metadata are read as an ingest reads them; so are the pixels of a few sites, of small plates of all.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cytolake.catalog.ingest.advice import advice_on_source, prefix_that_helps
from cytolake.catalog.ingest.sampled_sites import PlateSample, sample_plates
from cytolake.screens.channel_names import without_cycle
from cytolake.screens.label_advice import advice_on_labels
from cytolake.screens.label_vocabulary import fold_column
from cytolake.screens.layouts import BUILT_IN, LayoutPreset, screen_files, try_layout
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.screen_folder import open_folder, unreadable_folder
from cytolake.screens.sources import (
    AUTO,
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
from cytolake.storage.source_folder import PathRefusedError


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
    """Name in the source."""
    name: str
    """Name in the catalog."""
    is_known: bool
    """Whether catalog/channels.yaml has it; to an encoder all other stains are one unknown stain."""
    n_sites: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnFound:
    """One column of the plate map, or of the tables that list the images."""

    column: str
    becomes: str
    """`label gene`, `place`, `annotation`, or `nothing` where all its cells are empty."""
    n_plates: int
    n_values: int
    """Distinct values, of the plate with the most."""
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
    """Sites that an ingest would add: those listed, without the sampled ones that cannot be read."""
    n_timepoints: int
    n_planes: int
    """Focal planes of the site with the most; 1 where the source names no planes."""
    wells_in_map: int
    """Wells with labels, in the plate map or in the table that lists the images."""
    wells_with_images_in_map: int
    pixel_size_um: float | None
    sizes: tuple[str, ...]
    """Height x width and pixel type of the sampled images, the most frequent first; empty where none was sampled."""
    n_crops: int
    """Crops, estimated from the sites that were read; 0 where none was."""
    n_bytes: int
    """Bytes of pixels that an ingest would decode, estimated in the same way."""
    n_problems: int
    """Rows of the plate that the `quarantine` table would get."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProblemFound:
    """Problems of one kind: rows that the `quarantine` table would get."""

    problem: str
    n: int
    example: str
    """The first of them, with all its fields."""


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
    """Columns with facts about wells, and what each becomes."""
    problems: tuple[ProblemFound, ...]
    crop_size: int
    advice: tuple[str, ...]
    """Settings with which an ingest would find more."""
    source: dict[str, Any]
    """Fields of the `ScreenSource` that lists these plates, without those at their default."""

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
        source: The screen; its path is enough.
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
    prefix = prefix_that_helps(folder, source, problems)
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
            _plate_found(plate, sample, sum(_is_of(problem, plate) for problem in problems))
            for plate, sample in zip(plates, sampled, strict=True)
        ),
        channels=_channels(raw, plates, vocabulary),
        columns=_columns(labels, source.label_columns),
        problems=_by_kind(problems),
        crop_size=crop_size,
        advice=(*advice_on_source(source, trials, used, plates, vocabulary, prefix), *advice_on_labels(plates, labels)),
        source=_fields_that_differ(resolved),
    )


def _is_of(problem: Problem, plate: Plate) -> bool:
    """Whether a problem is of a plate: it names the plate, or names none and was found while the plate was listed."""
    return problem.plate == plate.plate or (not problem.plate and problem in plate.problems)


def _plate_found(plate: Plate, sample: PlateSample, n_problems: int) -> PlateFound:
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
        n_problems=n_problems,
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
        name_in_source = dict(zip(after.channels, before.channels, strict=True))
        n_sites = Counter(channel for site in after.sites for channel in site.channels)
        for name, found in name_in_source.items():
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
