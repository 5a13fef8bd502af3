"""Where a screen is, and the listing of its plates. Reads metadata and tables only, never pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cytolake.screens.acquisitions import ImageOf, Runs, choose_runs
from cytolake.screens.channel_assays import ambiguous_names, names_otherwise
from cytolake.screens.channel_names import ARROW, canonical, canonical_names, fold, renamed
from cytolake.screens.dose_units import mixed_dose_units
from cytolake.screens.images.focal_planes import Planes, join_planes
from cytolake.screens.images.illumination import OFF, correct_illumination
from cytolake.screens.images.image_files import one_line
from cytolake.screens.label_vocabulary import LABELS, fold_column, label_vocabulary
from cytolake.screens.layouts import (
    BUILT_IN,
    LayoutPreset,
    as_text,
    has_zarr_groups,
    list_by_layout,
    path_rule,
    screen_files,
    try_layout,
)
from cytolake.screens.layouts.class_folders import N_PLATES
from cytolake.screens.layouts.listed_images import hold_against_listing
from cytolake.screens.plate import Listing, Plate, Problem, ScreenError, SiteImage
from cytolake.screens.plate_map import PlateMap, plates_without_images, read_plate_map, wells_of_plate
from cytolake.screens.positions import is_position
from cytolake.screens.stacks import Pages, expand_stacks
from cytolake.screens.unlisted_files import report_unlisted
from cytolake.screens.well_labels import declare_labels
from cytolake.storage import files as storage
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

AUTO, REGEX = "auto", "regex"
PLATE_MAPS = ("platemap.csv", "platemap.tsv")
N_SHOWN_MAX = 20  # problems told in one error; a folder of 100,000 lost files must not fill the screen


@dataclass(frozen=True, kw_only=True, slots=True)
class ScreenSource:
    """One screen (study) to read: a folder, and how it is laid out."""

    screen: str
    """Name of the screen; part of every content-derived id."""
    path: str
    """Folder on a local or mounted disk, or `s3://bucket/folder`."""
    layout: str = AUTO
    """A preset of catalog/layouts, such as `ome-zarr`, `phenix` or `load-data`; `regex` with a pattern of your own;
    `auto` takes the first preset that the folder looks like."""
    pattern: str = ""
    """For `regex`: a regular expression that matches the whole path of an image, relative to `path`. Named groups:
    plate, well (or row and column, from 1; or sample, where there are no wells), site, channel, z, timepoint (0 is the
    first), acquisition (the folder of an imaging run); other groups say something about the well."""
    plate_map: str = ""
    """Table of what was done to each well, or one that lists the map of each plate, relative to `path`; empty means
    `platemap.csv` or `platemap.tsv` there or next to the plate, where one exists."""
    label_columns: Mapping[str, str] = field(default_factory=dict)
    """Label -> column of the plate map or table that holds it, such as `{perturbation: Treatment}`, before the names of
    catalog/labels.yaml. Labels: perturbation, gene, pathway, guide, compound, dose, replicate, control."""
    index: str = "index.csv"
    """CSV that lists the images, relative to `path`: for `index-csv`, and for presets that read a table, whose usual
    names are looked for while this is index.csv."""
    path_prefix: tuple[str, ...] = ()
    """Beginnings of absolute paths and URLs in the screen's tables that stand for `path`; or `OLD -> NEW` for its
    folder NEW. Absolute paths without one are refused."""
    channels: tuple[str, ...] = ()
    """Channels that every site must have, in the source's or the vocabulary's spelling; a site without one keeps what
    it has, with a `missing_channel` problem. Empty means: those that most sites of its plate have."""
    channel_names: tuple[str, ...] = ()
    """`FOUND -> NAME` for channels that the source names by their dye or number, such as `Alexa 488 -> ER`."""
    n_plates: int = N_PLATES
    """Plates that the images of `class-folders` without splits are dealt to, every class evenly; more where they do
    not fit. Holding out plates then holds out images."""
    z: Planes = "keep"
    """Focal planes: `keep` each as a site; `max`, the maximum over them; `sharpest`, the one most in focus."""
    pages: Pages = ""
    """What the pages of a TIFF are that no ImageJ or OME metadata explain: channels, planes or times."""
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
    """A screen's folder, with the layout that it is read by."""

    source: ScreenSource
    folder: SourceFolder
    preset: LayoutPreset
    files: list[str] | None = field(default=None, repr=False)
    """Relative paths of its files, where they had to be listed to find the layout."""


