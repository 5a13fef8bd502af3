"""Images, fields and wells of a layout's own listing, which `listings` compares with the folder.

Harmony: the `Image` elements of Index.idx.xml. MetaXpress: the wells, sites, wavelengths and timepoints selected in the
HTD file. A table of wells (RxRx): its rows. Tables of images, CellVoyager's records and OME-Zarr metadata are checked
row by row by their readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cytolake.screens.layouts.htd import HTD_SUFFIX, HtdSettings, htd_settings
from cytolake.screens.layouts.preset import PathRule, TableRule, WellTable
from cytolake.screens.layouts.xml_elements import XmlElement, XmlRefusedError, xml_elements
from cytolake.screens.listings import (
    Listed,
    absent_of_listing,
    report_not_listed,
    report_wells_without_image,
)
from cytolake.screens.plate import Plate, Problem, ScreenError, SiteImage
from cytolake.screens.positions import site_name, well_at, well_name
from cytolake.screens.tables import read_table
from cytolake.storage.files import UnreachableError
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

_INDEX = re.compile(r"(?:.*/)?index(?:[._-][a-z0-9._-]*)?\.xml", re.IGNORECASE)
_SITE_COLUMNS = ("site", "field", "fov")
_WAVELENGTH = re.compile(r"_w([0-9]+?)(?:[0-9A-F]{8}(?:-[0-9A-F]{4}){3}-[0-9A-F]{12})?\.tiff?", re.IGNORECASE)


def hold_against_listing(
    read: str | PathRule | TableRule,
    screen: str,
    folder: SourceFolder,
    files: Sequence[str] | None,
    plates: Sequence[Plate],
) -> tuple[list[Plate], list[Problem]]:
    """The plates with problems for what their listing names and what is absent, and problems of absent plates.

    A listing that cannot be read is reported where the layout's reader needs it, and names nothing here.

    Args:
        read: How the layout is read.
        folder: Of the screen.
        files: Paths of all its files, relative to it; None where the layout does not look at them.
        plates: With images, channels named as the source has them.
    """
    found, problems = list(plates), list[Problem]()
    if files is not None and isinstance(read, PathRule):
        if read.companion == "harmony":
            cut: set[str] = set()
            listed = list(_of_harmony(folder, files, plates, read, cut))
            found, absent = absent_of_listing(screen, listed, plates, _is_among(set(files)))
            found = [_report_files(plate, folder, listed, cut) for plate in found]
            problems += absent
        if read.wells is not None:
            listed = _of_well_table(screen, folder, files, read.wells)
            found, absent = absent_of_listing(screen, listed, found, _has_site(plates))
            found = [_report_fields(plate, listed) for plate in found]
            problems += absent
    elif files is not None and read == "imagexpress":
        listed = []
        for number, plate in enumerate(plates):
            settings = _settings_of(folder, files, plate)
            if settings is not None:
                taken = _Taken.of(plate.sites)
                listed += _of_htd(settings, plate, taken)
                found[number] = report_not_listed(plate, settings.file, _beyond_htd(settings, taken))
        found, _ = absent_of_listing(screen, listed, found, lambda _: False)
    elif read == "ome-zarr":
        found = [report_wells_without_image(plate) for plate in plates]
    return found, problems


def _is_among(files: set[str]) -> Callable[[Listed], bool]:
    return lambda listed: listed.file in files


def _has_site(plates: Sequence[Plate]) -> Callable[[Listed], bool]:
    sites = {(site.plate, site.well, site.site) for plate in plates for site in plate.sites}
    wells = {place[:2] for place in sites}

    def has_site(listed: Listed) -> bool:
        if listed.site:
            return (listed.plate, listed.well, listed.site) in sites
        return (listed.plate, listed.well) in wells

    return has_site


def _of_harmony(
    folder: SourceFolder, files: Sequence[str], plates: Sequence[Plate], rule: PathRule, cut: set[str]
) -> Iterator[Listed]:
    """Images of every index; a plate is that of the images in the same folder. `cut` gets indexes that cannot be read
    to their end."""
    plate_of: dict[str, str] = {}
    for plate in plates:
        for site in plate.sites:
            for path in site.image_paths:
                plate_of.setdefault(folder.relative(path).rpartition("/")[0], plate.plate)
    done: set[str] = set()
    for file in files:
        if not _INDEX.fullmatch(file):
            continue
        place = file.rpartition("/")[0]
        inside = f"{place}/Images" if place else "Images"
        images_folder = place if place in plate_of or inside not in plate_of else inside
        if images_folder in done:
            continue
        name = plate_of.get(images_folder) or _name_of_folder(folder, place, rule)
        below = images_folder + "/" if images_folder else ""
        names: dict[str, str] = {}
        n_before = len(done)
        try:
            for element in xml_elements(folder.read_bytes(file), frozenset({"Entry", "Image"})):
                number = (element.attributes.get("ChannelID") or element.child("ChannelID")).strip().lstrip("0")
                if element.child("ChannelName"):
                    names.setdefault(number, element.child("ChannelName"))
                listed = _harmony_image(element, name, below, names.get(number) or f"ch{number}", file)
                if listed is not None:
                    done.add(images_folder)
                    yield listed
        except UnreachableError:
            raise
        except (PathRefusedError, OSError, XmlRefusedError):
            cut.add(file)
            if len(done) > n_before:  # what stands before the cut is listed
                done.add(images_folder)


def _report_files(plate: Plate, folder: SourceFolder, listed: Sequence[Listed], cut: set[str]) -> Plate:
    """The plate with a problem for images in the folders of whole indexes that these do not name."""
    named: dict[str, set[str]] = {}
    listing: dict[str, str] = {}
    for each in listed:
        place = each.file.rpartition("/")[0]
        named.setdefault(place, set()).add(each.file)
        listing.setdefault(place, each.listing)
    used = {folder.relative(path) for site in plate.sites for path in site.image_paths}
    for place, file in listing.items():
        if file not in cut:
            extra = sorted(path for path in used if path.rpartition("/")[0] == place and path not in named[place])
            plate = report_not_listed(plate, file, extra)
    return plate


def _report_fields(plate: Plate, listed: Sequence[Listed]) -> Plate:
    """The plate with a problem for fields, or wells, that the table of wells has no row of."""
    if not listed:
        return plate
    fields = {(each.well, each.site) for each in listed if each.plate == plate.plate}
    has_sites = any(site for _, site in fields)
    there = dict.fromkeys((site.well, site.site if has_sites else "") for site in plate.sites)
    extra = [f"{well}, site {site}" if site else f"well {well}" for well, site in there if (well, site) not in fields]
    return report_not_listed(plate, listed[0].listing, extra)


def _harmony_image(element: XmlElement, plate: str, below: str, channel: str, file: str) -> Listed | None:
    """The image of an element; None for one that names none that lies in this folder."""
    url = element.child("URL").replace("\\", "/")
    well = well_at(element.child("Row"), element.child("Col"))
    if element.name != "Image" or not url or not well or ":" in url or url.startswith("/") or ".." in url.split("/"):
        return None
    plane = element.child("PlaneID")
    return Listed(
        plate=plate,
        well=well,
        site=site_name(element.child("FieldID")),
        channel=channel,
        file=below + url,
        detail=f"plane {plane}" if plane else "",
        listing=file,
    )


def _name_of_folder(folder: SourceFolder, place: str, rule: PathRule) -> str:
    """What the plate of an images folder without images would be named, by the rule for an image in it."""
    match = rule.pattern.fullmatch(f"{place}/r01c01f01p01-ch1sk1fk1fl1.tiff" if place else "")
    if match is not None and match.groupdict().get("plate"):
        return match["plate"]
    return place.rpartition("/")[2] or folder.name


def _of_well_table(screen: str, folder: SourceFolder, files: Sequence[str], table: WellTable) -> list[Listed]:
    """Rows of the table: a field of each, or a well where it has no column of sites."""
    file = next((path for path in files if table.files.fullmatch(path)), None)
    if file is None:
        return []
    try:
        columns, rows, _ = read_table(folder, file, screen)
    except ScreenError:  # raised and reported where the table is read for what it says about wells
        return []
    taken = {name: next((each for each in names if each in columns), None) for name, names in table.columns.items()}
    site_column = next((column for column in columns if column.lower() in _SITE_COLUMNS), None)
    if None in taken.values():
        return []
    listed = []
    for row in rows:
        values = {name: row.cells[column] for name, column in taken.items() if column is not None}
        well = well_name(table.well.format_map(values))
        site = row.cells[site_column] if site_column is not None else ""
        if well:
            plate = table.plate.format_map(values)
            listed.append(Listed(plate=plate, well=well, site=site_name(site) if site else "", listing=file))
    return listed


@dataclass(frozen=True, slots=True)
class _Taken:
    """Images of an ImageXpress plate: well, site, wavelength, timepoint."""

    images: set[tuple[str, str, int, int]]
    channels: dict[int, str]

    @classmethod
    def of(cls, sites: Sequence[SiteImage]) -> _Taken:
        images, channels = set(), dict[int, str]()
        for site in sites:
            for channel, path in zip(site.channels, site.image_paths, strict=False):
                match = _WAVELENGTH.search(path)
                wavelength = int(match[1]) if match else 1
                images.add((site.well, site.site, wavelength, site.timepoint))
                channels.setdefault(wavelength, channel)
        return cls(images, channels)


def _settings_of(folder: SourceFolder, files: Sequence[str], plate: Plate) -> HtdSettings | None:
    """The HTD file of a plate's folder; in a folder of several plates, the one that is named after the plate."""
    top = folder.relative(plate.source)
    below = "" if top == "." else top + "/"
    candidates = [path for path in files if path.lower().endswith(HTD_SUFFIX) and path.startswith(below)]
    own = [path for path in candidates if PurePosixPath(path).stem == plate.plate]
    if not own and len({PurePosixPath(path).stem for path in candidates}) > 1:
        return None
    candidates = sorted(own or candidates, key=lambda path: (path.count("/"), path))
    return next((found for path in candidates if (found := htd_settings(folder, path)) is not None), None)


