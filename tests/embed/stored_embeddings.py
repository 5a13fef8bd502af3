"""A catalog of two screens whose embeddings were written straight into the tables, and a loop that knows its means."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

from cytolake.catalog import Catalog, table_contract
from cytolake.catalog.ids import content_id, crop_id, plate_id, well_id

DIM = 5
PERTURBATIONS = {"DMSO": ("",), "TP53": ("TP53_1", "TP53_2"), "MYC": ("MYC_1",)}
N_FILES = 4


def planted_wells(screen: str = "S", plates: Sequence[str] = ("P0", "P1")) -> list[dict[str, Any]]:
    """Rows of `wells`: on each plate 2 controls, 2 + 1 wells of the guides of TP53, 2 of MYC."""
    rows = []
    for plate in plates:
        labels = [("DMSO", "")] * 2 + [("TP53", "TP53_1")] * 2 + [("TP53", "TP53_2")] + [("MYC", "MYC_1")] * 2
        for column, (perturbation, guide) in enumerate(labels, start=1):
            well = f"A{column:02d}"
            row = {
                "well_id": well_id(screen, plate, well), "plate_id": plate_id(screen, plate), "screen": screen,
                "plate": plate, "batch": f"batch of {plate}", "well": well, "row": 0, "column": column - 1,
                "perturbation": perturbation, "gene": "" if perturbation == "DMSO" else perturbation, "guide": guide,
                "control": "negative" if perturbation == "DMSO" else "", "has_images": True,
                "is_negative_control": perturbation == "DMSO",
            }  # fmt: skip
            rows.append(row)
    return rows


def planted_catalog(
    root: Path,
    screens: Sequence[str] = ("S",),
    without_controls: Sequence[str] = (),
    annotations: Sequence[str | None] = (None,),
) -> Catalog:
    """Wells, plates, and 1 to 4 crops of each well; of some plates no well is known to be a control.

    `annotations` are those of the wells, one after the other and again.
    """
    catalog = empty_catalog(root)
    wells = [row for screen in screens for row in planted_wells(screen)]
    for well in wells:
        if well["plate"] in without_controls:
            well |= {"control": "", "is_negative_control": False}
    crops = []
    for number, well in enumerate(wells):
        well["annotations"] = annotations[number % len(annotations)]
        for i in range(1 + number % 4):
            place = {name: well[name] for name in ("screen", "plate", "well")}
            crops.append(
                {name: well[name] for name in ("well_id", "plate_id", "batch")}
                | place
                | {"crop_id": crop_id(**place, site="1", y=0, x=32 * i, size=32), "site": "1", "y": 0, "x": 32 * i}
                | {"size": 32, "n_channels": 2}
            )
    plates = [
        {name: well[name] for name in ("plate_id", "screen", "plate", "batch")}
        | {"channels": ["DNA", "ER"], "ingested_at": datetime.now(UTC)}
        for well in {well["plate_id"]: well for well in wells}.values()
    ]
    for name, rows in (("wells", wells), ("crops", crops), ("plates", plates)):
        add_rows(catalog, name, *rows)
    return catalog


def plant(
    catalog: Catalog, name: str, *, seed: int = 0, model: str = "", described: bool = True, **changes: Any
) -> tuple[str, dict[str, np.ndarray]]:
    """Write a representation of all crops, shuffled over several files; its id, and the vector of each crop."""
    identity = content_id("planted", name)
    crops = catalog.table("crops", columns=["crop_id", "well_id", "plate_id"])
    random = np.random.default_rng(seed)
    order = random.permutation(crops.num_rows)
    dim = changes.get("dim", DIM)
    vectors = random.normal(size=(crops.num_rows, dim)).astype(np.float32) + 3
    for part in np.array_split(order, N_FILES):
        rows = {
            "representation_id": pa.repeat(identity, len(part)),
            **{column: crops[column].take(part) for column in crops.column_names},
            "embedding": pa.array(list(vectors[part]), pa.list_(pa.float32())),
        }
        contract = table_contract("embeddings")
        transaction = f"{name} {part.tolist()}"
        catalog.append("embeddings", pa.table(rows).select(contract.schema.names), transaction=transaction)
    if described:
        row = {
            "representation_id": identity, "kind": "trained", "model_id": content_id("model", model or name),
            "architecture": "chada_vit", "block": 0, "pooling": "mean", "dim": dim, "pack_id": "pack0",
            "curation_id": "curation0", "checkpoint": "", "run_id": "", "created_at": datetime.now(UTC),
        } | changes  # fmt: skip
        add_rows(catalog, "representations", row)
    return identity, dict(zip(crops["crop_id"].to_pylist(), vectors, strict=True))
