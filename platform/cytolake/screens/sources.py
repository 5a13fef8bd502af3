"""Where a screen is, and the listing of its plates. Reads metadata and tables only, never pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cytolake.screens.channel_names import canonical, canonical_names
from cytolake.screens.files import list_indexed_plates
from cytolake.screens.imagexpress import has_imagexpress_images, list_imagexpress_plates
from cytolake.screens.plate import Plate, Problem, ScreenError, SiteImage
from cytolake.screens.plate_map import PlateMap, plates_without_images, read_plate_map, wells_of_plate
from cytolake.screens.source_folder import SourceFolder

LAYOUTS = ("auto", "ome-zarr", "index-csv", "imagexpress")
PLATE_MAP = "platemap.csv"
N_SHOWN_MAX = 20  # problems told in one error; a folder of 100,000 lost files must not fill the screen


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenSource:
    """One screen (study) to read: a folder, and how it is laid out."""

    screen: str
    """Name of the screen; part of every content-derived id."""
    path: str
    """Folder on a local or mounted disk: one OME-Zarr plate, a folder of them, a folder with an index CSV, or an
    ImageXpress export."""
    layout: str = "auto"
    """`index-csv`, `ome-zarr` or `imagexpress`; `auto` takes the first of these that the folder looks like."""
    plate_map: str = ""
    """CSV of what was done to each well, relative to `path`; empty means `platemap.csv` there or beside the plate,
    where it exists."""
    index: str = "index.csv"
    """CSV that lists the images, relative to `path`; for `index-csv`."""
    channels: tuple[str, ...] = ()
    """Channels that every site must have, in the source's or the vocabulary's spelling; a site without one keeps what
    it has, with a `missing_channel` problem. Empty means: those that most sites of its plate have."""

    def __post_init__(self) -> None:
        if not self.screen.strip():
            raise ValueError("screen source: found an empty screen, expected the screen's name. Set `screen`.")
        if not self.path.strip():
            raise ValueError(f"screen {self.screen}: found an empty path, expected its folder. Set `path`.")
        if self.layout not in LAYOUTS:
            raise ValueError(
                f"screen {self.screen}: found layout {self.layout!r}, expected one of {', '.join(LAYOUTS)}. "
                "Correct `layout`."
            )


def list_plates(source: ScreenSource, vocabulary: Mapping[str, str] | None = None) -> list[Plate]:
    """Plates of a screen, each with at least one site; what is wrong is in their `problems`.

    Problems that belong to no usable plate (an index row without a position, a folder that is no plate) go to the
    first plate's; a `Problem` names its own plate.

    Args:
        source: The screen.
        vocabulary: Folded spelling -> declared channel name, from `channel_names.alias_table`; channels are then
            spelled as declared. None leaves them as the source spells them.

    Raises:
        ScreenError: Nothing usable (missing or empty folder, no plate with images), or a table that cannot be read.
    """
    folder = _open_folder(source)
    layout = _find_layout(source, folder) if source.layout == "auto" else source.layout
    if layout == "ome-zarr":
        from cytolake.screens.ome_zarr import list_zarr_plates  # ngio takes 2 s to import

        plates, problems = list_zarr_plates(source.screen, folder)
    elif layout == "index-csv":
        plates, problems = list_indexed_plates(source.screen, folder, source.index)
    else:
        plates, problems = list_imagexpress_plates(source.screen, folder)
    if not plates:
        nothing = _problem(
            source,
            "no_images",
            f"no plate with images, read as {layout}",
            "at least one plate with a readable image",
            "See the problems below." if problems else "Check `path` and `layout` of the screen.",
        )
        left_out = len(problems) - N_SHOWN_MAX
        if left_out > 0:
            nothing = replace(nothing, next_step=f"See the problems below ({left_out} more like them).")
        raise ScreenError(nothing, *problems[:N_SHOWN_MAX])
    plates, repeated = _without_repeats(plates)
    problems += repeated

    names = [canonical_names(plate.channels, vocabulary or {}) for plate in plates]
    plates = [_rename_channels(plate, renamed) for plate, renamed in zip(plates, names, strict=True)]
    required = tuple(canonical(channel, vocabulary or {}) for channel in source.channels)
    plates = [_report_missing_channels(plate, required) for plate in plates]
    plate_map = _read_plate_map(source, folder)
    if plate_map is not None:
        is_one_plate = layout == "ome-zarr" and plates[0].source == str(folder.root)
        problems += plate_map.problems
        if not is_one_plate:
            problems += plates_without_images(plate_map, [plate.plate for plate in plates])
        plates = [_annotate(plate, plate_map) for plate in plates]
    plates = [_name_batch(plate) for plate in plates]
    plates[0] = replace(plates[0], problems=(*plates[0].problems, *problems))
    return plates


def _open_folder(source: ScreenSource) -> SourceFolder:
    if re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", source.path):
        raise ScreenError(
            _problem(
                source,
                "unsupported_path",
                "a URI",
                "a folder on a local or mounted disk",
                "Mount the bucket, or copy the screen.",
            )
        )
    path = Path(source.path).expanduser()
    if not path.is_dir():
        is_file = path.exists()
        raise ScreenError(
            _problem(
                source,
                "not_a_folder" if is_file else "missing_folder",
                "a file" if is_file else "no such folder",
                "the screen's folder",
                "Correct `path` of the screen; a relative path starts at the working directory.",
            )
        )
    if not any(path.iterdir()):
        raise ScreenError(
            _problem(
                source, "empty_folder", "an empty folder", "plates or images", "Copy the screen, or correct `path`."
            )
        )
    return SourceFolder(path)


def _find_layout(source: ScreenSource, folder: SourceFolder) -> str:
    if (folder.root / source.index).is_file():
        return "index-csv"
    from cytolake.screens.ome_zarr import plate_folders  # ngio takes 2 s to import

    if plate_folders(folder.root):
        return "ome-zarr"
    if has_imagexpress_images(folder.root):
        return "imagexpress"
    names = sorted(entry.name for entry in folder.root.iterdir())
    raise ScreenError(
        _problem(
            source,
            "unknown_layout",
            f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}",
            f"OME-Zarr plates, images with an {source.index}, or an ImageXpress export (TimePoint_1/...)",
            f"Write an {source.index} with columns path, plate, well, site, channel, or correct `path`.",
        )
    )


def _problem(source: ScreenSource, problem: str, found: str, expected: str, next_step: str) -> Problem:
    return Problem(
        screen=source.screen, file=source.path, problem=problem, found=found, expected=expected, next_step=next_step
    )


def _without_repeats(plates: list[Plate]) -> tuple[list[Plate], list[Problem]]:
    """The first plate of each name. Ids come from names, so a second one of that name would overwrite the first."""
    kept: dict[str, Plate] = {}
    problems = []
    for plate in plates:
        first = kept.setdefault(plate.plate, plate)
        if first is not plate:
            problems.append(
                Problem(
                    screen=plate.screen,
                    plate=plate.plate,
                    file=plate.source,
                    problem="duplicate_plate",
                    found=f"a plate of the same name in {first.source}",
                    expected="each plate name once in a screen",
                    next_step="The first was kept; rename or remove the other.",
                )
            )
    return list(kept.values()), problems


def _rename_channels(plate: Plate, names: dict[str, str]) -> Plate:
    if all(old == new for old, new in names.items()):
        return plate
    return replace(
        plate,
        channels=tuple(names[channel] for channel in plate.channels),
        sites=tuple(replace(site, channels=tuple(names[channel] for channel in site.channels)) for site in plate.sites),
        problems=tuple(
            replace(problem, channel=names.get(problem.channel, problem.channel)) for problem in plate.problems
        ),
    )


def _report_missing_channels(plate: Plate, required: tuple[str, ...]) -> Plate:
    """Add `missing_channel`: once for a channel that no site of the plate has, else for each site without it.

    Nothing is required: then a site should have what more than half of the plate's sites with the same kind of focal
    plane have. An ImageXpress plate takes some channels in one plane and others in many, and misses nothing.
    """
    if required:
        usual = dict.fromkeys((True, False), required)
    else:
        usual = {has_z: _usual_channels([s for s in plate.sites if bool(s.z) is has_z]) for has_z in (True, False)}
    nowhere = [channel for channel in required if channel not in plate.channels]
    told = {(problem.well, problem.site, problem.channel) for problem in plate.problems}
    problems = [_missing_channel(plate, channel, plate.channels) for channel in nowhere]
    for site in plate.sites:
        problems += [
            _missing_channel(plate, channel, site.channels, site)
            for channel in usual[bool(site.z)]
            if channel not in site.channels and channel not in nowhere and (site.well, site.site, channel) not in told
        ]
    return replace(plate, problems=(*plate.problems, *problems)) if problems else plate


def _usual_channels(sites: list[SiteImage]) -> tuple[str, ...]:
    counts = Counter(channel for site in sites for channel in site.channels)
    return tuple(channel for channel, n in counts.items() if 2 * n > len(sites))


def _missing_channel(plate: Plate, channel: str, found: tuple[str, ...], site: SiteImage | None = None) -> Problem:
    at = ""
    if site is not None and (site.timepoint or site.z):
        at = f" at timepoint {site.timepoint}" + (f", z {site.z}" if site.z else "")
    return Problem(
        screen=plate.screen,
        plate=plate.plate,
        well=site.well if site else "",
        site=site.site if site else "",
        channel=channel,
        problem="missing_channel",
        found=f"channels {', '.join(found)}{at}",
        expected=f"channel {channel}",
        next_step="Copy the channel's image; until then the channels that are there are used."
        if site
        else "Correct `channels` of the screen, or the channel names in the source.",
    )


def _read_plate_map(source: ScreenSource, folder: SourceFolder) -> PlateMap | None:
    """The plate map that is named, which must exist, or the one that lies there; looked for beside a lone plate too."""
    name = source.plate_map or PLATE_MAP
    places = [folder.root / name]
    if folder.root.suffix == ".zarr":
        places.append(folder.root.parent / name)
    found = next((place for place in places if place.is_file()), None)
    if found is None and not source.plate_map:
        return None
    return read_plate_map(found or places[0], source.screen, name)


def _annotate(plate: Plate, plate_map: PlateMap) -> Plate:
    """The plate with its rows of the map; what an index CSV said about a well fills in what the map leaves open."""
    rows, problems = wells_of_plate(plate_map, plate.plate, plate.sites)
    from_index = {row["well"]: row for row in plate.wells}
    merged = [{**from_index.pop(row["well"], {}), **row} for row in rows]
    return replace(plate, wells=(*merged, *from_index.values()), problems=(*plate.problems, *problems))


def _name_batch(plate: Plate) -> Plate:
    """The plate with the batch that its wells name, if they name one."""
    batches = Counter(row["batch"] for row in plate.wells if row.get("batch"))
    if not batches:
        return plate
    batch = batches.most_common(1)[0][0]
    if len(batches) == 1:
        return replace(plate, batch=batch)
    mixed = Problem(
        screen=plate.screen,
        plate=plate.plate,
        problem="mixed_batch",
        found=f"batches {', '.join(sorted(batches))}",
        expected="one batch for a plate",
        next_step=f"{batch}, the most frequent, was taken; correct the others.",
    )
    return replace(plate, batch=batch, problems=(*plate.problems, mixed))
