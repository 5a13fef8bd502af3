"""Metadata of OME-Zarr plates, wells, images and arrays (JSON), read without pixels.

Not read through ngio or zarr, because a plate has thousands of groups: in a bucket they are fetched side
by side, and nothing in them is believed before it is checked. Consolidated metadata is not read: it goes stale.

Source: https://ngff.openmicroscopy.org/0.4 and /0.5; Zarr v2 (`.zattrs`, `.zarray`) and v3 (`zarr.json`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cytolake.screens.length_units import micrometres
from cytolake.storage.files import UnreachableError, read_each

METADATA_BYTES_MAX = 16 * 2**20  # a plate of 1,536 wells has 100 KB
GROUP_FILES = ("zarr.json", ".zattrs")
ARRAY_FILES = ("zarr.json", ".zarray")

AXES = "tczyx"
_LENGTH_MAX = 2**40


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFacts:
    """What the metadata of one image group say of its full resolution."""

    level: str
    """Path of the array, relative to the group."""
    axes: str
    """Letters of `AXES`, in the order of the array's axes."""
    shape: tuple[int, ...]
    channels: tuple[str, ...]
    pixel_size_um: float | None

    def n(self, axis: str) -> int:
        """Length of an axis; 1 where the image has no such axis."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1


def read_groups(paths: Sequence[str]) -> list[dict[str, Any] | Exception]:
    """OME metadata of each group: `plate`, `well` or `multiscales` and `omero`; empty where there are none.

    What cannot be read comes back as the OSError or ValueError that says why.

    Raises:
        UnreachableError: The storage failed, which says nothing about the one group.
    """
    return [_ome(document) if isinstance(document, dict) else document for document in _documents(paths, GROUP_FILES)]


def read_arrays(paths: Sequence[str]) -> list[dict[str, Any] | Exception]:
    """Metadata of each Zarr array; empty where there are none. Errors as for `read_groups`."""
    return _documents(paths, ARRAY_FILES)


def level_of(ome: Mapping[str, Any]) -> str:
    """Path of an image's full resolution, relative to its group.

    Raises:
        ValueError: No image, or a path that leaves the group.
    """
    datasets = _list(_first_multiscale(ome).get("datasets"))
    level = datasets[0].get("path") if datasets and isinstance(datasets[0], dict) else None
    if not isinstance(level, str):
        raise ValueError("no path of the image's full resolution")
    parts = level.split("/")
    if level.startswith("/") or "\\" in level or ":" in level or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"full resolution at {level!r}, expected a path inside of the image group")
    return level


def image_facts(ome: Mapping[str, Any], array: Mapping[str, Any]) -> ImageFacts:
    """Facts of an image from the metadata of its group and of its full resolution.

    Raises:
        ValueError: They contradict each other, or are none.
    """
    multiscale, level = _first_multiscale(ome), level_of(ome)
    shape = lengths(array.get("shape"), f"shape of {level}")
    names = [axis.get("name") if isinstance(axis, dict) else axis for axis in _list(multiscale.get("axes"))]
    axes = "".join(name if isinstance(name, str) and name in AXES and len(name) == 1 else "?" for name in names)
    if "?" in axes or len(set(axes)) != len(axes) or not {"y", "x"} <= set(axes) or len(axes) != len(shape):
        raise ValueError(f"axes {names} for an array of shape {shape}, expected each of t, c, z, y, x at most once")
    facts = ImageFacts(level=level, axes=axes, shape=shape, channels=(), pixel_size_um=None)
    labels = _labels(ome)
    if labels and len(labels) != facts.n("c"):
        raise ValueError(f"{len(labels)} channel labels for {facts.n('c')} channels")
    return ImageFacts(
        level=level,
        axes=axes,
        shape=shape,
        channels=_channel_names(labels, facts.n("c")),
        pixel_size_um=_pixel_size_um(multiscale, axes),
    )


def lengths(found: Any, what: str) -> tuple[int, ...]:
    """One to six whole numbers above 0, such as a shape.

    Raises:
        ValueError: Something else; it names `what`.
    """
    numbers = _list(found)
    if not 1 <= len(numbers) <= 6 or any(type(n) is not int or not 0 < n < _LENGTH_MAX for n in numbers):
        raise ValueError(f"{what}: found {str(found)[:80]}, expected whole numbers above 0")
    return tuple(numbers)


def _documents(paths: Sequence[str], names: Sequence[str]) -> list[dict[str, Any] | Exception]:
    """Content of the first of `names` that is there at each path."""
    found: list[dict[str, Any] | Exception] = [{} for _ in paths]
    waiting = list(range(len(paths)))
    # a plate's groups are all of one Zarr version: look for the name that the first one has
    if waiting and not isinstance(read_each([f"{paths[0]}/{names[0]}"], METADATA_BYTES_MAX)[0], bytes):
        names = [*reversed(names)]
    for name in names:
        contents = read_each([f"{paths[i]}/{name}" for i in waiting], METADATA_BYTES_MAX)
        for i, content in zip(waiting, contents, strict=True):
            if isinstance(content, UnreachableError):  # taken for a damaged image, the site would be lost for ever
                raise content
            found[i] = _parsed(content, f"{paths[i]}/{name}")
        absent = (FileNotFoundError, NotADirectoryError)
        waiting = [i for i, content in zip(waiting, contents, strict=True) if isinstance(content, absent)]
    for i in waiting:
        found[i] = {}
    return found


def _parsed(content: bytes | OSError, path: str) -> dict[str, Any] | Exception:
    if isinstance(content, OSError):
        return content
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        return ValueError(f"{path}: {type(error).__name__}: {str(error)[:100]}")
    return document if isinstance(document, dict) else ValueError(f"{path}: found no JSON object")


def _ome(document: Mapping[str, Any]) -> dict[str, Any]:
    if "zarr_format" not in document:  # of .zattrs
        return dict(document)
    attributes = document.get("attributes")
    ome = attributes.get("ome") if isinstance(attributes, dict) else None
    return ome if isinstance(ome, dict) else {}


def _first_multiscale(ome: Mapping[str, Any]) -> dict[str, Any]:
    found = _list(ome.get("multiscales"))
    if not found or not isinstance(found[0], dict):
        raise ValueError("no image metadata (multiscales)")
    return found[0]


def _labels(ome: Mapping[str, Any]) -> list[str]:
    omero = ome.get("omero")
    channels = _list(omero.get("channels")) if isinstance(omero, dict) else []
    return [str((channel.get("label") if isinstance(channel, dict) else None) or "") for channel in channels]


def _channel_names(labels: Sequence[str], n_channels: int) -> tuple[str, ...]:
    """Channel labels, with c0, c1, ... where there are none; the second of two equal ones gets its number added."""
    if n_channels > 4096:
        raise ValueError(f"{n_channels} channels, expected at most 4096")
    names: list[str] = []
    for i in range(n_channels):
        label = (labels[i].strip() if labels else "") or f"c{i}"
        while label in names:
            label = f"{label} c{i}"  # "A c2" may be a label of its own
        names.append(label)
    return tuple(names)


def _pixel_size_um(multiscale: Mapping[str, Any], axes: str) -> float | None:
    """Micrometres for one pixel; None where the axes carry no unit, since a scale of 1 then means nothing."""
    x = axes.index("x")
    axis = _list(multiscale.get("axes"))[x]
    factor = micrometres(axis.get("unit")) if isinstance(axis, dict) else None
    if factor is None:
        return None
    size = factor
    for transformations in (
        multiscale["datasets"][0].get("coordinateTransformations"),
        multiscale.get("coordinateTransformations"),
    ):
        for scale in _scales(_list(transformations)):
            if len(scale) != len(axes) or not isinstance(scale[x], (int, float)) or not math.isfinite(scale[x]):
                raise ValueError(f"scale {str(scale)[:80]} for axes {axes}, expected one number for each")
            size *= float(scale[x])
    return size if size > 0 else None


def _scales(transformations: Iterable[Any]) -> list[list[Any]]:
    return [_list(one.get("scale")) for one in transformations if isinstance(one, dict) and one.get("type") == "scale"]


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []
