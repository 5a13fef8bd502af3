"""Suggests settings of a screen's source with which an ingest finds more images, wells or stains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cytolake.screens.channel_names import ARROW, canonical, without_cycle
from cytolake.screens.layouts import LayoutPreset
from cytolake.screens.path_prefixes import below_screen
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.sources import AUTO, ScreenSource
from cytolake.storage.natural_order import natural_order
from cytolake.storage.source_folder import SourceFolder

N_FOCUS_SITES = 4
"""Sites whose planes are read, of a screen with z = sharpest."""
_N_PREFIX_TRIALS = 20
_N_SHOWN = 12


def advice_on_source(
    source: ScreenSource,
    trials: Sequence[tuple[LayoutPreset, Any]],
    used: str,
    plates: Sequence[Plate],
    vocabulary: Mapping[str, str],
    prefix: str,
) -> list[str]:
    """Suggestions for the source: layout, pattern, path prefix, channel names, focal planes."""
    advice = []
    if prefix:
        advice.append(
            f"The tables have absolute paths that begin with {prefix}, where this screen's folder was: set "
            f"path_prefix to {[prefix]!r}."
        )
    if not used and source.layout == AUTO:
        advice.append(
            "No layout fits. Set layout to regex and pattern to a regular expression over the paths below this folder, "
            r"such as '(?P<plate>[^/]+)/(?P<well>[A-P][0-9]{2})_s(?P<site>[0-9]+)_(?P<channel>[^_]+)\.tif'. "
            r"Without wells, use the group sample; files with all channels need no group channel: "
            r"'(?P<sample>[^/]+)\.tif'."
        )
    others = [preset.name for preset, trial in trials if trial.fits and preset.name != used]
    if used and others:
        advice.append(f"The folder also looks like {', '.join(others)}; set layout to have it read so.")
    declared = set(vocabulary.values())
    channels = dict.fromkeys(channel for plate in plates for channel in plate.channels)
    unknown = [channel for channel in channels if without_cycle(canonical(channel, vocabulary)) not in declared]
    if unknown and declared:
        shown = sorted(unknown, key=natural_order)[:_N_SHOWN]
        advice.append(
            f"Unknown stains: {', '.join(shown)}. If you know what they show, set channel_names to pairs such as "
            f"{[shown[0] + ARROW + 'DNA']!r}."
        )
    if source.z == "keep" and any(site.z for plate in plates for site in plate.sites):
        advice.append("Each focal plane is a site of its own; set z to max (projection) or sharpest to have one.")
    if source.z == "sharpest":
        advice += _focus_advice(plates)
    return advice


def prefix_that_helps(folder: SourceFolder, source: ScreenSource, problems: Sequence[Problem]) -> str:
    """Prefix of refused absolute paths without which they lead to files below the screen's folder; empty for none."""
    helped: Counter[str] = Counter()
    refused = [problem.file for problem in problems if problem.problem == "path_outside_screen"]
    for file in refused[:_N_PREFIX_TRIALS]:
        path = below_screen(file, folder.root, source.path_prefix)
        parts = path.split("/")
        if ".." in parts or not (path.startswith("/") or ":" in parts[0]):
            continue
        for i in range(1, len(parts)):
            rest = "/".join(parts[i:])
            if rest and folder.exists(rest):
                helped["/".join(parts[:i])] += 1
                break
    return helped.most_common(1)[0][0] if helped else ""


def _focus_advice(plates: Sequence[Plate]) -> list[str]:
    """On how many sampled sites the measures of focus disagree."""
    from cytolake.screens.images.focus import MEASURES  # scipy takes a moment to import
    from cytolake.screens.images.pixels import choose_plane

    series = [site for plate in plates for site in plate.sites if site.z == "sharpest" and max(site.planes) > 1]
    if not series:
        return []
    last = len(series) - 1
    sampled = [series[i] for i in sorted({round(i * last / max(N_FOCUS_SITES - 1, 1)) for i in range(N_FOCUS_SITES)})]
    n_read, split = 0, []
    for site in sampled:
        try:
            chosen, choice = choose_plane(site)
        except ScreenError:  # an ingest puts such a site into quarantine
            continue
        n_read += 1
        if choice is not None and not choice.is_unanimous:
            names = [site.plane_names[plane] for plane in choice.of_measures]
            of_each = ", ".join(f"{m.replace('_', ' ')} {name}" for m, name in zip(MEASURES, names, strict=True))
            split.append(f"plate {site.plate}, well {site.well}, site {site.site}: {of_each}; {chosen.z} is taken")
    if not n_read:
        return []
    if not split:
        return [f"Sharpest plane: all measures of focus agree on {_count(n_read, 'sampled site')}."]
    return [
        f"Sharpest plane: the measures of focus disagree on {len(split)} of {_count(n_read, 'sampled site')}. The "
        f"plane with the best median rank is taken there: {split[0]}. Where planes far apart are named, look at the "
        "images, or set z to max."
    ]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
