"""One spelling for each stain, whatever a vendor or lab calls it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

_SEPARATORS = re.compile(r"[\s_\-]+")
_WAVELENGTH_PREFIX = re.compile(r"^w\d+ ")  # MetaXpress: "w1 Hoechst"


def fold(name: str) -> str:
    """Spelling that two names share when they differ only in case, spaces, hyphens and underscores."""
    return _SEPARATORS.sub(" ", name).strip().casefold()


def alias_table(vocabulary: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Folded spelling -> declared name, from declared name -> other spellings.

    Raises:
        ValueError: One spelling is claimed by two names.
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
    """The declared name of a channel, or the name as it is (trimmed) where the vocabulary does not know it.

    Args:
        name: As the source spells it; a MetaXpress wavelength prefix such as `"w1 "` is not part of the stain.
        vocabulary: Folded spelling -> declared name, from `alias_table`.
    """
    folded = fold(name)
    for spelling in (folded, _WAVELENGTH_PREFIX.sub("", folded)):
        if spelling in vocabulary:
            return vocabulary[spelling]
    return name.strip()


def canonical_names(names: Sequence[str], vocabulary: Mapping[str, str]) -> dict[str, str]:
    """Source spelling -> declared name for all channels of one plate.

    Where two different channels would become one name (`GFP` and `EGFP` of one plate), both keep their own spelling:
    merging them would lose an image.
    """
    declared = {name: canonical(name, vocabulary) for name in names}
    times = list(declared.values())
    return {name: new if times.count(new) == 1 else name for name, new in declared.items()}
