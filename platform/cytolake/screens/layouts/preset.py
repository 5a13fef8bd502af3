"""Declared layout presets: how a kind of screen is recognised on disk, and how its plates are read.

A preset is data. It names a reader in code, or a regular expression over file paths, or the columns of a table.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

READERS = ("index-csv", "ome-zarr", "imagexpress", "cellvoyager", "class-folders")
"""Layouts that are read by code of their own."""
PLACES = ("plate", "well", "row", "column", "site", "channel", "z", "timepoint")
"""Named groups of a path pattern that locate an image. Every other group that no template uses says
something about its well."""
_COMPANIONS = ("", "harmony")


@dataclass(frozen=True, kw_only=True, slots=True)
class WellTable:
    """A table next to the images with the treatments of wells."""

    files: re.Pattern[str]
    """Matches the whole path of the table, relative to the screen's folder; the first that matches is read."""
    columns: Mapping[str, tuple[str, ...]]
    """Name in the templates below -> columns that may hold it; the first that the table has is taken."""
    plate: str = "{plate}"
    """Template of the plate's name, equal to the names of the images' plates."""
    well: str = "{well}"
    """Template of the well's position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathRule:
    """Images are found by their names."""

    pattern: re.Pattern[str]
    """Matches an image's whole path, relative to the screen's folder with forward slashes. Named groups: those of
    `PLACES`; `sample`, whose name stands for a well where there is none; `acquisition`, the folder of one imaging run,
    keeps two runs of one plate apart (see `acquisitions`)."""
    plate: str = ""
    """Template over the groups; empty is the group `plate`, or the screen folder's name where that matched nothing."""
    batch: str = ""
    """Template over the groups; empty where names do not say it."""
    first_row: int = 1
    """Number of the topmost row, where rows are numbers."""
    first_column: int = 1
    """Number of the leftmost column."""
    first_timepoint: int = 1
    """Number of the first timepoint."""
    channel: str = "{channel}"
    """Template of a channel's name; without a group `channel` the template itself."""
    channels: Mapping[str, str] = field(default_factory=dict)
    """Group `channel` -> name, for channels whose stain the layout fixes."""
    companion: str = ""
    """`harmony`: channel names and pixel size are in the Index.idx.xml next to the images."""
    wells: WellTable | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TableRule:
    """Images are listed by tables with one row for each site and columns for each channel."""

    files: tuple[re.Pattern[str], ...]
    """Match the whole path of a table. In each folder the first of them that matches a file is used, so that of two
    tables with the same images one is read."""
    file_name: re.Pattern[str]
    """Matches the columns that hold file names; the group `channel` names the channel."""
    folder_name: str = ""
    """Template, over the groups of `file_name`, of the column with the file's folder."""
    url: re.Pattern[str] | None = None
    """Matches the columns that hold whole addresses, group `channel`; used where a channel has no file name."""
    illumination_file: str = ""
    """Template of the column with the file name of the channel's illumination function."""
    illumination_folder: str = ""
    """Template of the column with its folder."""
    columns: Mapping[str, tuple[str, ...]]
    """plate, well, row, column, site, z, timepoint, batch, pixel_size_um -> columns that may hold it."""
    from_file_name: re.Pattern[str] | None = None
    """Found in a file name (anywhere in it); its groups fill in places that no column holds."""
    about_well: re.Pattern[str] | None = None
    """Matches columns that say something about the well; group `name`. Kept where a well has one value."""
    places: tuple[str, ...] = ("{folder}/{file}",)
    """Where a file may lie, in order of trial. Templates over `file` and `folder` as the table has them, `last_folder`
    (its last part), `plate`, and the groups of `from_file_name`."""
    first_row: int = 1
    first_column: int = 1
    first_timepoint: int = 0
    pixel_size_unit_um: float = 1.0
    """Micrometres for one unit of the pixel size column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutPreset:
    """One layout of screens on disk."""

    name: str
    about: str
    """One sentence for people."""
    looks_like: str
    """A path as this layout has it."""
    order: int
    """`auto` tries presets from low to high."""
    read: str | PathRule | TableRule
    """One of `READERS`, or a rule."""


def parse_preset(declared: Mapping[str, Any]) -> LayoutPreset:
    """A preset from its YAML: `name`, `about`, `looks_like`, `order` and one of `reader`, `paths`, `table`.

    Raises:
        ValueError: A field that is missing, unknown, of the wrong type, or a pattern that is no regular expression.
    """
    if not isinstance(declared, Mapping):
        raise ValueError(f"layout (no name): found {declared!r}, expected fields such as name. Correct the preset.")
    name = str(declared.get("name", ""))
    unknown = sorted(set(declared) - {"name", "about", "looks_like", "order", "reader", "paths", "table"})
    kinds = [kind for kind in ("reader", "paths", "table") if kind in declared]
    if unknown or len(kinds) != 1 or not name or not isinstance(declared.get("order"), int):
        raise ValueError(
            f"layout {name or '(no name)'}: found {', '.join(sorted(map(str, declared)))}; expected name, about, "
            "looks_like, order (a whole number) and one of reader, paths, table. Correct the preset."
        )
    where = f"layout {name}"
    read: str | PathRule | TableRule
    if kinds == ["reader"]:
        read = str(declared["reader"])
        if read not in READERS:
            raise ValueError(f"{where}: found reader {read!r}, expected one of {', '.join(READERS)}.")
    elif kinds == ["paths"]:
        read = _path_rule(where, declared["paths"])
    else:
        read = _table_rule(where, declared["table"])
    return LayoutPreset(
        name=name,
        about=str(declared.get("about", "")),
        looks_like=str(declared.get("looks_like", "")),
        order=int(declared["order"]),
        read=read,
    )


def path_rule(pattern: str) -> PathRule:
    """The rule of a free pattern, as `ScreenSource.pattern` gives it.

    Timepoints count as the names do; images of a pattern that names no channel are all of one channel, `ch1`.

    Raises:
        ValueError: No regular expression, or it names neither `well`, nor `row` and `column`, nor `sample`.
    """
    compiled = _pattern("pattern", pattern)
    channel = "{channel}" if "channel" in compiled.groupindex else "ch1"
    rule = PathRule(pattern=compiled, first_timepoint=0, channel=channel)
    _check_places("pattern", rule)
    return rule


@cache
def template_names(template: str) -> frozenset[str]:
    """Names in a template such as `{experiment}_{number}`."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name is not None)


