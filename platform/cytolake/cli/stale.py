"""Stale results as a person reads them: grouped by kind, each group with the command that computes it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from cytolake.cli.options import UNKNOWN_RECIPE, job_options
from cytolake.pipeline.counts import count

if TYPE_CHECKING:
    from cytolake.catalog import Catalog
    from cytolake.catalog.stale import Stale

MAX_PLATES_PRINTED = 4
PROBE_LABEL = "perturbation"
"""What the probe of every recipe predicts unless it says otherwise; other labels are those of `cytolake benchmark`."""


def print_stale(console: Console, catalog_root: str, stale: Sequence[Stale] | None = None) -> None:
    """What was computed before a correction, by kind, with the command that computes each kind again.

    Args:
        console: Where to.
        catalog_root: The catalog's.
        stale: What is stale, where it was looked up already.
    """
    import cytolake.catalog
    from cytolake.catalog.stale import stale_artefacts

    catalog = cytolake.catalog.open(catalog_root)
    stale = stale_artefacts(catalog) if stale is None else stale
    if not stale:
        return
    recipe = recorded_recipe(catalog)
    options = job_options(catalog_root, recipe)
    plates = sorted({name for each in stale for name in each.plates})
    named = ", ".join(plates[:MAX_PLATES_PRINTED]) + (" and others" if len(plates) > MAX_PLATES_PRINTED else "")
    console.print(f"[yellow]stale[/] {count(len(stale), 'result')}, after corrections of {escape(named)}")
    for what, command in stale_groups(stale, options, catalog_root):
        console.print(f"  {escape(what)}\n    [dim]{escape(command)}[/]")
    console.print("run the commands in this order, each kind is computed from those above it")
    if f"--recipe {UNKNOWN_RECIPE}" in options:
        console.print(f"{UNKNOWN_RECIPE}: the name or file of your recipe, which this catalog does not record")
    elif recipe and f"--recipe {recipe}" in options:
        console.print(f"{escape(recipe)} is the recipe of the newest training; add the --set options that you gave")


def stale_groups(stale: Sequence[Stale], options: str, root: str) -> list[tuple[str, str]]:
    """Kinds of stale results: how many of what, and the command that computes them again.

    Args:
        stale: Of one catalog.
        options: Of a job on this catalog, after a space, see `job_options`.
        root: The catalog's.
    """
    groups: dict[tuple[str, ...], list[Stale]] = {}
    for each in stale:
        groups.setdefault(_group(each), []).append(each)
    return [(_what(members), _command(members, options, root)) for members in groups.values()]


def recorded_recipe(catalog: Catalog) -> str:
    """Name of the recipe of the newest training of a catalog, where it is one of ours; else empty."""
    from cytolake.catalog import CatalogError

    try:
        root = catalog.root
    except CatalogError:
        return ""
    from cytolake.recipes import RECIPES
    from cytolake.tracking import newest_tag, tracking_of
    from cytolake.tracking.store import sqlite_file

    tracking = tracking_of(root)
    database = sqlite_file(tracking)
    if database is None or not database.is_file():  # a server may be away, and this is a hint
        return ""
    name = newest_tag(tracking, "recipe")
    return name if name in RECIPES else ""


def _group(each: Stale) -> tuple[str, ...]:
    """What is counted as one line: the same kind of result, computed by the same command."""
    if each.kind == "score":
        return (each.kind, each.why, each.benchmark, each.label)
    if each.kind == "representation":
        return (each.kind, each.why, each.alignment_variant)
    return (each.kind, each.why, each.name)


def _what(members: Sequence[Stale]) -> str:
    """What the members of a group are, and how many."""
    first, n = members[0], len(members)
    if first.kind == "score":
        n_of = len({each.representation_id for each in members})
        text = f"scores of {first.benchmark} ({first.label}): {n:,} of {n_of:,} representation{'s' * (n_of > 1)}"
    elif first.kind == "representation":
        how = f", aligned by {first.alignment_variant}" if first.alignment_variant else ""
        text = f"{n:,} representation{'s' * (n > 1)}{how}"
    else:
        text = f"{first.kind} {first.name}"
    return f"{text}; other {first.why}"


def _command(members: Sequence[Stale], options: str, root: str) -> str:
    """The command that computes a group again, with the settings of the recipe."""
    first = members[0]
    if first.kind in ("curation", "pack"):
        # A recipe file may choose a curation of its own, and naming it once more does no harm.
        named = f" --set curate.name={shlex.quote(first.name)}" if first.name != "default" else ""
        return f"cytolake curate{options}{named}"
    if first.kind == "representation" and first.alignment_variant:
        parents = sorted({each.representation_id for each in members})
        variant = first.alignment_variant.split(", ")[-1]
        others = f" (and for {', '.join(parents[1:])})" if len(parents) > 1 else ""
        return f"cytolake align {parents[0]} --variant {variant} --root {shlex.quote(root)}{others}"
    if first.kind == "representation":
        return f"cytolake pipeline{options}"  # other pixels: a new pack, training and embedding
    if first.kind == "model":
        return f"cytolake promote{options}"
    is_of_recipe = first.benchmark.startswith("linear_probe") and first.label == PROBE_LABEL
    return f"cytolake {'probe' if is_of_recipe else 'benchmark'}{options}"