def list_plates(
    source: ScreenSource, vocabulary: Mapping[str, str] | None = None, presets: Sequence[LayoutPreset] = ()
) -> list[Plate]:
    """Plates of a screen, each with at least one site; what is wrong with them is in their `problems`.

    What is wrong with the screen outside of them, `list_screen` gives.

    Args:
        source: The screen.
        vocabulary: Folded spelling -> declared channel name, from `channel_names.alias_table`; channels are then
            spelled as declared. None leaves them as the source spells them.
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
    """Plates of a screen, and problems that belong to none of them.

    Args:
        source: The screen.
        vocabulary: As for `list_plates`.
        presets: As for `list_plates`.
        image_of: What the catalog has of this screen, for plates that were imaged more than once.

    Raises:
        ScreenError: As for `list_plates`.
    """
    try:
        return plates_of(open_screen(source, presets), vocabulary, image_of)
    except (ScreenError, ImportError, MemoryError):
        raise
    except (OSError, PathRefusedError) as error:  # a bucket answers late, too: while its plates are listed
        raise ScreenError(unreadable_folder(source, error)) from error
    except Exception as error:  # a fault of a reader costs its screen, not the others of a run
        raise ScreenError(reader_failed(source, error)) from error


def open_screen(
    source: ScreenSource, presets: Sequence[LayoutPreset] = (), folder: SourceFolder | None = None
) -> OpenScreen:
    """The folder of a screen and its layout, found out where the source leaves that open.

    Args:
        source: The screen.
        presets: As for `list_plates`.
        folder: The screen's, where it is open already.

    Raises:
        ScreenError: The folder is missing, unreadable or empty, or looks like no preset.
    """
    presets = sorted(presets or BUILT_IN, key=lambda preset: preset.order)
    folder = folder or open_folder(source)
    if source.layout == REGEX:
        rule = path_rule(source.pattern)
        own = LayoutPreset(name=REGEX, about="A pattern of your own.", looks_like=source.pattern, order=0, read=rule)
        return OpenScreen(source=source, folder=folder, preset=own)
    if source.layout != AUTO:
        named = next((preset for preset in presets if preset.name == source.layout), None)
        if named is None:
            names = ", ".join((AUTO, REGEX, *(preset.name for preset in presets)))
            raise ScreenError(
                _problem(source, "unknown_layout", f"layout {source.layout!r}", f"one of {names}", "Correct `layout`.")
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
        _problem(
            source,
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
    """Plates with images, with channels as the source spells them, and problems that belong to none of them.

    Each name is there once: ids come from names, so a second plate of that name would overwrite the first.

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
    """All files of the screen; none in a bucket whose layout names every image by itself, where a listing is dear."""
    if opened.files is not None:
        return opened.files
    if opened.folder.is_remote and opened.preset.read in ("index-csv", "ome-zarr"):
        return []
    return screen_files(opened.folder)


def no_images(opened: OpenScreen, next_step: str) -> Problem:
    """What a screen without a single usable image is told as."""
    return _problem(
        opened.source,
        "no_images",
        f"no plate with images, read as {opened.preset.name}",
        "at least one plate with a readable image",
        next_step,
    )


