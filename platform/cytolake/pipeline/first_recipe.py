"""A recipe for a screen of one's own: what `cytolake init` writes after a look at the folder."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cytolake.benchmark.split import SplitBy
from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.ingest.inspection import Inspection, inspect_screen
from cytolake.catalog.ingest.wells import well_rows
from cytolake.pipeline.counts import count
from cytolake.screens.images.object_size import object_diameter
from cytolake.screens.images.pixels import read_site
from cytolake.screens.plate import Plate, ScreenError
from cytolake.screens.sources import ScreenSource, list_plates
from cytolake.storage.atomic_write import write_text

N_SITES = 6  # read for the size of objects, of different wells
NUCLEI = "DNA"
CROP_IN_NUCLEI = 4.0  # a cell is two to three nuclei across; the rest shows its neighbours
CROP_IN_OBJECTS = 2.0
CROP_RANGE = (0.75, 1.35)  # of the wanted edge: within it the size that tiles a site best is taken
CROP_STEP = 16  # a multiple of every patch size in use
CROP_MIN, CROP_MAX = 32, 512
_CROP_WITHOUT_OBJECTS = 64
_PATCHES_MAX = 8  # along an edge of the small encoder: more cost much on a CPU


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstRecipe:
    """What to write, and why."""

    fields: dict[str, Any]
    """Of a recipe file, in the order of `PipelineConfig`."""
    reasons: dict[str, str]
    """For each choice one sentence, by the path of its field."""
    inspection: Inspection


def propose_recipe(source: ScreenSource, name: str) -> FirstRecipe:
    """Look at a screen and choose layout, channels, crop size, label and split. Reads a few sites; writes nothing.

    Args:
        source: The screen, with whatever is known already; its path alone will do.

    Raises:
        ScreenError: The folder is missing, empty or cannot be listed.
        ValueError: Nothing there can be ingested; with why, and what could be set.
    """
    inspection = inspect_screen(source, channel_vocabulary().aliases, layout_presets())
    if not inspection.can_ingest:
        found = [f"{each.n:,} x {each.problem}: {each.example}" for each in inspection.problems]
        raise ValueError("\n".join([f"{source.path}: nothing there can be ingested.", *found, *inspection.advice]))
    plates = list_plates(source, channel_vocabulary().aliases, layout_presets())
    resolved = {**inspection.source, "path": str(inspection.source["path"])}
    channels = tuple(dict.fromkeys(channel for plate in plates for channel in plate.channels))
    crop_size, why_size = _crop_size(plates)
    patch = _patch_size(crop_size)
    label, split, why_split = _label_and_split(plates)
    reasons = {
        "screens.sources": f"layout {inspection.layout}: {count(inspection.total('n_sites'), 'site')} of "
        f"{count(len(plates), 'plate')}",
        "ingest.crop_size": why_size,
        "probe": why_split,
    }
    model: dict[str, Any] = {"crop_size": crop_size, "patch_size": patch}
    if len({plate.channels for plate in plates}) == 1:
        model |= {"architecture": "mae_vit", "channels": list(channels)}
        reasons["pretrain.model"] = "every plate has the same channels"
    else:
        model |= {"architecture": "chada_vit"}
        reasons["pretrain.model"] = "plates differ in their channels: an encoder that takes any number of them"
    fields: dict[str, Any] = {
        "based_on": "own_screen",
        "name": name,
        "root": f"cytolake_{name}",
        "screens": {"sources": [resolved]},
        "ingest": {"crop_size": crop_size},
        "pretrain": {"model": model},
        "probe": {"label": label, "split": split},
    }
    if label == "perturbation":
        fields["benchmark"] = {"tasks": [["perturbation", split], ["plate", "well"]]}
    else:
        fields["benchmark"] = {"tasks": [[label, split]], "profiles": None}
    return FirstRecipe(fields=fields, reasons=reasons, inspection=inspection)


def recipe_text(proposal: FirstRecipe, file: str) -> str:
    """The recipe file: each choice under a comment that says why."""
    fields = dict(proposal.fields)
    lines = [
        "# Written by `cytolake init`. Change what is wrong, then run `cytolake ingest`, or all: `cytolake pipeline`.",
        f"# All fields, with their defaults: cytolake pipeline --recipe {file} --show",
    ]
    for name, value in fields.items():
        lines += [
            f"# {path}: {reason}"
            for path, reason in proposal.reasons.items()
            if path == name or path.startswith(f"{name}.")
        ]
        lines.append(yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=110).rstrip())
    return "\n".join(lines) + "\n"


def recipe_name(folder: str) -> str:
    """A name for files and folders, from the screen's folder."""
    return re.sub(r"[^A-Za-z0-9]+", "_", folder.rstrip("/").rsplit("/", 1)[-1]).strip("_").lower() or "screen"


