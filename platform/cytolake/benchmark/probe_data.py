"""Input of probes from the catalog: the label of every crop, and the vectors of a representation.

N crops, W wells, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cytolake.catalog import Catalog
from cytolake.catalog.labelled_units import UNIT, labelled_units
from cytolake.catalog.representations import VectorReader
from cytolake.screens.positions import name_of_well

LABELS = (
    "perturbation", "gene", "pathway", "guide", "compound", "replicate", "control", "screen", "plate", "batch", "well",
    "row", "column",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProbeData:
    """Crops and wells of a probe, the same for every representation of one pack."""

    crop_ids: tuple[str, ...]
    """N sorted ids, the order of the vectors."""
    well_of_crop: NDArray[np.intp]
    """(N,) index into the wells."""
    well_ids: tuple[str, ...]
    """W sorted ids. In a well with labelled objects, the crops of each label count as a well: ids of groups."""
    plates: tuple[str, ...]
    """(W,) `screen/plate` of each well, because plates of two screens may share a name."""
    batches: tuple[str, ...]
    """(W,) `screen/batch` of each well."""
    is_control: NDArray[np.bool_]
    """(W,) True where the well holds the negative control."""
    classes: tuple[str, ...]
    label_of_well: NDArray[np.intp]
    """(W,) index into `classes`; -1 for a well without a label, and for a control where controls are no class."""
    label: str
    rows: tuple[str, ...] = ()
    """(W,) row such as `B`; empty where positions are not known."""
    columns: tuple[int, ...] = ()
    """(W,) column from 1, as printed on the plate."""
    held_wells: tuple[str, ...] = ()
    """(W,) id of the well that is held out together with each: its own, or that of its group. Empty: its own."""

    @property
    def is_pooled(self) -> bool:
        """Whether wells hold objects of several labels, so that a well has several classes."""
        return bool(self.held_wells) and self.held_wells != self.well_ids


def read_probe_data(catalog: Catalog, representation_id: str, label: str, *, include_controls: bool) -> ProbeData:
    """Join the crops of a representation with their wells.

    Args:
        representation_id: Any representation of the pack.
        label: Column of `wells` to predict.
        include_controls: Whether negative-control wells are a class, under their own name.

    Raises:
        ValueError: The label is no column of wells, the representation has no rows, or fewer than two classes.
    """
    check_label(label)
    crops = VectorReader(catalog).columns(representation_id, ["crop_id", "well_id"])
    if crops.num_rows == 0:
        raise ValueError(
            f"representation {representation_id} has no rows in the embeddings table. Run `cytolake embed` first."
        )
    return label_crops(
        catalog, crops, label, include_controls=include_controls, what=f"representation {representation_id}"
    )


def label_crops(catalog: Catalog, crops: pa.Table, label: str, *, include_controls: bool, what: str) -> ProbeData:
    """Join crops with their wells, or with the labels of their objects.

    Args:
        crops: `crop_id` and `well_id` of each crop.
        label: Column of `wells` to predict, or of `objects` where objects have their own labels.
        include_controls: Whether negative-control wells are a class, under their own name.
        what: Source of the crops, for error texts.

    Raises:
        ValueError: The label is no column of wells, a crop of an unknown well, or fewer than two classes.
    """
    check_label(label)
    crops = crops.sort_by("crop_id")
    columns = list(
        dict.fromkeys(["well_id", "screen", "plate", "batch", "row", "column", "is_negative_control", label])
    )
    units = labelled_units(catalog, columns)
    unit_of_crop = units.of_crops(crops["crop_id"], crops["well_id"])
    wells = units.rows.filter(pc.is_in(units.rows[UNIT], value_set=pc.unique(unit_of_crop)))
    rows = wells.sort_by(UNIT).to_pylist()
    well_ids = tuple(row[UNIT] for row in rows)
    well_of_crop = pc.index_in(unit_of_crop, value_set=pa.array(well_ids, pa.string())).combine_chunks()
    if well_of_crop.null_count:
        raise ValueError(
            f"{what}: {well_of_crop.null_count} crops belong to wells that the wells table "
            "does not have. Ingest their plates again."
        )
    is_control = np.asarray([bool(row["is_negative_control"]) for row in rows])
    names = ["" if row[label] is None else str(row[label]) for row in rows]
    if not include_controls:
        names = ["" if control else name for name, control in zip(names, is_control, strict=True)]
    classes = tuple(sorted(set(names) - {""}))
    if len(classes) < 2:
        known = {name for name in LABELS if len(set(catalog.table("wells", columns=[name])[name].to_pylist())) > 1}
        raise ValueError(
            f"wells.{label} has {len(classes)} class{'' if len(classes) == 1 else 'es'} among {len(rows)} wells "
            f"({', '.join(classes) or 'all empty'}), expected at least 2. Complete the plate map, or set probe.label "
            f"to a column with more values: {', '.join(sorted(known)) or 'none of this catalog has'}."
        )
    return ProbeData(
        crop_ids=tuple(crops["crop_id"].to_pylist()),
        well_of_crop=np.asarray(well_of_crop.to_numpy(zero_copy_only=False), dtype=np.intp),
        well_ids=well_ids,
        plates=tuple(f"{row['screen']}/{row['plate']}" for row in rows),
        batches=tuple(f"{row['screen']}/{row['batch']}" for row in rows),
        is_control=is_control,
        classes=classes,
        label_of_well=np.asarray([classes.index(name) if name else -1 for name in names], dtype=np.intp),
        label=label,
        rows=tuple("" if row["row"] is None else name_of_well(int(row["row"]), 0)[:-2] for row in rows),
        columns=tuple(0 if row["column"] is None else int(row["column"]) + 1 for row in rows),
        held_wells=tuple(row["well_id"] for row in rows),
    )


def check_label(label: str) -> None:
    """Raise ValueError unless `label` is a column of wells that can be predicted."""
    if label not in LABELS:
        raise ValueError(f"probe.label is {label!r}, expected one of {', '.join(LABELS)}.")


def standardise_by_plate_controls(
    vectors_ND: NDArray[np.float32], plate_N: Sequence[str], is_control_N: NDArray[np.bool_], min_controls: int = 8
) -> NDArray[np.float32]:
    """Centre and scale each feature by the negative-control crops of the crop's own plate.

    Args:
        vectors_ND: (N, D).
        plate_N: (N,) plate of each crop.
        is_control_N: (N,) True for crops of negative-control wells.
        min_controls: Fewest control crops of a plate.

    Returns:
        (N, D), in standard deviations of the plate's control crops; 0 for a feature constant among them.

    Raises:
        ValueError: A plate with too few control crops.
    """
    plate = np.asarray(plate_N)
    aligned = np.empty_like(vectors_ND)
    for name in np.unique(plate):
        here = plate == name
        controls = vectors_ND[here & is_control_N]
        if len(controls) < min_controls:
            raise ValueError(
                f"plate {name}: {len(controls)} crops of negative-control wells, expected at least {min_controls} to "
                "align on. Mark the control wells in the plate map, or set probe.align=none."
            )
        mean_D, sd_D = controls.mean(axis=0), controls.std(axis=0)
        safe_D = np.where(sd_D > 1e-12, sd_D, np.inf)  # 1e-12: a constant feature has only rounding left
        aligned[here] = (vectors_ND[here] - mean_D) / safe_D
    return aligned