def complete_plates(
    opened: OpenScreen, found: Sequence[Plate], others: Sequence[Problem], vocabulary: Mapping[str, str]
) -> Listing:
    """The plates, at least one, that `plates_as_found` gave, in its order, with what their source does not say itself.

    That is: channels named as declared, illumination functions, files that no site uses, focal planes joined, plate
    map and batch.

    Raises:
        ScreenError: A plate map that cannot be read, or two channels that were given one name.
        OSError: A bucket that cannot be read.
    """
    source, folder, files = opened.source, opened.folder, opened.files
    problems = list(others)
    names = [_names_of_channels(source, plate, vocabulary) for plate in found]
    plates = [
        _report_other_assays(_rename_channels(plate, renamed), renamed)
        for plate, renamed in zip(found, names, strict=True)
    ]
    required = tuple(canonical(channel, vocabulary) for channel in source.channels)
    plates = [_report_missing_channels(plate, required) for plate in plates]
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
        plates = [_annotate(plate, plate_map, _in_map(source, plate, plate_map)) for plate in plates]
    labelled = tuple(_name_batch(declare_labels(plate, source.label_columns)) for plate in plates)
    problems += mixed_dose_units(source.screen, labelled)
    return Listing(plates=labelled, problems=tuple(problems))


def _names_of_channels(source: ScreenSource, plate: Plate, vocabulary: Mapping[str, str]) -> dict[str, str]:
    """Source spelling -> final name of each channel of a plate."""
    try:
        given = renamed(plate.channels, source.channel_names)
    except ValueError as error:
        raise ScreenError(
            _problem(source, "duplicate_channel", str(error), "one name for each channel", f"Plate {plate.plate}.")
        ) from error
    declared = canonical_names(tuple(given.values()), vocabulary)
    other = names_otherwise(tuple(given.values()), vocabulary) if vocabulary else {}
    by_user = {pair.partition(ARROW)[0].strip() for pair in source.channel_names}
    return {
        name: other[new].otherwise if new in other and name not in by_user else declared[new]
        for name, new in given.items()
    }


def _report_other_assays(plate: Plate, names: Mapping[str, str]) -> Plate:
    """The plate with a problem for each channel that is not what its short name means in the declared assay."""
    problems = [
        Problem(
            screen=plate.screen,
            plate=plate.plate,
            channel=new,
            problem="ambiguous_channel",
            found=f"channel {old} on a plate with {', '.join(other for other in names if other != old)}",
            expected=f"stains of {ambiguous.assay} with it, in which {old} is declared",
            next_step=f"It is named {new}, an unknown stain. Set channel_names to say what it is: "
            f"['{old}{ARROW}NAME'], or ['{old}{ARROW}{old}'] for that of {ambiguous.assay}.",
        )
        for old, new in names.items()
        if (ambiguous := ambiguous_names().get(fold(old))) is not None and ambiguous.otherwise == new
    ]
    return replace(plate, problems=(*plate.problems, *problems)) if problems else plate


def check_label_columns(label_columns: Mapping[str, str]) -> None:
    """That columns are declared for labels that wells have.

    Raises:
        ValueError: One is for something else.
    """
    if unknown := sorted(set(label_columns) - set(LABELS)):
        raise ValueError(
            f"found label_columns for {', '.join(unknown)}, expected labels out of {', '.join(LABELS)}. Correct them: "
            "label first, then its column."
        )


def open_folder(source: ScreenSource) -> SourceFolder:
    """The folder of a screen, which is there and holds something.

    Raises:
        ScreenError: `missing_folder`, `not_a_folder`, `empty_folder`, `unreadable_folder`, `unsupported_path` (a URI
            of another scheme than s3).
    """
    if storage.is_uri(source.path):
        if not source.path.lower().startswith("s3://"):
            raise ScreenError(
                _problem(
                    source,
                    "unsupported_path",
                    source.path.partition("://")[0] + "://",
                    "a folder on a local or mounted disk, or s3://bucket/folder",
                    "Mount the storage, or copy the screen.",
                )
            )
        try:
            folder = SourceFolder(source.path)
            names = folder.list_folder()
        except (OSError, PathRefusedError) as error:
            raise ScreenError(unreadable_folder(source, error)) from error
        if not names:
            raise ScreenError(
                _problem(
                    source,
                    "empty_folder",
                    "no object below this prefix",
                    "plates or images",
                    "Correct `path`, or copy the screen there; upper and lower case matter in a prefix.",
                )
            )
        return folder
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
    try:
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise ScreenError(unreadable_folder(source, error)) from error
    if is_empty:
        raise ScreenError(
            _problem(
                source, "empty_folder", "an empty folder", "plates or images", "Copy the screen, or correct `path`."
            )
        )
    return SourceFolder(path)


