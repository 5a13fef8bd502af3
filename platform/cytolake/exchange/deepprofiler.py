"""Reads single-cell features of DeepProfiler (.npz) without unpickling anything."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytolake.exchange.profile_tables import LABELS
from cytolake.exchange.vector_tables import ExternalTable

_MOST_METADATA_BYTES = 1_000_000  # a dict of a few labels has 1 kB
_MARK = object()


def read_deepprofiler(paths: Sequence[str | Path]) -> ExternalTable:
    """Read single-cell features of DeepProfiler: one .npz for each site, in the order of the files.

    Plate, well and site come from the `metadata` in each file, a pickled dict. It is read as text and never unpickled:
    a pickle can run code. A site that is no plain text or number there is the name of its file.

    Args:
        paths: Files with `features` (cells, D) and `metadata`. A file of a site without cells may have 0 rows.

    Raises:
        ValueError: A file without these or whose metadata lacks plate or well, files of several widths, and what
            `ExternalTable` refuses.

    Source: file format of DeepProfiler, Moshkov et al. 2024, doi:10.1038/s41467-024-45999-1.
    """
    parts: list[NDArray[np.float32]] = []
    labels = {name: list[str]() for name in ("plate", "well", "site")}
    for path in paths:
        features, place = _deepprofiler_site(Path(path))
        if parts and features.shape[1] != parts[0].shape[1]:
            raise ValueError(
                f"{path}: {features.shape[1]} features, {parts[0].shape[1]} in {paths[0]}. Give files of one model."
            )
        parts.append(features)
        for name, values in labels.items():
            values += [place[name]] * len(features)
    if not parts:
        raise ValueError("no DeepProfiler files given, expected one or more .npz. Check the folder's pattern.")
    source = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    return ExternalTable(source, np.concatenate(parts), {name: tuple(values) for name, values in labels.items()})


def _deepprofiler_site(path: Path) -> tuple[NDArray[np.float32], dict[str, str]]:
    """Features (cells, D), and plate, well and site."""
    try:
        with np.load(path, allow_pickle=False) as file, zipfile.ZipFile(path) as archive:
            features = np.asarray(file["features"], dtype=np.float32)
            with archive.open("metadata.npy") as member:
                metadata = member.read(_MOST_METADATA_BYTES)
        found = _pickled_labels(metadata[metadata.index(b"\n") + 1 :])  # after the header of an .npy file
    except (KeyError, IndexError, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: not a DeepProfiler file ({error}). Expected .npz with `features`, numbers of (cells, features), "
            "and `metadata`, a dict with plate and well."
        ) from error
    if features.ndim != 2:
        raise ValueError(f"{path}: features of shape {features.shape}, expected (cells, features).")
    if missing := [name for name in ("plate", "well") if name not in found]:
        raise ValueError(
            f"{path}: metadata without {', '.join(missing)}; found {', '.join(sorted(found)) or 'none'} of "
            f"{', '.join(LABELS)}. Expected plain text as DeepProfiler writes it, such as Metadata_Plate."
        )
    return features, {"site": path.stem, **found}


def _pickled_labels(text: bytes) -> dict[str, str]:
    """The labels in the first dict of a pickle that has any.

    Opcodes are interpreted as far as dicts of plain values need it. What a pickle would import or call becomes None.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    dicts: list[list[tuple[Any, Any]]] = []
    for opcode, argument, _ in pickletools.genops(text):
        name, before, after = opcode.name, opcode.stack_before, opcode.stack_after
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            dicts.append([])
            stack.append(dicts[-1])
        else:
            taken = _taken(stack, before)
            if name in ("SETITEM", "SETITEMS", "DICT"):
                pairs = taken[-2:] if name == "SETITEM" else taken[taken.index(_MARK) + 1 :]
                whole = taken[0] if name != "DICT" and isinstance(taken[0], list) else []
                dicts += [whole] if name == "DICT" else []
                whole += zip(pairs[::2], pairs[1::2], strict=True)
                stack.append(whole)
            else:
                is_plain = not before and name != "GLOBAL" and isinstance(argument, str | int | float)
                stack += [argument if is_plain else None] * len(after)
    for pairs in dicts:
        labels = {
            str(key).lower().removeprefix("metadata_"): str(value)
            for key, value in pairs
            if isinstance(key, str) and isinstance(value, str | int | float) and value != ""
        }
        if found := {name: value for name, value in labels.items() if name in ("plate", "well", "site")}:
            return found
    return {}


def _taken(stack: list[Any], before: Sequence[Any]) -> list[Any]:
    """What an opcode takes off the stack."""
    n = len(before)
    if pickletools.markobject in before:  # what lies on the mark, the mark, and what is named before it
        mark = len(stack) - 1 - stack[::-1].index(_MARK)
        n = len(stack) - mark + list(before).index(pickletools.markobject)
    if n > len(stack):
        raise ValueError("its metadata is truncated")
    taken = stack[len(stack) - n :]
    del stack[len(stack) - n :]
    return taken
