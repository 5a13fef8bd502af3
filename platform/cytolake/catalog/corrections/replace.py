"""Replaces the pixels of a plate in the catalog: files that were copied again or completed, or a new acquisition."""

from __future__ import annotations

import dataclasses
from typing import Any

from cytolake.catalog.corrections.plate_rows import Row, acquisition_of, name_of, plate_named, plates_named
from cytolake.catalog.declared import channel_vocabulary, layout_presets
from cytolake.catalog.errors import CatalogError
from cytolake.catalog.ids import PlateIds, content_id
from cytolake.catalog.ingest.commit import Incoming, ids_of
from cytolake.catalog.ingest.labels import labels_of
from cytolake.catalog.ingest.plate_content import plate_content
from cytolake.catalog.ingest.plates import IngestConfig, Progress, ingest_acquisition
from cytolake.catalog.ingest.wells import well_rows
from cytolake.catalog.tables import Catalog
from cytolake.catalog.visibility import GONE, VISIBLE, state_of
from cytolake.screens.plate import Plate, Problem, ScreenError
from cytolake.screens.sources import ScreenSource, list_plates


def replace_plate(
    catalog: Catalog, name: str, listed: Plate, config: IngestConfig | None = None, progress: Progress | None = None
) -> Row:
    """Read a plate as a new acquisition, which takes the place of the one that is visible, in one commit.

    The old acquisition's rows, and all that was computed from them, are hidden and can be had back with `restore`.
    Labels that `annotate` gave stay; else they are those of the source, where it has any. Wells keep their ids; sites
    and crops, which have other pixels, get new ones. Crops keep their size.

    Args:
        catalog: Not pinned.
        name: `screen/plate`, a plate, or a plate_id; also of a plate that was retracted or purged.
        listed: The plate as `list_plates` gives it, under any name.
        config: How the reading is shared out; the crop size counts where the catalog has no crop of the plate.
        progress: Called with the number of sites read.

    Returns:
        The row of `plates`.

    Raises:
        ScreenError: Another process reads the plate now.
        CatalogError: No such plate, files that are those the catalog has, not one readable site, or another process
            corrected the plate meanwhile.
    """
    known = plate_to_replace(catalog, name)
    content = plate_content(listed)
    is_visible = state_of(known) == VISIBLE
    if is_visible and (known["pixels_hash"], known["files_hash"]) == (content.pixels_hash, content.files_hash):
        raise CatalogError(
            f"plate {name_of(known)}: found the files that the catalog has, at {listed.source}, expected others. There "
            "is nothing to replace. For other labels: `cytolake plates annotate`."
        )
    number = 1 + max(acquisition_of(row) for row in plates_named(catalog, name_of(known), _ALL))
    names = {"screen": known["screen"], "plate": known["plate"]}
    labels = _labels_to_keep(catalog, known, listed)
    batch = listed.batch
    if labels is not None or not any(row.get("batch") for row in listed.wells):
        batch = known["batch"] or listed.batch
    plate = dataclasses.replace(
        listed,
        **names,
        batch=batch,
        sites=tuple(dataclasses.replace(site, **names) for site in listed.sites),
        problems=tuple(dataclasses.replace(each, **names) for each in listed.problems),
    )
    of = ids_of(known)
    incoming = Incoming(
        plate,
        content,
        PlateIds(of.screen, of.plate, f"{number}/{content.pixels_hash}"),
        content_id("acquisition", number, content.content_hash, content.files_hash, batch),
        replaces=None if state_of(known) in GONE else known,
        acquisition=number,
        labels=labels,
    )
    config = dataclasses.replace(config or IngestConfig(), crop_size=_crop_size(catalog, known, config))
    outcome = ingest_acquisition(catalog, incoming, config, progress)
    if isinstance(outcome, Problem):
        raise ScreenError(outcome)
    return outcome


def plate_in_source(source: ScreenSource, name: str) -> Plate:
    """A plate as a screen's folder lists it now.

    Args:
        source: The folder, and how it is laid out.
        name: Of the plate there. Where the folder has one plate alone, it is that one whatever its name.

    Raises:
        ScreenError: The folder cannot be read.
        CatalogError: It has several plates, none of this name.
    """
    found = list_plates(source, channel_vocabulary().aliases, layout_presets())
    chosen = [plate for plate in found if plate.plate == name] or (found if len(found) == 1 else [])
    if not chosen:
        raise CatalogError(
            f"{source.path}: found the plates {', '.join(plate.plate for plate in found[:8])}, expected {name}. Give "
            "the plate's name there with --found-as."
        )
    return chosen[0]


_ALL = (VISIBLE, "retracted", "replaced", "purged")


def plate_to_replace(catalog: Catalog, name: str) -> Row:
    """The row of the visible acquisition of a plate, or of the newest hidden one."""
    rows = plates_named(catalog, name, _ALL)
    visible = [row for row in rows if state_of(row) == VISIBLE]
    return visible[0] if visible else plate_named(catalog, name, _ALL)


def _labels_to_keep(catalog: Catalog, known: Row, listed: Plate) -> dict[str, dict[str, Any]] | None:
    """Wells of the catalog by position, where their labels were corrected there or the source has none."""
    stored = {row["well"]: row for row in catalog.rows_of_plate("wells", known).to_table().to_pylist()}
    is_corrected = known["labels_source"] is not None
    if labels_of(stored.values()) and (is_corrected or not labels_of(well_rows(listed, frozenset())[0])):
        return stored
    return None


def _crop_size(catalog: Catalog, known: Row, config: IngestConfig | None) -> int:
    sizes = catalog.rows_of_plate("crops", known).to_table(columns=["size"]).column("size").unique().to_pylist()
    return int(sizes[0]) if sizes else (config or IngestConfig()).crop_size
