"""How long other labels for 384 wells take in a catalog of a million crops, and how much of it is written anew. Called
by `make bench-annotate`.

The rows are synthetic: one plate of 384 wells, 9 sites a well and 290 crops a site, written as an ingest writes them.
An annotation must cost what the wells cost, whatever the number of crops.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

import cytolake.catalog
from cytolake.catalog import ids, table_contract
from cytolake.catalog.corrections import annotate
from cytolake.catalog.tables import Catalog

BAR_S = 5.0
BAR_SHARE = 0.01
WELLS = [f"{row}{column:02d}" for row in "ABCDEFGHIJKLMNOP" for column in range(1, 25)]
SITES_PER_WELL = 9
CROPS_PER_SITE = 290


def synthetic_plate(catalog: Catalog) -> int:
    """Write one plate; returns its number of crops."""
    rng = np.random.default_rng(0)
    of = ids.PlateIds("bench", "P1")
    names = {"plate_id": of.plate_id, "screen": "bench", "plate": "P1", "batch": "B"}
    wells, sites = [], []
    for number, well in enumerate(WELLS):
        bare = dict.fromkeys(("pathway", "guide", "compound", "replicate", "control"), "")
        labels = bare | {"gene": f"GENE{number}", "perturbation": f"GENE{number}", "dose": None, "annotations": "{}"}
        place = {"well": well, "row": number // 24, "column": number % 24, "has_images": True}
        wells.append(names | labels | place | {"well_id": of.well_id(well), "is_negative_control": False})
        for site in map(str, range(SITES_PER_WELL)):
            keys = {"site_id": of.site_id(well, site, 0, ""), "well_id": of.well_id(well), "well": well, "site": site}
            pixels = {"height": 1080, "width": 1080, "dtype": "uint16", "channels": ["DNA"], "image_paths": ["x"]}
            rest = {"timepoint": 0, "z": "", "reader": "files", "planes": [], "illumination_paths": []}
            sites.append(names | keys | pixels | rest)
    n = len(sites) * CROPS_PER_SITE
    every = np.repeat(np.arange(len(sites)), CROPS_PER_SITE)
    columns = {name: pa.array([site[name] for site in sites]).take(pa.array(every)) for name in _OF_SITE}
    crops = pa.table(
        {
            "crop_id": [rng.bytes(16).hex() for _ in range(n)],
            **columns,
            "n_channels": pa.array(np.ones(n, np.int32)),
            "y": pa.array(rng.integers(0, 1000, n, np.int32)),
            "x": pa.array(rng.integers(0, 1000, n, np.int32)),
            "size": pa.array(np.full(n, 64, np.int32)),
            "foreground_share": pa.array(rng.uniform(0, 1, n)),
        }
    )
    tables = {
        "wells": table_contract("wells").rows(wells),
        "sites": table_contract("sites").rows(sites),
        "crops": crops,
    }
    catalog.claim_plate(of.plate_id, 1)
    for name, rows in tables.items():
        catalog.write_plate(name, rows, plate_id=of.plate_id, content=1)
    row = names | {"source": "bench", "reader": "files", "content_hash": "x", "channels": ["DNA"]}
    row |= {"pixel_size_um": None, "n_wells": len(wells), "n_sites": len(sites), "n_crops": n, "n_quarantined": 0}
    row["ingested_at"] = None
    catalog.show_plate(table_contract("plates").rows([row]), plate_id=of.plate_id, content=1)
    return n


_OF_SITE = ("site_id", "well_id", "plate_id", "screen", "plate", "batch", "well", "site")


def bytes_of(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-annotate-") as name:
        root = Path(name)
        catalog = cytolake.catalog.open(root / "catalog", create=True)
        n_crops = synthetic_plate(catalog)
        plate_map = root / "map.csv"
        lines = [f"{well},OTHER{number}" for number, well in enumerate(WELLS)]
        plate_map.write_text("\n".join(["well,gene", *lines]) + "\n")
        before = bytes_of(root / "catalog")
        started = time.monotonic()
        report = annotate(catalog, "bench/P1", plate_map)
        seconds = time.monotonic() - started
        after = bytes_of(root / "catalog")
        written = sum(size for path, size in after.items() if before.get(path) != size)
        share = written / sum(before.values())
        joined = catalog.sql("select count(*) n from crops join wells using (well_id) where gene like 'OTHER%'")
        is_right = joined["n"].to_pylist() == [n_crops] and len({each.well for each in report.changes}) == len(WELLS)
    is_ok = is_right and seconds < BAR_S and share < BAR_SHARE
    print(f"{len(WELLS)} wells of a plate with {n_crops:,} crops annotated: {seconds:.2f} s, bar {BAR_S:.0f} s")
    print(f"written {written:,} bytes of {sum(before.values()):,}: {share:.3%}, bar {BAR_SHARE:.0%}")
    print(f"annotate: figure={seconds:.2f} bar={BAR_S:.0f} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
