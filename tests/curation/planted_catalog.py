"""A catalog of planted truth, at the level of tables and embeddings: which conditions do something.

Six plates in three batches. On each plate every treatment has four wells, a well one site of two crops. Treatments
`active-N` and `second-N` have a direction of their own in the embeddings `first` and `second`; `inert-N` have none.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tests.catalog.empty_catalog import empty_catalog
from tests.catalog.rows import add_rows

from cytolake.catalog import Catalog, table_contract
from cytolake.qc.metrics import METRICS

N_PLATES, N_BATCHES, WELLS_EACH, CROPS_EACH, DIM = 6, 3, 4, 2, 16
TREATMENTS = tuple(f"{kind}-{n}" for kind in ("active", "second", "inert") for n in range(8))
CONTROLS = ("negative",) * 12 + ("positive",) * 10
METRICS_KNOWN = tuple(METRICS)


def plate_labels() -> list[dict[str, Any]]:
    """One row for each well: screen, plate, batch, well, perturbation, guide, control."""
    rows = []
    for p in range(N_PLATES):
        labels = [(name, "") for name in TREATMENTS for _ in range(WELLS_EACH)]
        labels += [(f"{kind} control", kind) for kind in CONTROLS]
        order = np.random.default_rng(p).permutation(len(labels))
        for number, place in enumerate(order.tolist()):
            perturbation, control = labels[place]
            rows.append(
                {
                    "plate_id": f"P{p}",
                    "plate": f"P{p}",
                    "batch": f"B{p % N_BATCHES}",
                    "well": f"W{number:03d}",
                    "well_id": f"P{p}/W{number:03d}",
                    "perturbation": perturbation,
                    "guide": "" if control else f"{perturbation}_g{number % 2}",
                    "control": control,
                }
            )
    return rows


def add_screen(catalog: Catalog, wells: list[dict[str, Any]], screen: str = "S") -> None:
    """Write wells, and sites, metrics and crops of each."""
    random = np.random.default_rng(len(wells))
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in ("wells", "sites", "qc_metrics", "crops", "plates")}
    for well in wells:
        place = {"screen": screen} | {name: well[name] for name in ("plate_id", "plate", "batch", "well", "well_id")}
        tables["wells"].append(place | {name: value for name, value in well.items() if name != "metrics"})
        site = place | {"site_id": well["well_id"], "site": "1", "channels": ["DNA"]}
        tables["sites"].append(site)
        measured = {name: float(random.random()) for name in METRICS_KNOWN}
        tables["qc_metrics"].append(
            {"site_id": well["well_id"], "plate_id": well["plate_id"], "channel": "DNA"}
            | {"channel_index": 0} | measured | well.get("metrics", {})
        )  # fmt: skip
        for number in range(CROPS_EACH):
            crop = {"crop_id": f"{well['well_id']}/{number}", "site_id": well["well_id"], "site": "1", "n_channels": 1}
            window = {"y": 0, "x": 64 * number, "size": 64, "foreground_share": 0.5}
            tables["crops"].append(place | crop | window)
    for plate in sorted({well["plate_id"] for well in wells}):
        of_plate = next(well for well in wells if well["plate_id"] == plate)
        tables["plates"].append({"plate_id": plate, "screen": screen, "plate": plate, "batch": of_plate["batch"]})
    for name, rows in tables.items():
        add_rows(catalog, name, *rows)


def well_vectors(wells: list[dict[str, Any]], kind: str, strength: float = 1.0) -> np.ndarray:
    """(wells, CROPS_EACH, DIM): a direction for each treatment of one kind, an offset for each plate, noise."""
    names = sorted({well["perturbation"] for well in wells})
    directions = {name: np.random.default_rng([7, number]).standard_normal(DIM) for number, name in enumerate(names)}
    random = np.random.default_rng(len(kind))
    vectors = random.standard_normal((len(wells), CROPS_EACH, DIM))
    vectors += random.standard_normal((len(wells), 1, DIM)) / 2  # what the crops of a well share
    for number, well in enumerate(wells):
        vectors[number] += 5 * np.random.default_rng([8, int(well["plate"][1:])]).standard_normal(DIM)
        if well["perturbation"].startswith(kind):
            vectors[number] += strength * directions[well["perturbation"]]
    return vectors.astype(np.float32)


def add_embeddings(
    catalog: Catalog,
    wells: list[dict[str, Any]],
    representation: str,
    vectors: np.ndarray,
    *,
    kind: str = "pixel_statistics",
    curation_id: str = "",
    day: int = 1,
) -> None:
    """Write a representation of all crops."""
    ids = [f"{well['well_id']}/{number}" for well in wells for number in range(CROPS_EACH)]
    order = np.random.default_rng(len(representation)).permutation(len(ids))  # no order may be relied on
    flat = vectors.reshape(len(ids), -1)
    columns = {
        "representation_id": [representation] * len(ids),
        "crop_id": [ids[i] for i in order],
        "well_id": [ids[i].rsplit("/", 1)[0] for i in order],
        "plate_id": [ids[i].split("/")[0] for i in order],
        "embedding": [flat[i].tolist() for i in order],
    }
    contract = table_contract("embeddings")
    catalog.append("embeddings", pa.table(columns, schema=contract.schema), transaction=f"e {representation}")
    row = {
        "representation_id": representation, "kind": kind, "block": -1, "pooling": "all", "dim": flat.shape[1],
        "curation_id": curation_id, "created_at": datetime(2026, 1, day, tzinfo=UTC),
    }  # fmt: skip
    add_rows(catalog, "representations", row)


def add_verdicts(catalog: Catalog, qc_id: str, verdicts: list[dict[str, Any]]) -> None:
    """Write verdicts given by level, ids and rule; they pass unless they say otherwise."""
    usual = {"qc_id": qc_id, "site_id": "", "well_id": "", "plate_id": "P0", "channel": "", "channel_index": -1}
    rows = [usual | {"is_pass": True, "rule": "blurred"} | verdict for verdict in verdicts]
    add_rows(catalog, "qc_verdicts", *rows)


def planted_catalog(root: Path) -> Catalog:
    """The screen, and its embeddings `first` and `second`."""
    catalog = empty_catalog(root)
    wells = plate_labels()
    add_screen(catalog, wells)
    add_embeddings(catalog, wells, "first", well_vectors(wells, "active"), kind="untrained")
    add_embeddings(catalog, wells, "second", well_vectors(wells, "second"), kind="trained", day=2)
    return catalog


def reasons_by(catalog: Catalog, curation_id: str, column: str) -> dict[str, dict[str, int]]:
    """Value of a column of wells to reason to crops; reason `` where kept."""
    rows = catalog.sql(
        f"SELECT coalesce(w.{column}, '') AS label, k.reason, count(*) AS n FROM curations k "
        "JOIN crops c USING (crop_id) JOIN wells w ON w.well_id = c.well_id "
        f"WHERE k.curation_id = '{curation_id}' GROUP BY ALL ORDER BY ALL"
    ).to_pylist()
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["label"], {})[row["reason"]] = row["n"]
    return found


def details(catalog: Catalog, curation_id: str) -> dict[str, str]:
    """Detail of each crop that has one."""
    rows = catalog.table("curations", where=f"curation_id = '{curation_id}' AND detail <> ''").to_pylist()
    return {row["crop_id"]: row["detail"] for row in rows}


def run_row(catalog: Catalog, curation_id: str) -> dict[str, Any]:
    """Row of curation_runs, its JSON read."""
    (row,) = catalog.table("curation_runs", where=f"curation_id = '{curation_id}'").to_pylist()
    return row | {name: json.loads(row[name]) for name in ("spec", "steps", "reasons", "table_versions")}