def _crop_size(plates: Sequence[Plate]) -> tuple[int, str]:
    """Edge of a crop, pixels, and why."""
    sites = [site for plate in plates for site in plate.sites]
    last = len(sites) - 1
    chosen = [sites[i] for i in sorted({round(i * last / (N_SITES - 1)) for i in range(N_SITES)})]
    of_channel: dict[str, list[Any]] = defaultdict(list)
    edges = []
    for site in chosen:
        try:
            pixels = read_site(replace(site, z="max") if site.z == "sharpest" else site, is_corrected=False)
        except ScreenError:  # an ingest puts it into quarantine
            continue
        edges.append(min(pixels.shape[1:]))
        for channel, image in zip(site.channels, pixels, strict=True):
            of_channel[channel].append(image)
    if not edges:
        return _CROP_WITHOUT_OBJECTS, "no site could be read, so this is a guess"
    has_nuclei = NUCLEI in of_channel
    diameters = [object_diameter(of_channel[NUCLEI])] if has_nuclei else list(map(object_diameter, of_channel.values()))
    known = sorted(each for each in diameters if math.isfinite(each))
    edge = min(edges)
    if not known:
        return min(_CROP_WITHOUT_OBJECTS, edge), "the sampled sites are empty, so this is a guess"
    diameter = known[len(known) // 2]
    times, what = (CROP_IN_NUCLEI, "nuclei") if has_nuclei else (CROP_IN_OBJECTS, "objects")
    return (
        _tiling_size(times * diameter, edge),
        f"{what} are about {diameter:.0f} px across in {len(edges)} sampled sites of {edge} px and more",
    )


def _patch_size(crop_size: int) -> int:
    """Edge of a patch, pixels: the smallest that leaves a small encoder few patches and divides the crop."""
    fitting = [size for size in range(4, crop_size + 1) if crop_size % size == 0 and crop_size // size <= _PATCHES_MAX]
    return fitting[0]


def _tiling_size(wanted: float, edge: int) -> int:
    """Edge of a crop near the wanted one, pixels, that leaves little of a site's edge over."""
    low, high = (min(max(factor * wanted, CROP_MIN), CROP_MAX) for factor in CROP_RANGE)
    sizes = [size for size in range(CROP_STEP, edge + 1, CROP_STEP) if low <= size <= high] or [
        min(max(round(wanted / CROP_STEP) * CROP_STEP, CROP_MIN), edge)
    ]
    return min(sizes, key=lambda size: (round(1 - size * (edge // size) / edge, 2), abs(size - wanted)))


def _label_and_split(plates: Sequence[Plate]) -> tuple[str, SplitBy, str]:
    """What the probe predicts and what it holds out, as far as the plate map allows."""
    wells: list[Mapping[str, Any]] = []
    for plate in plates:
        with_images = frozenset(site.well for site in plate.sites)
        wells += [row for row in well_rows(plate, with_images)[0] if row["has_images"]]
    treated = [row for row in wells if row["perturbation"] and not row["is_negative_control"]]
    plates_of: dict[str, set[str]] = defaultdict(set)
    for row in treated:
        plates_of[row["perturbation"]].add(row["plate_id"])
    n_wells = Counter(row["perturbation"] for row in treated)
    on_two = sum(1 for of in plates_of.values() if len(of) > 1)
    in_two = sum(1 for n in n_wells.values() if n > 1)
    if on_two > 1:
        return "perturbation", "plate", f"{on_two} of {len(n_wells)} perturbations are on two plates or more"
    if in_two > 1:
        why = f"no two perturbations are on two plates, but {in_two} of {len(n_wells)} in two wells: wells are held out"
        return "perturbation", "well", why
    what = "the plate map has no perturbations" if not treated else "no two perturbations have a second well"
    if len(plates) > 1:
        return (
            "plate",
            "well",
            f"{what}: all that a probe can predict is the plate, which is a guard rail, not a result",
        )
    return "perturbation", "well", f"{what}: there is nothing that a probe could predict; run the stages up to embed"


def write_recipe(path: Path, text: str) -> None:
    """Write the file, whole or not at all; one that is there is kept.

    Raises:
        ValueError: It is there.
    """
    check_free(path)
    write_text(path, text)


def check_free(path: Path) -> None:
    """Refuse a recipe's file that is there already.

    Raises:
        ValueError: It is there.
    """
    if path.exists():
        raise ValueError(f"{path}: found a file there, expected none. Give another with --recipe-file, or remove it.")
