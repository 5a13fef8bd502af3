"""Config of a screen, and the listing of its plates. Reads metadata and tables only, never pixels.

Config and listing are in one file because the listing reads every field of the config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cytolake.screens.acquisitions import ImageOf, Runs, choose_runs
from cytolake.screens.channel_names import canonical, renamed
from cytolake.screens.dose_units import mixed_dose_units
from cytolake.screens.images.focal_planes import Planes, join_planes
from cytolake.screens.images.illumination import OFF, correct_illumination
from cytolake.screens.images.image_errors import one_line
from cytolake.screens.label_vocabulary import check_label_columns
from cytolake.screens.layouts import (
    BUILT_IN,
    LayoutPreset,
    has_zarr_groups,
    list_by_layout,
    path_rule,
    screen_files,
    try_layout,
)
from cytolake.screens.layouts.class_folders import N_PLATES
from cytolake.screens.layouts.listed_images import hold_against_listing
from cytolake.screens.plate import Listing, Plate, Problem, ScreenError, as_text
from cytolake.screens.plate_annotation import annotate, name_batch
from cytolake.screens.plate_channels import (
    final_channel_names,
    rename_channels,
    report_missing_channels,
    report_other_assays,
)
from cytolake.screens.plate_map import PlateMap, plates_without_images, read_plate_map
from cytolake.screens.positions import is_position
from cytolake.screens.screen_folder import folder_problem, open_folder, unreadable_folder
from cytolake.screens.stacks import Pages, expand_stacks
from cytolake.screens.unlisted_files import report_unlisted
from cytolake.screens.well_labels import declare_labels
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

AUTO, REGEX = "auto", "regex"
PLATE_MAPS = ("platemap.csv", "platemap.tsv")
N_SHOWN_MAX = 20  # problems listed in one error; a folder of 100,000 lost files must not fill the terminal


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenSource:
    """One screen (study) to read: its folder and its layout."""

    screen: str
    """Name of the screen; part of every id derived from content."""
    path: str
    """Folder on a local or mounted disk, or `s3://bucket/folder`."""
    layout: str = AUTO
    """A preset of catalog/layouts, such as `ome-zarr`, `phenix` or `load-data`; `regex` for your own pattern; `auto`
    for the first preset that fits the folder."""
    pattern: str = ""
    """For `regex`: a regular expression that matches the whole path of an image, relative to `path`. Named groups:
    plate, well (or row and column, from 1; or sample, where there are no wells), site, channel, z, timepoint (0 is the
    first), acquisition (the folder of an imaging run); other groups say something about the well."""
    plate_map: str = ""
    """Table of the treatments of wells, or a table that lists the map of each plate, relative to `path`; empty means
    `platemap.csv` or `platemap.tsv` in the folder or next to the plate, if one exists."""
    label_columns: Mapping[str, str] = field(default_factory=dict)
    """Label to its column in the plate map or table, such as `{perturbation: Treatment}`; overrides the names of
    catalog/labels.yaml. Labels: perturbation, gene, pathway, guide, compound, dose, replicate, control."""
    index: str = "index.csv"
    """CSV that lists the images, relative to `path`: for `index-csv`, and for presets that read a table, whose usual
    names are looked for while this is index.csv."""
    path_prefix: tuple[str, ...] = ()
    """Prefixes of absolute paths and URLs in the screen's tables that stand for `path`; or `OLD -> NEW` for its
    folder NEW. Absolute paths without one are refused."""
    channels: tuple[str, ...] = ()
    """Channels that every site must have, by their name in the source or the vocabulary; a site without one keeps what
    it has, with a `missing_channel` problem. Empty means: those that most sites of its plate have."""
    channel_names: tuple[str, ...] = ()
    """`FOUND -> NAME` for channels that the source names by dye or number, such as `Alexa 488 -> ER`."""
    n_plates: int = N_PLATES
    """Plates that the images of `class-folders` without splits are dealt to, every class evenly; more where they do
    not fit. Holding out plates then holds out images."""
    z: Planes = "keep"
    """Focal planes: `keep` each as a site; `max`, the maximum over them; `sharpest`, the one most in focus."""
    pages: Pages = ""
    """Meaning of TIFF pages without ImageJ or OME metadata: channels, planes or times."""
    runs: Runs = "one"
    """Imaging runs of a plate: `one`, a plate is read once, and other runs of it are reported; `each`, every run is a
    plate of its own, with the run's folder in its name, such as `P1_1697` or `P1__2024-01-01-Measurement 1`."""
    illumination: str = ""
    """Illumination functions, by which raw counts are divided: a folder, or a path with {plate} and {channel}, relative
    to `path`. Empty: those that the screen's tables name, if they name any. `none`: not even these."""

    def __post_init__(self) -> None:
        if not self.screen.strip():
            raise ValueError("screen source: found an empty screen, expected the screen's name. Set `screen`.")
        if not self.path.strip():
            raise ValueError(f"screen {self.screen}: found an empty path, expected its folder. Set `path`.")
        if not self.layout.strip():
            raise ValueError(f"screen {self.screen}: found an empty layout, expected a preset or auto. Set `layout`.")
        if self.n_plates < 1:
            raise ValueError(f"screen {self.screen}: found n_plates {self.n_plates}, expected 1 or more.")
        if self.z not in ("keep", "max", "sharpest"):
            raise ValueError(f"screen {self.screen}: found z {self.z!r}, expected keep, max or sharpest. Correct `z`.")
        if self.pages not in ("", "channels", "planes", "times"):
            raise ValueError(f"screen {self.screen}: found pages {self.pages!r}, expected channels, planes or times.")
        if self.runs not in ("one", "each"):
            raise ValueError(f"screen {self.screen}: found runs {self.runs!r}, expected one or each. Correct `runs`.")
        if (self.layout == REGEX) != bool(self.pattern):
            raise ValueError(
                f"screen {self.screen}: found layout {self.layout!r} and pattern {self.pattern!r}, expected a pattern "
                "with layout regex and with no other. Set both `layout` and `pattern`, or neither."
            )
        check_label_columns(self.label_columns)
        try:
            renamed((), self.channel_names)
            if self.pattern:
                path_rule(self.pattern)
        except ValueError as error:
            raise ValueError(f"screen {self.screen}: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenScreen:
    """A screen's folder and its layout."""

    source: ScreenSource
    folder: SourceFolder
    preset: LayoutPreset
    files: list[str] | None = field(default=None, repr=False)
    """Relative paths of its files, if they were listed to find the layout."""


def list_plates(
    source: ScreenSource, vocabulary: Mapping[str, str] | None = None, presets: Sequence[LayoutPreset] = ()
) -> list[Plate]:
    """Plates of a screen, each with at least one site and with its `problems`.

    `list_screen` returns problems outside of plates as well.

    Args:
        vocabulary: Folded name to declared channel name, from `channel_names.alias_table`; channels are then
            named as declared. None keeps the names of the source.
        presets: The declared layouts, from `cytolake.catalog.declared.layout_presets`; without any, only the layouts
            with a reader in code are known.

    Raises:
        ScreenError: Nothing usable (missing, unreadable or empty folder, no plate with images), a table that cannot
            be read, or a reader that failed on it.
    """
    return list(list_screen(source, vocabulary, presets).plates)


def list_screen(
    source: ScreenSource,
    vocabulary: Mapping[str, str] | None = None,
    presets: Sequence[LayoutPreset] = (),
    image_of: ImageOf | None = None,
) -> Listing:
    """Plates of a screen, and problems outside of plates.

    Args:
        vocabulary: As for `list_plates`.
        presets: As for `list_plates`.
        image_of: Plates of this screen in the catalog, for plates that were imaged more than once.

    Raises:
        ScreenError: As for `list_plates`.
    """
    try:
        return plates_of(open_screen(source, presets), vocabulary, image_of)
    except (ScreenError, ImportError, MemoryError):
        raise
    except (OSError, PathRefusedError) as error:  # a bucket may fail while its plates are listed
        raise ScreenError(unreadable_folder(source.screen, source.path, error)) from error
    except Exception as error:  # an error in a reader must not stop other screens of a run
        raise ScreenError(reader_failed(source, error)) from error


def open_screen(
    source: ScreenSource, presets: Sequence[LayoutPreset] = (), folder: SourceFolder | None = None
) -> OpenScreen:
    """The folder of a screen and its layout, which is detected if the source does not set it.

    Args:
        presets: As for `list_plates`.
        folder: The screen's folder, if already open.

    Raises:
        ScreenError: The folder is missing, unreadable or empty, or looks like no preset.
    """
    presets = sorted(presets or BUILT_IN, key=lambda preset: preset.order)
    folder = folder or open_folder(source.screen, source.path)
    if source.layout == REGEX:
        rule = path_rule(source.pattern)
        own = LayoutPreset(name=REGEX, about="A pattern of your own.", looks_like=source.pattern, order=0, read=rule)
        return OpenScreen(source=source, folder=folder, preset=own)
    if source.layout != AUTO:
        named = next((preset for preset in presets if preset.name == source.layout), None)
        if named is None:
            names = ", ".join((AUTO, REGEX, *(preset.name for preset in presets)))
            raise ScreenError(
                folder_problem(
                    source.screen,
                    source.path,
                    "unknown_layout",
                    f"layout {source.layout!r}",
                    f"one of {names}",
                    "Correct `layout`.",
                )
            )
        return OpenScreen(source=source, folder=folder, preset=named)
    files: list[str] | None = None
    for preset in presets:
        if files is None and preset.read not in ("index-csv", "ome-zarr"):
            files = screen_files(folder)
        if try_layout(preset, source.screen, folder, files or (), source.index).fits:
            return OpenScreen(source=source, folder=folder, preset=preset, files=files)
    zarr = next((preset for preset in presets if preset.read == "ome-zarr"), None)
    if zarr is not None and has_zarr_groups(
        folder
    ):  # deeper: only where nothing else fits, since results may lie there
        return OpenScreen(source=source, folder=folder, preset=zarr, files=files)
    index_csv = next((preset for preset in presets if preset.read == "index-csv"), None)
    if index_csv is not None and folder.exists(source.index):  # to say what is wrong with it
        return OpenScreen(source=source, folder=folder, preset=index_csv, files=files)
    there = [as_text(name) for name, _ in folder.list_folder()]
    raise ScreenError(
        folder_problem(
            source.screen,
            source.path,
            "unknown_layout",
            f"{', '.join(there[:5])}{' ...' if len(there) > 5 else ''}",
            f"what one of the layouts {', '.join(preset.name for preset in presets)} looks like",
            f"Write an {source.index} with columns path, plate, well, site, channel; or set `layout` to regex and "
            "`pattern`; or correct `path`. `cytolake inspect` says why each layout does not fit.",
        )
    )


def plates_of(
    opened: OpenScreen, vocabulary: Mapping[str, str] | None = None, image_of: ImageOf | None = None
) -> Listing:
    """Plates of an opened screen; see `list_screen`.

    Raises:
        ScreenError: No plate with images, or a table that cannot be read.
        OSError: A bucket that cannot be read.
    """
    found, problems = plates_as_found(opened, image_of)
    if not found:
        left_out = len(problems) - N_SHOWN_MAX
        more = f" ({left_out} more like them)" if left_out > 0 else ""
        raise ScreenError(
            no_images(opened, f"See the problems below{more}." if problems else "Check `path` and `layout`."),
            *problems[:N_SHOWN_MAX],
        )
    return complete_plates(opened, found, problems, vocabulary or {})


def plates_as_found(opened: OpenScreen, image_of: ImageOf | None = None) -> tuple[list[Plate], list[Problem]]:
    """Plates with images, with channels named as in the source, and problems outside of plates.

    Names are unique: ids are derived from names, so a second plate of that name would overwrite the first.

    Raises:
        ScreenError: A table that cannot be read.
        OSError: A bucket that cannot be read.
    """
    source = opened.source
    plates, problems = list_by_layout(
        opened.preset,
        source.screen,
        opened.folder,
        opened.files,
        source.index,
        source.path_prefix,
        source.n_plates,
    )
    plates, repeated = choose_runs(plates, source.runs, image_of)
    plates, absent = hold_against_listing(opened.preset.read, source.screen, opened.folder, _files_of(opened), plates)
    return expand_stacks(plates, source.pages), problems + repeated + absent


def _files_of(opened: OpenScreen) -> list[str]:
    """All files of the screen; empty in a bucket whose layout names every image, because listing is expensive."""
    if opened.files is not None:
        return opened.files
    if opened.folder.is_remote and opened.preset.read in ("index-csv", "ome-zarr"):
        return []
    return screen_files(opened.folder)


def no_images(opened: OpenScreen, next_step: str) -> Problem:
    """The problem of a screen without a usable image."""
    return folder_problem(
        opened.source.screen,
        opened.source.path,
        "no_images",
        f"no plate with images, read as {opened.preset.name}",
        "at least one plate with a readable image",
        next_step,
    )


def complete_plates(
    opened: OpenScreen, found: Sequence[Plate], others: Sequence[Problem], vocabulary: Mapping[str, str]
) -> Listing:
    """The plates of `plates_as_found`, at least one, completed from outside their source.

    Adds declared channel names, illumination functions, problems of unused files, joined focal planes, plate map and
    batch.

    Raises:
        ScreenError: A plate map that cannot be read, or two channels that were given one name.
        OSError: A bucket that cannot be read.
    """
    source, folder, files = opened.source, opened.folder, opened.files
    problems = list(others)
    names = [_final_names(source, plate, vocabulary) for plate in found]
    plates = [
        report_other_assays(rename_channels(plate, old_to_new), old_to_new)
        for plate, old_to_new in zip(found, names, strict=True)
    ]
    required = tuple(canonical(channel, vocabulary) for channel in source.channels)
    plates = [report_missing_channels(plate, required) for plate in plates]
    if source.illumination and source.illumination != OFF and "{" not in source.illumination and files is None:
        files = screen_files(folder)
    plates = [
        correct_illumination(
            plate,
            folder,
            source.illumination,
            files or (),
            {new: old for old, new in old_to_new.items()},
            vocabulary,
        )
        for plate, old_to_new in zip(plates, names, strict=True)
    ]
    plates, unlisted = report_unlisted(source.screen, folder, _files_of(opened), plates, problems)
    problems += unlisted
    plates = [join_planes(plate, source.z) for plate in plates]
    samples = frozenset(site.well for plate in plates for site in plate.sites if not is_position(site.well))
    plate_map = _read_plate_map(source, folder, samples)
    if plate_map is not None:
        is_one_plate = opened.preset.read == "ome-zarr" and plates[0].source == str(folder.root)
        problems += plate_map.problems
        if not is_one_plate:
            problems += plates_without_images(plate_map, [_in_map(source, plate, plate_map) for plate in plates])
        plates = [annotate(plate, plate_map, _in_map(source, plate, plate_map)) for plate in plates]
    labelled = tuple(name_batch(declare_labels(plate, source.label_columns)) for plate in plates)
    problems += mixed_dose_units(source.screen, labelled)
    return Listing(plates=labelled, problems=tuple(problems))


def _final_names(source: ScreenSource, plate: Plate, vocabulary: Mapping[str, str]) -> dict[str, str]:
    try:
        return final_channel_names(plate, source.channel_names, vocabulary)
    except ValueError as error:
        raise ScreenError(
            folder_problem(
                source.screen,
                source.path,
                "duplicate_channel",
                str(error),
                "one name for each channel",
                f"Plate {plate.plate}.",
            )
        ) from error


def reader_failed(source: ScreenSource, error: Exception) -> Problem:
    """The problem of a screen whose reader raised an unexpected error."""
    return folder_problem(
        source.screen,
        source.path,
        "reader_failed",
        one_line(error),
        "a screen that its layout's reader can list",
        "Set another `layout`, or move aside the table or file that the message is about; and report the fault: "
        "a reader should have named the file.",
    )


def _read_plate_map(source: ScreenSource, folder: SourceFolder, samples: frozenset[str]) -> PlateMap | None:
    """The plate map that the source names, which must exist, or one found in the folder or next to a single plate."""
    names = (source.plate_map,) if source.plate_map else PLATE_MAPS
    folders = [folder]
    above, _, own = str(folder.root).rpartition("/")
    if own.endswith(".zarr") and above and not above.endswith(":/"):
        folders.append(SourceFolder(above))
    for place in folders:
        for name in names:
            if place.exists(name):
                return read_plate_map(place, name, source.screen, samples=samples)
    return read_plate_map(folder, source.plate_map, source.screen, samples=samples) if source.plate_map else None


def _in_map(source: ScreenSource, plate: Plate, plate_map: PlateMap) -> str:
    """The name of a plate in a map: its own, or, if each run is a plate, the name without the run.

    Runs named by an earlier version are looked up by their own name only.
    """
    if source.runs == "each" and plate.barcode and plate.plate not in plate_map.by_plate:
        return plate.barcode
    return plate.plate
