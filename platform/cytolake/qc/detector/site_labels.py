"""Labels of sites from different sources: people, a plate map, the focal plane, or simulated artefacts.

A plan names sites and labels and reads no pixels, so that every encoder can be measured on the same one.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cytolake.catalog.errors import CatalogError
from cytolake.catalog.tables import Catalog
from cytolake.qc.detector.plates import Spoiling, site_order
from cytolake.qc.labels import NORMAL, newest_labels
from cytolake.screens.simulated.artefacts import ARTEFACT_KINDS

OUT_OF_FOCUS = "defocus"
_COLUMNS = ("site_id", "well_id", "plate_id", "screen", "site", "z", "channels")


@dataclass(frozen=True, slots=True)
class PlannedSite:
    """One labelled site before it is measured."""

    site_id: str
    well_id: str
    label: str
    """`normal`, or a kind of artefact."""
    channels: tuple[str, ...] = ()
    """Stains that the label refers to; empty if not specified."""
    spoiling: Spoiling | None = None
    """Artefact to add to the site before it is measured."""


Plan = dict[str, list[PlannedSite]]
"""plate_id to its labelled sites."""


def people_labels(catalog: Catalog) -> Plan:
    """The newest label of every site in the table `qc_labels`."""
    labels = newest_labels(catalog)
    wells = {row["site_id"]: row["well_id"] for row in _sites(catalog)} if labels else {}
    plan: Plan = defaultdict(list)
    for label in labels:
        plan[label.plate_id].append(
            PlannedSite(label.site_id, wells[label.site_id], label.label, tuple(label.channels))
        )
    return dict(plan)


def plate_map_labels(catalog: Catalog, column: str, n_normal: int) -> Plan:
    """Labels from a column of the plate map with the artefact of each well.

    In a screen whose plate map has the column, a well without an entry is normal.

    A column `<column>_site`, if the plate map has one, names the spoilt site of the well, or `all`.

    Args:
        catalog: A catalog with plate maps.
        column: Such as `artefact` of the simulated screen.
        n_normal: Normal sites per plate, drawn by hashing; all if there are fewer.

    Raises:
        CatalogError: No plate map has the column.
    """
    rows = catalog.sql("SELECT well_id, screen, annotations FROM wells").to_pylist()
    wells = {row["well_id"]: json.loads(row["annotations"] or "{}") for row in rows}
    screens = {row["screen"] for row in rows if column in wells[row["well_id"]]}
    if not screens:
        known = sorted({name for said in wells.values() for name in said})
        raise CatalogError(
            f"{catalog.place}: no plate map has the column {column!r}. There are: {', '.join(known) or 'none'}. Name "
            "the column with the artefact of each well: --set label_column=NAME."
        )
    labels = {}
    for row in _sites(catalog):
        if row["screen"] in screens:
            said = wells.get(row["well_id"], {})
            is_meant = said.get(f"{column}_site", "all") in ("all", row["site"])
            labels[row["site_id"]] = (said.get(column) if is_meant else "") or NORMAL
    return _labelled(catalog, labels, n_normal)


def focus_labels(catalog: Catalog, in_focus: Collection[str], n_normal: int) -> Plan:
    """Labels from the focal plane: sites of the named planes are normal, all others `defocus`.

    Args:
        catalog: A catalog ingested with `z=keep`.
        in_focus: Names of the planes in focus, as `sites.z` has them.
        n_normal: As `plate_map_labels`.

    Raises:
        CatalogError: No site in a plane in focus, or none out of focus.
    """
    planes = {row["z"] for row in _sites(catalog)}
    if not planes & set(in_focus) or not planes - set(in_focus):
        raise CatalogError(
            f"{catalog.place}: found sites of the focal planes {', '.join(map(repr, sorted(planes))) or 'none'}; "
            f"expected {', '.join(map(repr, in_focus)) or 'some'} and others. Name the planes in focus: --set "
            "in_focus=NAME,NAME; and ingest with z=keep."
        )
    labels = {row["site_id"]: NORMAL if row["z"] in in_focus else OUT_OF_FOCUS for row in _sites(catalog)}
    return _labelled(catalog, labels, n_normal)


def simulated_labels(
    catalog: Catalog,
    left_out: Collection[str],
    n_of_each: int,
    severity: tuple[float, float],
    seed: int,
    *,
    also_plates: Iterable[str] = (),
    with_normal: bool = True,
) -> Plan:
    """Sites with simulated artefacts of each kind, spread over the plates.

    Args:
        left_out: Labelled sites, which get no artefact.
        n_of_each: Sites of each kind, over all plates.
        severity: Lowest and highest.
        seed: Decides which sites, severities and seeds of artefacts.
        also_plates: Plates with labels from other sources; they count in the sequence of random numbers.
        with_normal: Add as many unchanged sites, labelled normal.
    """
    by_plate: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _sites(catalog):
        by_plate[row["plate_id"]].append(row)
    free = {plate: [row for row in rows if row["site_id"] not in left_out] for plate, rows in by_plate.items()}
    plates = sorted(plate for plate, rows in free.items() if rows)
    turns = {plate: len(range(number, n_of_each, len(plates))) for number, plate in enumerate(plates)}
    n_of_plate = {plate: share for plate, share in turns.items() if share}
    kinds = (*((NORMAL,) if with_normal else ()), *ARTEFACT_KINDS)
    return {
        plate: _spoilt_sites(free[plate], kinds, n_of_plate[plate], severity, np.random.default_rng([seed, number]))
        for number, plate in enumerate(sorted({*also_plates, *n_of_plate}))
        if plate in n_of_plate
    }


def clean_sites(catalog: Catalog, left_out: Collection[str], n_normal: int) -> Plan:
    """Unchanged sites, labelled normal; `n_normal` as for `plate_map_labels`."""
    labels = {row["site_id"]: NORMAL for row in _sites(catalog) if row["site_id"] not in left_out}
    return _labelled(catalog, labels, n_normal)


def joined(*plans: Plan) -> Plan:
    """Plans concatenated, plate by plate."""
    together: Plan = defaultdict(list)
    for plan in plans:
        for plate, sites in plan.items():
            together[plate] += sites
    return dict(together)


def _sites(catalog: Catalog) -> list[dict[str, Any]]:
    """Rows of all sites, in the order in which a plate's sites are drawn."""
    rows = catalog.table("sites", columns=list(_COLUMNS)).to_pylist()
    return sorted(rows, key=lambda row: site_order(row["site_id"]))


