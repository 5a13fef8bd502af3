"""Readers of well profiles, and of the wells behind them, from the catalog.

Shapes: W wells, D features.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.benchmark.position_confounding import WellPlace
from cytolake.catalog import Catalog
from cytolake.catalog.ids import content_id
from cytolake.catalog.labelled_units import UNIT, labelled_units
from cytolake.catalog.representations import VectorReader, read_vectors

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wells:
    """Labels and places of W wells, sorted by id; a text is empty where the plate map has no value."""

    well_id: tuple[str, ...]
    plate: tuple[str, ...]
    batch: tuple[str, ...]
    perturbation: tuple[str, ...]
    gene: tuple[str, ...]
    guide: tuple[str, ...]
    compound: tuple[str, ...]
    pathway: tuple[str, ...]
    dose: Floats
    is_control: NDArray[np.bool_]
    place: tuple[WellPlace, ...]

    @property
    def treated(self) -> list[int]:
        """Numbers of the wells without a negative control."""
        return [i for i, control in enumerate(self.is_control.tolist()) if not control]

    def experiments(self, rows: Sequence[int] | None = None) -> tuple[str, ...]:
        """(W,) experiment of each well: the batch, or the plate where all wells (of these rows) are in one batch."""
        batches = self.batch if rows is None else [self.batch[row] for row in rows]
        return self.batch if len(set(batches)) > 1 else self.plate

    @property
    def identity(self) -> str:
        """Hash of all wells and their labels."""
        numbers = [self.dose.tolist(), self.is_control.tolist()]
        # No benchmark reads the place.
        apart = ("dose", "is_control", "place")
        names = [getattr(self, each.name) for each in fields(self) if each.name not in apart]
        return content_id(json.dumps([*names, *numbers]))

    def table(self) -> pa.Table:
        """Table of the columns that benchmarks group by."""
        names = ("plate", "batch", "perturbation", "gene", "compound", "pathway")
        return pa.table({name: list(getattr(self, name)) for name in names} | {"dose": self.dose})


def read_wells(catalog: Catalog, representation_id: str) -> Wells:
    """The wells of a representation's profiles; in wells with labelled objects, the groups of objects.

    Raises:
        ValueError: No profiles, or a profile of a well that is not in the wells table.
    """
    stored = VectorReader(catalog, "well").columns(representation_id, ["well_id", "plate_id"])
    if not stored.num_rows:
        raise ValueError(f"representation {representation_id} has no profiles. Run `cytolake embed` first.")
    columns = [
        "well_id", "screen", "plate", "batch", "perturbation", "gene", "guide", "compound", "pathway", "dose",
        "is_negative_control", "row", "column",
    ]  # fmt: skip
    units = labelled_units(catalog, columns)
    ids, plates = stored["well_id"].to_pylist(), stored["plate_id"].to_pylist()
    outdated = units.outdated(ids, plates)
    known = set(units.rows[UNIT].to_pylist())
    if unknown := [each for each, is_old in zip(ids, outdated, strict=True) if not is_old and each not in known]:
        raise ValueError(
            f"representation {representation_id}: {len(unknown)} of {len(ids)} profiles are of wells that the wells "
            "table does not have. Ingest their plates again."
        )
    whole = units.whole
    rows = whole.filter(pc.is_in(whole[UNIT], value_set=stored["well_id"].combine_chunks())).sort_by(UNIT).to_pylist()

    def texts(name: str) -> tuple[str, ...]:
        return tuple(row[name] or "" for row in rows)

    plate_names = tuple(f"{row['screen']}/{row['plate']}" for row in rows)
    batches = tuple(f"{row['screen']}/{row['batch'] or row['plate']}" for row in rows)
    return Wells(
        well_id=texts(UNIT),
        plate=plate_names,
        batch=batches,
        perturbation=texts("perturbation"),
        gene=texts("gene"),
        guide=texts("guide"),
        compound=texts("compound"),
        pathway=texts("pathway"),
        dose=np.asarray([math.nan if row["dose"] is None else row["dose"] for row in rows], np.float64),
        is_control=np.asarray([bool(row["is_negative_control"]) for row in rows]),
        place=tuple(
            WellPlace(plate, row["row"], row["column"], batch)
            for plate, batch, row in zip(plate_names, batches, rows, strict=True)
        ),
    )


def read_profiles(catalog: Catalog, representation_id: str, well_ids: Sequence[str]) -> Floats:
    """(W, D) in the order of the wells.

    Raises:
        ValueError: A well without a profile.
    """
    return read_vectors(catalog, representation_id, well_ids, level="well").astype(np.float64)
