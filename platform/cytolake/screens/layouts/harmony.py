"""Index.idx.xml of an Opera Phenix or Operetta export: the stains and the pixel size of its numbered channels.

It lies in the folder of the images or in the one around it, under this or another name, such as `Index.ref.xml` or
`index.xml`. Of several the first that names a channel is taken; the usual names come first.

Harmony 5 writes them into each `Image`, Harmony 6 and 7 once into the `Entry` of a `Map`. Both are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from cytolake.screens.layouts.xml_elements import XmlRefusedError, xml_elements
from cytolake.screens.length_units import micrometres
from cytolake.screens.plate import Problem
from cytolake.storage.files import UnreachableError
from cytolake.storage.source_folder import PathRefusedError, SourceFolder

INDEX_NAMES = ("Index.idx.xml", "Index.xml", "index.idx.xml", "index.xml")
"""The usual names, which come before others."""
_INDEX = re.compile(r"index(?:[._-][a-z0-9._-]*)?\.xml", re.IGNORECASE)
_ALIKE_MAX = 2000  # images in a row without a new channel; Harmony 5 repeats the same few channels for each image


@dataclass(frozen=True, kw_only=True, slots=True)
class HarmonyChannels:
    """Channels of an index, by their numbers as text without leading zeros."""

    names: dict[str, str]
    pixel_size_um: str = ""
    """As text; empty where the index does not say, or says different sizes."""


def read_harmony_channels(
    folder: SourceFolder, images_folder: str, screen: str
) -> tuple[HarmonyChannels, list[Problem]]:
    """Channels of the index of the images; empty, without a problem, if there is no index.

    Args:
        images_folder: The folder that holds the images, relative to it; empty for itself.
    """
    said = HarmonyChannels(names={})
    problems: list[Problem] = []
    for file in _index_files(folder, images_folder):
        said, unreadable = _read_index(folder, file, screen)
        problems += unreadable
        if said.names:
            break
    return said, problems


def _index_files(folder: SourceFolder, images_folder: str) -> Iterator[str]:
    above, _, own = images_folder.rpartition("/")
    for place in (images_folder, above) if own.lower() == "images" else (images_folder,):
        names = [name for name, is_folder in folder.list_folder(place) if not is_folder and _INDEX.fullmatch(name)]
        for name in sorted(names, key=lambda name: INDEX_NAMES.index(name) if name in INDEX_NAMES else 99):
            yield f"{place}/{name}" if place else name


def _read_index(folder: SourceFolder, file: str, screen: str) -> tuple[HarmonyChannels, list[Problem]]:
    names: dict[str, str] = {}
    sizes_um: set[str] = set()
    n_alike = 0
    try:
        for element in xml_elements(folder.read_bytes(file), frozenset({"Entry", "Image"})):
            channel = element.attributes.get("ChannelID") or element.child("ChannelID")
            name = element.child("ChannelName")
            resolution = element.child_element("ImageResolutionX")
            before = (len(names), len(sizes_um))
            if channel and name:
                names.setdefault(_number(channel), name)
            if resolution is not None:
                sizes_um.add(_micrometres(resolution.text, resolution.attributes.get("Unit", "")))
            n_alike = n_alike + 1 if before == (len(names), len(sizes_um)) else 0
            if n_alike == _ALIKE_MAX and names:
                break
    except UnreachableError:
        raise
    except (PathRefusedError, OSError, XmlRefusedError) as error:
        return HarmonyChannels(names=names), [
            Problem(
                screen=screen,
                file=file,
                problem="unreadable_file",
                found=str(error),
                expected="the index that Harmony writes next to the images",
                next_step="Copy it again; until then channels have numbers for names.",
            )
        ]
    sizes_um.discard("")
    return HarmonyChannels(names=names, pixel_size_um=sizes_um.pop() if len(sizes_um) == 1 else ""), []


def _number(text: str) -> str:
    return text.strip().lstrip("0") or "0"


def _micrometres(text: str, unit: str) -> str:
    factor = micrometres(unit)
    try:
        return f"{float(text) * factor:.6g}" if factor else ""
    except ValueError:
        return ""
