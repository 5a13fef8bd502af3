"""What a plate on disk is to the rest of cytolake, whatever format it came in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Reader = Literal["ome-zarr", "files", "colour", "stack", "stack-channels", "stack-planes", "stack-times"]
WELLS_ONLY: Literal["table"] = "table"
"""In place of a reader: a published table of wells named the plate, and its images are not here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteImage:
    """One field of view: where its pixels are and what they are called. Holds no pixels."""

    screen: str
    plate: str
    well: str
    """Position such as `"B03"`: one or two letters, then at least two digits. Or the name of the sample, where the
    screen has no wells."""
    site: str
    """Field of view in the well, as the source names it, without leading zeros."""
    timepoint: int = 0
    z: str = ""
    """Focal plane as the source names it, `max` for a projection of all, `sharpest` until one is chosen; empty where
    the screen has one plane."""
    channels: tuple[str, ...]
    """Stain names in the order of the pixels' first axis, by their names in catalog/channels.yaml if known."""
    reader: Reader
    image_paths: tuple[str, ...]
    """`ome-zarr`: one path, the image group, or one for each multiplexing cycle, whose channels follow each other.
    `stack` and its kinds: one file, or several whose channels follow each other. `files`: one path for each channel, or
    for each plane of each channel.
    `colour`: one path, a file with all channels."""
    planes: tuple[int, ...] = ()
    """How many focal planes each channel is projected from; empty where every channel is one plane."""
    plane_names: tuple[str, ...] = ()
    """Names of these planes as the source has them, while `z` is `max` or `sharpest`."""
    illumination_paths: tuple[str, ...] = ()
    """For each channel the image that raw counts are divided by, empty for none; no paths: no channel is corrected."""

    def problem(self, **fields: str) -> Problem:
        """A fault of this site; `fields` are the other ones of `Problem`."""
        return Problem(screen=self.screen, plate=self.plate, well=self.well, site=self.site, **fields)


def as_text(name: str) -> str:
    """A name that can be printed and stored: bytes that are no UTF-8 are escaped, such as \\udcff."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A fault of the input with what to do about it. Becomes a row of the `quarantine` table."""

    screen: str
    plate: str = ""
    well: str = ""
    site: str = ""
    channel: str = ""
    file: str = ""
    problem: str
    """A short fixed code, such as `truncated_file`, `missing_channel`, `well_without_image`, `image_without_well`,
    `duplicate_well`, `duplicate_image`, `unreadable_file`, `bad_well_name`, `shape_mismatch`."""
    found: str
    expected: str
    next_step: str

    def __post_init__(self) -> None:
        # A file name that is not UTF-8 comes as surrogates, which neither a terminal nor a table can hold.
        for name in ("screen", "plate", "file", "found", "expected"):
            object.__setattr__(self, name, as_text(getattr(self, name)))

    def __str__(self) -> str:
        place = ", ".join(
            f"{name} {value}"
            for name, value in (
                ("screen", self.screen),
                ("plate", self.plate),
                ("well", self.well),
                ("site", self.site),
                ("channel", self.channel),
                ("file", self.file),
            )
            if value
        )
        return (
            f"{place}: {self.problem.replace('_', ' ')}: found {self.found}, expected {self.expected}. {self.next_step}"
        )


class ScreenError(ValueError):
    """Input that cannot be used at all; carries the problems, and its text is theirs."""

    def __init__(self, *problems: Problem) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plate:
    """One physical plate as listed from its source: images found, plate map, and what is wrong with either."""

    screen: str
    plate: str
    batch: str
    """Plates imaged together. Equal to the plate's name where the source does not say."""
    source: str
    """Path or URI of the plate."""
    reader: Reader | Literal["table"]
    channels: tuple[str, ...]
    sites: tuple[SiteImage, ...]
    wells: tuple[dict[str, str], ...] = ()
    """Plate-map rows: `well` and whatever else the map says, all strings. Empty where there is no plate map."""
    problems: tuple[Problem, ...] = field(default=())
    pixel_size_um: float | None = None
    acquisition: str = ""
    """Folder of this imaging run, relative to the screen's; empty where the layout has none. A fact about the plate,
    and no part of its name."""
    barcode: str = ""
    """The plate's name as its own path has it, where it has another because each of its runs counts as a plate."""
    run_name: str = ""
    """The plate's name with its run in it, which it has where each run counts as a plate; empty where there is none."""

    def problem(self, **fields: str) -> Problem:
        """A fault of this plate; `fields` are the other ones of `Problem`."""
        return Problem(screen=self.screen, plate=self.plate, **fields)


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The plates of a screen, and what is wrong with the screen outside of them."""

    plates: tuple[Plate, ...]
    problems: tuple[Problem, ...]
    """Of no plate that is listed: a folder that is no plate, a second imaging run, a row of a table without a
    position. They depend on everything that lies in the folder, so they are no part of a plate."""


def with_name(plate: Plate, name: str) -> Plate:
    """The plate under another name, in its sites and problems too."""
    if name == plate.plate:
        return plate
    return replace(
        plate,
        plate=name,
        barcode=plate.barcode or plate.plate,
        batch=name if plate.batch == plate.plate else plate.batch,
        sites=tuple(replace(site, plate=name) for site in plate.sites),
        problems=tuple(
            replace(problem, plate=name) if problem.plate == plate.plate else problem for problem in plate.problems
        ),
    )
