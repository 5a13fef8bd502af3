"""Modality of a channel: fluorescence, brightfield or phase contrast. QC rules depend on it.

catalog/channels.yaml declares the modality of stains; a QC config or profile may override it. An undeclared name is
recognised by its pixels if they are unambiguous, and has the declared default otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from cytolake.catalog.declared import channel_vocabulary
from cytolake.catalog.errors import CatalogError

Modality = Literal["fluorescence", "brightfield", "phase"]
MODALITIES: tuple[str, ...] = get_args(Modality)
TRANSMITTED = ("brightfield", "phase")
"""Modalities with a bright background, in which objects are darker and brighter."""


def declared_modality(channel: str) -> str:
    """Modality of a stain of catalog/channels.yaml; empty for an undeclared name."""
    vocabulary = channel_vocabulary()
    return vocabulary.modalities.get(vocabulary.canonical(channel), "")


def is_transmitted(channel: str, percentiles: Sequence[float]) -> bool:
    """Whether an image of the channel is of transmitted light.

    Args:
        percentiles: 1st, 50th and 99th percentile of its counts; used for undeclared names.
    """
    modality = declared_modality(channel)
    if modality:
        return modality in TRANSMITTED
    return bool(_looks_transmitted(np.asarray([percentiles], np.float64))[0])


def modality_of(channel: str, percentiles_N3: NDArray[np.float64], set_by_hand: Mapping[str, str]) -> str:
    """Modality of one channel of a plate.

    Args:
        percentiles_N3: (N, 3), 1st, 50th and 99th percentile of each site, counts. An undeclared name is
            brightfield if most sites look like it.
        set_by_hand: Channel to modality, from `parse_modalities`; overrides the declared one.
    """
    known = set_by_hand.get(channel) or declared_modality(channel)
    if known:
        return known
    measured = percentiles_N3[np.isfinite(percentiles_N3).all(axis=1)]
    if len(measured) and np.mean(_looks_transmitted(measured)) > 0.5:
        return "brightfield"
    return channel_vocabulary().default_modality


def parse_modalities(pairs: Sequence[str], place: str) -> dict[str, str]:
    """Channel to modality, from texts such as `Phase1: phase`.

    Args:
        pairs: The texts.
        place: Origin of the texts, for error messages.

    Raises:
        CatalogError: A text of another form, an unknown modality, or a repeated channel.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, colon, modality = (part.strip() for part in pair.rpartition(":"))
        channel = channel_vocabulary().canonical(name)
        if not colon or not channel or modality not in MODALITIES or channel in found:
            raise CatalogError(
                f"{place}: found {pair!r}, expected each channel once as CHANNEL: MODALITY, such as 'TL20: phase'; a "
                f"modality is {', '.join(MODALITIES)}. Correct the entry."
            )
        found[channel] = modality
    return found


def _looks_transmitted(percentiles_N3: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(N,), True where most pixels are at the bright end: objects are darker than the background.

    Stained cells on a dark background leave the median near the dark end; a crowded field moves it to the middle.
    """
    p01, p50, p99 = percentiles_N3.T
    is_dark_tailed = p50 - p01 > 2 * (p99 - p50)
    return np.asarray(is_dark_tailed & (p50 - p01 > 0.1 * p50), np.bool_)
