"""Channels of a plate: their final names, and problems of ambiguous and missing channels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cytolake.screens.channel_assays import ambiguous_names, names_otherwise
from cytolake.screens.channel_names import ARROW, canonical_names, fold, renamed
from cytolake.screens.plate import Plate, Problem, SiteImage


def final_channel_names(plate: Plate, channel_names: Sequence[str], vocabulary: Mapping[str, str]) -> dict[str, str]:
    """Name of each channel in the source to its name in the catalog.

    Args:
        plate: With channels as the source names them.
        channel_names: `FOUND -> NAME` pairs of the screen.
        vocabulary: Folded spelling to declared channel name.

    Raises:
        ValueError: Two channels would get one name.
    """
    given = renamed(plate.channels, channel_names)
    declared = canonical_names(tuple(given.values()), vocabulary)
    other = names_otherwise(tuple(given.values()), vocabulary) if vocabulary else {}
    by_user = {pair.partition(ARROW)[0].strip() for pair in channel_names}
    return {
        name: other[new].otherwise if new in other and name not in by_user else declared[new]
        for name, new in given.items()
    }


def report_other_assays(plate: Plate, names: Mapping[str, str]) -> Plate:
    """The plate with a problem for each channel whose short name means another stain in the declared assay."""
    problems = [
        plate.problem(
            channel=new,
            problem="ambiguous_channel",
            found=f"channel {old} on a plate with {', '.join(other for other in names if other != old)}",
            expected=f"stains of {ambiguous.assay} with it, in which {old} is declared",
            next_step=f"It is named {new}, an unknown stain. Set channel_names to say what it is: "
            f"['{old}{ARROW}NAME'], or ['{old}{ARROW}{old}'] for that of {ambiguous.assay}.",
        )
        for old, new in names.items()
        if (ambiguous := ambiguous_names().get(fold(old))) is not None and ambiguous.otherwise == new
    ]
    return replace(plate, problems=(*plate.problems, *problems)) if problems else plate


def rename_channels(plate: Plate, names: Mapping[str, str]) -> Plate:
    """The plate with renamed channels, also in its sites and problems."""
    if all(old == new for old, new in names.items()):
        return plate
    return replace(
        plate,
        channels=tuple(names[channel] for channel in plate.channels),
        sites=tuple(replace(site, channels=tuple(names[channel] for channel in site.channels)) for site in plate.sites),
        problems=tuple(
            replace(problem, channel=names.get(problem.channel, problem.channel)) for problem in plate.problems
        ),
    )


def report_missing_channels(plate: Plate, required: tuple[str, ...]) -> Plate:
    """Add a problem `missing_channel`: one per channel that no site of the plate has, else one per site without it.

    If `required` is empty, a site should have the channels of more than half of the plate's sites with the same kind of
    focal plane: an ImageXpress plate may take some channels in one plane and others in many.
    """
    if required:
        usual = dict.fromkeys((True, False), required)
    else:
        usual = {has_z: _usual_channels([s for s in plate.sites if bool(s.z) is has_z]) for has_z in (True, False)}
    nowhere = [channel for channel in required if channel not in plate.channels]
    reported = {(problem.well, problem.site, problem.channel) for problem in plate.problems}
    problems = [_missing_channel(plate, channel, plate.channels) for channel in nowhere]
    for site in plate.sites:
        problems += [
            _missing_channel(plate, channel, site.channels, site)
            for channel in usual[bool(site.z)]
            if channel not in site.channels
            and channel not in nowhere
            and (site.well, site.site, channel) not in reported
        ]
    return replace(plate, problems=(*plate.problems, *problems)) if problems else plate


def _usual_channels(sites: list[SiteImage]) -> tuple[str, ...]:
    counts = Counter(channel for site in sites for channel in site.channels)
    return tuple(channel for channel, n in counts.items() if 2 * n > len(sites))


def _missing_channel(plate: Plate, channel: str, found: tuple[str, ...], site: SiteImage | None = None) -> Problem:
    at = ""
    if site is not None and (site.timepoint or site.z):
        at = f" at timepoint {site.timepoint}" + (f", z {site.z}" if site.z else "")
    return plate.problem(
        well=site.well if site else "",
        site=site.site if site else "",
        channel=channel,
        problem="missing_channel",
        found=f"channels {', '.join(found)}{at}",
        expected=f"channel {channel}",
        next_step="Copy the channel's image; until then the channels that are there are used."
        if site
        else "Correct `channels` of the screen, or the channel names in the source.",
    )
