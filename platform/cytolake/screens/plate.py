"""What a plate on disk is to the rest of cytolake, whatever format it came in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Reader = Literal["ome-zarr", "files", "colour"]
WELLS_ONLY: Literal["table"] = "table"
"""In place of a reader: a published table of wells named the plate, and its images are not here."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteImage:
    """One field of view: where its pixels are and what they are called. Holds no pixels."""

    screen: str
    plate: str
    well: str
    """Position such as `"B03"`: one or two letters, then at least two digits."""
    site: str
    """Field of view in the well, as the source names it, without leading zeros."""
    timepoint: int = 0
    z: str = ""
    """Focal plane as the source names it, `max` for a projection of all, `sharpest` until one is chosen; empty where
    the screen has one plane."""
    channels: tuple[str, ...]
    """Stain names in the order of the pixels' first axis, spelled as in catalog/channels.yaml where known."""
    reader: Reader
    image_paths: tuple[str, ...]
    """`ome-zarr`: one path, the image group. `files`: one path for each channel, or for each plane of each channel.
    `colour`: one path, a file with all channels."""
    planes: tuple[int, ...] = ()
    """How many focal planes each channel is projected from; empty where every channel is one plane."""
    plane_names: tuple[str, ...] = ()
    """Names of these planes as the source has them, while `z` is `max` or `sharpest`."""
    illumination_paths: tuple[str, ...] = ()
    """For each channel the image that raw counts are divided by, empty for none; no paths: no channel is corrected."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something wrong with the input, told so that a person can mend it. Becomes a row of the `quarantine` table."""

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