def _path_rule(where: str, declared: Any) -> PathRule:
    values = _checked(where, declared, PathRule)
    values["pattern"] = _pattern(f"{where}.pattern", values.get("pattern"))
    values["channels"] = {str(key): str(value) for key, value in (values.get("channels") or {}).items()}
    if values.get("companion", "") not in _COMPANIONS:
        raise ValueError(f"{where}: found companion {values['companion']!r}, expected {' or '.join(_COMPANIONS[1:])}.")
    if values.get("wells") is not None:
        inner = _checked(f"{where}.wells", values["wells"], WellTable)
        inner["files"] = _pattern(f"{where}.wells.files", inner.get("files"))
        inner["columns"] = _column_names(f"{where}.wells.columns", inner.get("columns"))
        values["wells"] = WellTable(**inner)
        for template in (values["wells"].plate, values["wells"].well):
            _check_template(f"{where}.wells", template, set(values["wells"].columns))
    rule = PathRule(**values)
    for template in (rule.plate, rule.batch, rule.channel):
        _check_template(where, template, {*rule.pattern.groupindex, "channel"})
    _check_places(where, rule)
    return rule


def _table_rule(where: str, declared: Any) -> TableRule:
    values = _checked(where, declared, TableRule)
    for name in ("file_name", "url", "from_file_name", "about_well"):
        if name in values or name == "file_name":
            values[name] = _pattern(f"{where}.{name}", values.get(name))
    values["files"] = tuple(_pattern(f"{where}.files", each) for each in values.get("files") or ())
    values["columns"] = _column_names(f"{where}.columns", values.get("columns"))
    if "places" in values:
        values["places"] = tuple(str(each) for each in values["places"])
        for template in values["places"]:
            groups = values["from_file_name"].groupindex if "from_file_name" in values else {}
            _check_template(f"{where}.places", template, {"folder", "last_folder", "file", "plate", *groups})
    rule = TableRule(**values)
    for name in ("file_name", "url"):
        pattern: re.Pattern[str] | None = getattr(rule, name)
        if pattern is not None and "channel" not in pattern.groupindex:
            raise ValueError(f"{where}.{name}: found no group channel in {pattern.pattern!r}. Add (?P<channel>...).")
    for template in (rule.folder_name, rule.illumination_file, rule.illumination_folder):
        _check_template(where, template, set(rule.file_name.groupindex))
    return rule


def _checked(where: str, declared: Any, kind: type[PathRule | TableRule | WellTable]) -> dict[str, Any]:
    names = [each.name for each in fields(kind)]
    if not isinstance(declared, Mapping) or set(declared) - set(names):
        found = ", ".join(map(str, declared)) if isinstance(declared, Mapping) else repr(declared)
        raise ValueError(f"{where}: found {found}, expected fields out of {', '.join(names)}. Correct the preset.")
    return dict(declared)


def _pattern(where: str, text: Any) -> re.Pattern[str]:
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: found {text!r}, expected a regular expression. Write it.")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{where}: found {text!r}, expected a regular expression: {error}. Correct it.") from error


def _column_names(where: str, declared: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(declared, Mapping) or not all(isinstance(names, list) for names in declared.values()):
        raise ValueError(f"{where}: found {declared!r}, expected name: [column, ...]. Correct the preset.")
    return {str(key): tuple(str(name) for name in names) for key, names in declared.items()}


def _check_template(where: str, template: str, names: set[str]) -> None:
    used = template_names(template)
    if used - names:
        raise ValueError(
            f"{where}: template {template!r} uses {', '.join(sorted(used - names))}, "
            f"expected {', '.join(sorted(names))}. Correct the preset."
        )


def _check_places(where: str, rule: PathRule) -> None:
    groups = set(rule.pattern.groupindex)
    if not groups & {"well", "sample"} and not {"row", "column"} <= groups:
        raise ValueError(
            f"{where}: found groups {', '.join(sorted(groups)) or 'none'} in {rule.pattern.pattern!r}, expected well, "
            "or row and column, or sample. Name them, such as (?P<well>[A-P][0-9]{2})."
        )
