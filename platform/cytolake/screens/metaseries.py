"""Metadata of MetaXpress, in its images (MetaSeries properties) and next to them (HTD files)."""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Sequence
from typing import cast

import tifffile

from cytolake.screens.length_units import micrometres
from cytolake.storage import files as storage
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

_PROPERTY = re.compile(r'<(?:custom-)?prop id="([^"]+)" type="[^"]*" value="([^"]*)"')
_HTD_BYTES_MAX = 2**24


def read_metaseries(path: str) -> dict[str, str] | None:
    """MetaSeries properties of one file's first page; empty where it has none, None where it cannot be read.

    Raises:
        UnreachableError: The storage failed, which says nothing about the file.
    """
    try:
        with storage.open_file(path) as file, tifffile.TiffFile(file) as tif:
            description = cast(tifffile.TiffPage, tif.pages[0]).description
    except storage.UnreachableError:
        raise
    except Exception:  # tifffile raises what it likes; the damage is reported when the file's pixels are read
        return None
    if not description.lstrip().startswith("<MetaData>"):
        return {}
    return {name: html.unescape(value).strip() for name, value in _PROPERTY.findall(description)}


def pixel_size_um(said: dict[str, str]) -> float | None:
    """Micrometres for one pixel; None where the file does not say, or has no calibration."""
    unit = micrometres(said.get("spatial-calibration-units", ""))
    if unit is None or said.get("spatial-calibration-state", "on") != "on":
        return None
    try:
        size_um = float(said["spatial-calibration-x"]) * unit
    except (KeyError, ValueError):
        return None
    return size_um if 0 < size_um < float("inf") else None


def read_htd(folder: SourceFolder, file: str) -> dict[str, list[str]]:
    """Values of each key of an HTD file, in lower case; empty where it cannot be read.

    Raises:
        UnreachableError: The storage failed.
    """
    try:
        text = folder.read_bytes(file, _HTD_BYTES_MAX).decode("latin-1")  # its description is in the camera's codepage
    except storage.UnreachableError:
        raise
    except (PathRefusedError, OSError):
        return {}
    rows = csv.reader(text.replace("\0", "").splitlines(), skipinitialspace=True)
    return {row[0].strip().lower(): [value.strip() for value in row[1:]] for row in rows if row}


def htd_files(files: Sequence[str]) -> dict[str, list[str]]:
    """HTD files by their folder."""
    found: dict[str, list[str]] = {}
    for path in files:
        if path[-4:].lower() == ".htd":
            found.setdefault(path.rpartition("/")[0], []).append(path)
    return found
