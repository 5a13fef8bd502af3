"""Canonical names of stains for the names that vendors and labs use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_SEPARATORS = re.compile(r"[\s_\-]+")
_CYCLE = re.compile(r"(.+)(_cycle[0-9]+)")  # of a later multiplexing cycle, see `ome_zarr_acquisitions`
_PREFIX = re.compile(r"^(?:w[0-9]+ |orig)")  # MetaXpress: "w1 Hoechst"; CellProfiler: "OrigDNA"
ARROW = " -> "


def fold(name: str) -> str:
    """A form that is equal for names that differ only in case, spaces, hyphens and underscores."""
    return _SEPARATORS.sub(" ", name).strip().casefold()


def alias_table(vocabulary: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Folded name to declared name, from declared name to its other names.

    Raises:
        ValueError: One name is listed under two declared names.
    """
    table: dict[str, str] = {}
    for name, aliases in vocabulary.items():
        for spelling in (name, *aliases):
            owner = table.setdefault(fold(spelling), name)
            if owner != name:
                raise ValueError(
                    f"channel spelling {spelling!r}: found under both {owner} and {name}, expected under one. "
                    "Remove it from one of them in the channel vocabulary."
                )
    return table


def canonical(name: str, vocabulary: Mapping[str, str]) -> str:
    """The declared name of a channel; an unknown name is returned trimmed.

    Args:
        name: As the source spells it; a MetaXpress wavelength such as `"w1 "` before the stain is not part of it, nor
            is CellProfiler's `Orig`.
        vocabulary: Folded spelling -> declared name, from `alias_table`.
    """
    if match := _CYCLE.fullmatch(name.strip()):
        return canonical(match[1], vocabulary) + match[2]
    folded = fold(name)
    for spelling in (folded, _PREFIX.sub("", folded)):
        if spelling in vocabulary:
            return vocabulary[spelling]
    return name.strip()


def without_cycle(name: str) -> str:
    """The stain of a channel of a later multiplexing cycle: `DNA` for `DNA_cycle2`; any other name as it is."""
    match = _CYCLE.fullmatch(name)
    return match[1] if match else name


def canonical_names(names: Sequence[str], vocabulary: Mapping[str, str]) -> dict[str, str]:
    """Source spelling -> declared name for all channels of one plate.

    Where two different channels would become one name (`GFP` and `EGFP` of one plate), both keep their own spelling:
    merging them would lose an image.
    """
    declared = {name: canonical(name, vocabulary) for name in names}
    times = list(declared.values())
    return {name: new if times.count(new) == 1 else name for name, new in declared.items()}


def renamed(names: Sequence[str], pairs: Sequence[str]) -> dict[str, str]:
    """Source spelling -> name given to it by `FOUND -> NAME` pairs, or itself.

    Raises:
        ValueError: A pair without an arrow, or two channels that would get one name.
    """
    wanted = dict(_pair(pair) for pair in pairs)
    given = {name: wanted.get(fold(name), name) for name in names}
    twice = sorted({new for new in given.values() if list(given.values()).count(new) > 1})
    if twice:
        raise ValueError(f"channel_names: found two channels for {', '.join(twice)}, expected one. Correct a pair.")
    return given


def _pair(text: str) -> tuple[str, str]:
    found, arrow, name = text.partition(ARROW)
    if not arrow or not found.strip() or not name.strip():
        raise ValueError(f"channel_names: found {text!r}, expected FOUND -> NAME, such as 'Alexa 488 -> ER'.")
    return fold(found), name.strip()