def _beyond_htd(settings: HtdSettings, taken: _Taken) -> list[str]:
    """Images of wells, sites, wavelengths or timepoints that were not selected."""
    sites = settings.site_names({image[1] for image in taken.images})
    return [
        f"{well}, site {site}, w{wavelength}, timepoint {timepoint + 1}"
        for well, site, wavelength, timepoint in sorted(taken.images)
        if well not in settings.wells
        or site not in sites
        or wavelength not in settings.wavelengths
        or timepoint >= settings.n_timepoints
    ]


def _of_htd(settings: HtdSettings, plate: Plate, taken: _Taken) -> list[Listed]:
    """What the HTD file of a plate has selected and what no image was found of.

    It does not say which wavelength was taken in which focal plane or timepoint: a wavelength is expected at the
    timepoints at which some well has it. A timepoint that no well has is one thing that is absent, not one for each
    field.
    """
    sites = settings.site_names({site.site for site in plate.sites})
    timepoints = {timepoint for *_, timepoint in taken.images}
    at = {(wavelength, timepoint) for _, _, wavelength, timepoint in taken.images}
    imaged_sites = {image[:2] for image in taken.images}
    listed = []

    def absent(well: str, site: str, channel: str = "", detail: str = "") -> None:
        listed.append(
            Listed(plate=plate.plate, well=well, site=site, channel=channel, detail=detail, listing=settings.file)
        )

    for well in settings.wells:
        for site in sites:
            if (well, site) not in imaged_sites:
                absent(well, site)
                continue
            for wavelength, timepoint in sorted(at):
                if (well, site, wavelength, timepoint) not in taken.images:
                    detail = f"timepoint {timepoint + 1}" if len(timepoints) > 1 else ""
                    absent(well, site, taken.channels[wavelength], detail)
            for wavelength, name in settings.wavelengths.items():
                if wavelength not in taken.channels:
                    absent(well, site, name, f"w{wavelength}")
    for timepoint in range(settings.n_timepoints):
        if timepoint not in timepoints:
            absent("", "", "", f"timepoint {timepoint + 1}")
    return listed