def _labelled(catalog: Catalog, labels: Mapping[str, str], n_normal: int) -> Plan:
    plan: Plan = defaultdict(list)
    n_of_plate: dict[str, int] = defaultdict(int)
    for row in _sites(catalog):
        label = labels.get(row["site_id"])
        if label is None or (label == NORMAL and n_of_plate[row["plate_id"]] >= n_normal):
            continue
        n_of_plate[row["plate_id"]] += label == NORMAL
        plan[row["plate_id"]].append(PlannedSite(row["site_id"], row["well_id"], label))
    return dict(plan)


def _spoilt_sites(
    rows: Sequence[Mapping[str, Any]],
    kinds: Sequence[str],
    n_of_each: int,
    severity: tuple[float, float],
    rng: np.random.Generator,
) -> list[PlannedSite]:
    planned = []
    for kind in kinds:
        among = [row for row in rows if kind != "channel_swap" or len(row["channels"]) > 1]
        for _ in range(n_of_each if among else 0):
            spoiling = None
            if kind != NORMAL:
                spoiling = Spoiling(kind, float(rng.uniform(*severity)), int(rng.integers(2**31)))
            row = among[int(rng.integers(len(among)))]
            planned.append(PlannedSite(row["site_id"], row["well_id"], kind, (), spoiling))
    return planned