def unreadable_folder(source: ScreenSource, error: Exception) -> Problem:
    """What a screen's folder that cannot be listed or read is told as."""
    is_missing = isinstance(error, FileNotFoundError)
    return _problem(
        source,
        "missing_folder" if is_missing else "unreadable_folder",
        str(error) or type(error).__name__,
        "a folder that can be listed and read",
        "Correct `path`; for a bucket check AWS_ENDPOINT_URL and the AWS_* credentials."
        if storage.is_uri(source.path)
        else "Check its permissions.",
    )


def reader_failed(source: ScreenSource, error: Exception) -> Problem:
    """What a screen is reported as whose reader stopped at something that it does not know."""
    return _problem(
        source,
        "reader_failed",
        one_line(error),
        "a screen that its layout's reader can list",
        "Set another `layout`, or move aside the table or file that the message is about; and report the fault: "
        "a reader should have named the file.",
    )


def _problem(source: ScreenSource, problem: str, found: str, expected: str, next_step: str) -> Problem:
    return Problem(
        screen=source.screen, file=source.path, problem=problem, found=found, expected=expected, next_step=next_step
    )


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


def _read_plate_map(source: ScreenSource, folder: SourceFolder, samples: frozenset[str]) -> PlateMap | None:
    """The plate map that is named, which must exist, or the one that lies there; looked for beside a lone plate too."""
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
    """The name by which a map has a plate: its own, or, where each run is a plate, that of the plate without its run.

    A run that an earlier version named so keeps what that version found in the map: its own name alone.
    """
    if source.runs == "each" and plate.barcode and plate.plate not in plate_map.by_plate:
        return plate.barcode
    return plate.plate


def _annotate(plate: Plate, plate_map: PlateMap, name: str) -> Plate:
    """The plate with its rows of the map; what an index CSV said about a well fills in what the map leaves open."""
    rows, problems = wells_of_plate(plate_map, name, plate.sites)
    from_index = {row["well"]: row for row in plate.wells}
    merged = [_filled_in(row, from_index.pop(row["well"], {})) for row in rows]
    return replace(plate, wells=(*merged, *from_index.values()), problems=(*plate.problems, *problems))


def _filled_in(row: Mapping[str, str], others: Mapping[str, str]) -> dict[str, str]:
    """A row of the map with the cells of others, of columns that it lacks or says nothing in.

    `Metadata_gene` and `gene` are one column.
    """
    if not others:
        return dict(row)
    says_nothing = label_vocabulary().says_nothing
    said = {fold_column(column) for column, cell in row.items() if not says_nothing(cell)}
    added = {column: cell for column, cell in others.items() if fold_column(column) not in said}
    kept = {c: cell for c, cell in row.items() if not (says_nothing(cell) and c in added)}
    return {**added, **kept}


def default_batch(screen: str, name: str) -> str:
    """The batch of plates whose source names none, by the plate (or the split): not that of another screen's plates."""
    return f"{screen}/{name}"


def label_plate(plate: Plate, plate_map: PlateMap) -> Plate:
    """The plate with what a plate map says of it: wells, batch, and where the two disagree as problems."""
    return _with_named_batch(_annotate(plate, plate_map, plate.plate))


def _name_batch(plate: Plate) -> Plate:
    """The plate with the batch that its wells name, or one of its own."""
    named = _with_named_batch(plate)
    return named if _batches(plate) else replace(plate, batch=default_batch(plate.screen, plate.batch))


def _batches(plate: Plate) -> Counter[str]:
    """How many wells name each batch."""
    vocabulary = label_vocabulary()
    column = vocabulary.place_column(dict.fromkeys(column for row in plate.wells for column in row), "batch")
    return Counter(batch for row in plate.wells if (batch := vocabulary.value(row.get(column or "", ""))))


def _with_named_batch(plate: Plate) -> Plate:
    """The plate with the batch that most of its wells name; as it is where none does."""
    batches = _batches(plate)
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
