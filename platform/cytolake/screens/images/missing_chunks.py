"""Missing chunks of an OME-Zarr image: by the standard they mean the fill value, in camera images usually data loss.

A camera has an offset, so that no part of an image is exactly the fill value; a copy that stopped leaves chunks out.
Writers may leave out chunks of nothing but the fill value, so what is there is kept, reported, and judged by quality
control; an image of which no chunk is stored has no pixels.

Source: Zarr v2 and v3, "chunk storage": an absent chunk is uninitialised and reads as the fill value.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field

from cytolake.screens.plate import Problem, SiteImage


@dataclass(slots=True)
class ChunksRead:
    """Files or objects of one array that reads have looked for: chunks, or shards of them. Grows with every read."""

    axes: str
    """Letters of t, c, z, y, x in the order of the array's axes."""
    shape: tuple[int, ...]
    """Of one stored chunk or shard, in the order of the axes."""
    fill_value: str
    present: set[str] = field(default_factory=set)
    """Their keys, relative to the array."""
    absent: set[str] = field(default_factory=set)

    def channel_counts(self, keys: set[str], n_channels: int) -> Counter[int]:
        """How many of the keys are of each channel."""
        counts: Counter[int] = Counter()
        for key in keys:
            place = [int(number) for number in re.findall(r"[0-9]+", key)]  # "0.0.3", "0/0/3" or "c/0/0/3"
            if len(place) != len(self.axes):
                continue
            first, n = 0, 1
            if "c" in self.axes:
                axis = self.axes.index("c")
                first, n = place[axis] * self.shape[axis], self.shape[axis]
            counts.update(range(first, min(first + n, n_channels)))
        return counts


def missing_chunks(site: SiteImage, chunks: ChunksRead) -> tuple[Problem, ...]:
    """A problem for each channel that lacks chunks; one for the site where no chunk of any channel is stored."""
    if not chunks.absent:
        return ()
    n_absent = chunks.channel_counts(chunks.absent, len(site.channels))
    n_present = chunks.channel_counts(chunks.present, len(site.channels))
    if not n_present:
        n_all = len(chunks.absent)
        return (
            _problem(site, "", f"none of {n_all} chunks", "Copy the image again; until then the site is left out."),
        )
    return tuple(
        _problem(
            site,
            channel,
            f"{n_absent[i]} of {n_absent[i] + n_present[i]} chunks are not stored: they read as {chunks.fill_value}",
            "Copy the image again from its source. The site is kept as it is, and judged by quality control.",
        )
        for i, channel in enumerate(site.channels)
        if n_absent[i]
    )


def is_nothing_stored(chunks: ChunksRead) -> bool:
    """Whether chunks were looked for and none was there."""
    return bool(chunks.absent) and not chunks.present


def fill_value_text(fill_value: object) -> str:
    """A fill value as people read it."""
    if isinstance(fill_value, float) and math.isnan(fill_value):
        return "NaN"
    return "0" if fill_value is None else str(fill_value)


def _problem(site: SiteImage, channel: str, found: str, next_step: str) -> Problem:
    return site.problem(
        channel=channel,
        file=site.image_paths[0],
        problem="missing_chunk",
        found=found,
        expected="every chunk of an image of counts",
        next_step=next_step,
    )
