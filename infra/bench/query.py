"""Bytes that filters on plate, perturbation and QC read from a catalog of 5 million crop rows, against a full scan.

The catalog is written through `Catalog.write_plate`, plate by plate as an ingest does. Bytes are what this process took
from read system calls (`rchar` of /proc/self/io), the Delta logs included. The full scan gives the same answer by
reading every file of the same tables. The bar is on the least of the ratios.
"""

from __future__ import annotations

import binascii
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

import cytolake.catalog
from cytolake.catalog import Catalog, table_contract
from cytolake.qc.verdicts import qc_profile
from cytolake.screens.positions import name_of_well

BAR = 20.0
N_PLATES = 100
SITES_PER_WELL, CROPS_PER_SITE = 2, 66
N_WELLS = 384
LAYOUTS = 25  # compound plates; each was imaged as four replicates
CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
WELL_NAMES = np.array([name_of_well(i // 24, i % 24) for i in range(N_WELLS)])


def hashes(rng: np.random.Generator, n: int) -> pa.Array:
    """Ids as ingest makes them: 32 hex digits without any pattern."""
    return pa.array(np.frombuffer(binascii.hexlify(rng.bytes(16 * n)), "S32")).cast(pa.string())


def write_plate(catalog: Catalog, number: int, rng: np.random.Generator) -> None:
    plate, batch = f"P{number:03d}", f"batch{number // 10}"
    plate_id = hashes(rng, 1)[0].as_py()
    well_ids = hashes(rng, N_WELLS)
    n_sites = N_WELLS * SITES_PER_WELL
    site_ids = hashes(rng, n_sites)
    n_crops = n_sites * CROPS_PER_SITE
    of_site = np.repeat(np.arange(n_sites), CROPS_PER_SITE)
    keys = {"plate_id": plate_id, "screen": "bench", "plate": plate, "batch": batch}

    def same(n: int, **values: object) -> dict[str, pa.Array]:
        return {name: pa.repeat(pa.scalar(value), n) for name, value in values.items()}

    # 32 control wells on every plate, the others hold a compound of their layout
    layout = number % LAYOUTS
    names = [f"compound{layout * N_WELLS + i}" if i % 12 else "DMSO" for i in range(N_WELLS)]
    contract = table_contract("wells")
    plain = {field.name: pa.repeat(pa.scalar("", pa.string()), N_WELLS) for field in contract.schema}
    wells = (
        plain
        | same(N_WELLS, **keys)
        | {
            "well_id": well_ids,
            "well": pa.array(WELL_NAMES),
            "perturbation": pa.array(names),
            "control": pa.array(["negative" if name == "DMSO" else "" for name in names]),
            "is_negative_control": pa.array([name == "DMSO" for name in names]),
            "row": pa.array(np.arange(N_WELLS) // 24),
            "column": pa.array(np.arange(N_WELLS) % 24),
            "dose": pa.nulls(N_WELLS, pa.float64()),
            "has_images": pa.repeat(pa.scalar(True), N_WELLS),
        }
    )
    side = int(np.ceil(np.sqrt(CROPS_PER_SITE)))
    at = np.tile(np.arange(CROPS_PER_SITE), n_sites)
    crops = same(n_crops, **keys, n_channels=len(CHANNELS), size=64) | {
        "crop_id": hashes(rng, n_crops),
        "site_id": site_ids.take(pa.array(of_site)),
        "well_id": well_ids.take(pa.array(of_site // SITES_PER_WELL)),
        "well": pa.array(WELL_NAMES[of_site // SITES_PER_WELL]),
        "site": pa.array((of_site % SITES_PER_WELL + 1).astype(str)),
        "y": pa.array(at // side * 64),
        "x": pa.array(at % side * 64),
        "foreground_share": pa.array(rng.random(n_crops)),
    }
    profile = qc_profile("default")
    rules = [rule.name for rule in profile.rules if getattr(rule, "level", "site") == "site"]
    n_verdicts = n_sites * len(CHANNELS) * len(rules)
    of_verdict = np.arange(n_verdicts)
    site = of_verdict // (len(CHANNELS) * len(rules))
    channel = of_verdict // len(rules) % len(CHANNELS)
    verdicts = same(
        n_verdicts, qc_id=profile.qc_id, level="site", plate_id=plate_id, metric="sd", judged_at=datetime.now(UTC)
    ) | {
        "site_id": site_ids.take(pa.array(site)),
        "well_id": well_ids.take(pa.array(site // SITES_PER_WELL)),
        "channel": pa.array(np.array(CHANNELS)[channel]),
        "channel_index": pa.array(channel),
        "rule": pa.array(np.array(rules)[of_verdict % len(rules)]),
        "value": pa.array(rng.random(n_verdicts)),
        "threshold": pa.array(np.full(n_verdicts, 0.99)),
        "is_pass": pa.array(rng.random(n_verdicts) > 0.005),
    }
    for name, columns in (("wells", wells), ("crops", crops)):
        catalog.write_plate(name, as_rows(name, columns), plate_id=plate_id, content=1)
    catalog.append("qc_verdicts", as_rows("qc_verdicts", verdicts), transaction=f"qc/{plate_id}")
    row = keys | {
        "source": "/nowhere",
        "reader": "files",
        "content_hash": plate_id,
        "channels": list(CHANNELS),
        "pixel_size_um": 0.65,
        "n_wells": N_WELLS,
        "n_sites": n_sites,
        "n_crops": n_crops,
        "n_quarantined": 0,
        "ingested_at": datetime.now(UTC),
    }
    catalog.append("plates", table_contract("plates").rows([row]), transaction=f"plate/{plate_id}")


def as_rows(name: str, columns: dict[str, pa.Array]) -> pa.Table:
    schema = table_contract(name).schema
    return pa.table(columns).select(schema.names).cast(schema)


def bytes_read() -> int:
    text = Path("/proc/self/io").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("rchar")).split()[1])


def measured(query: Callable[[], pa.Table]) -> tuple[pa.Table, int, float]:
    """Answer, bytes and seconds of a query; the second run counts, as for a process that is up."""
    query()
    before, started = bytes_read(), time.perf_counter()
    answer = query()
    return answer, bytes_read() - before, time.perf_counter() - started


def full_scan(catalog: Catalog, **columns: list[str]) -> dict[str, pa.Table]:
    """Every row of some tables, from every file of theirs."""
    found = {}
    for name, wanted in columns.items():
        files = catalog.dataset(name).files
        root = f"{catalog.place}/tables/{name}"
        found[name] = pa.concat_tables(
            pq.ParquetFile(f"{root}/{file}" if not file.startswith("/") else file).read(columns=wanted)
            for file in files
        )
    return found


def main() -> int:
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-query-") as folder:
        catalog = cytolake.catalog.open(folder, create=True)
        rng = np.random.default_rng(0)
        started = time.perf_counter()
        for number in range(N_PLATES):
            write_plate(catalog, number, rng)
        n_rows = catalog.sql("SELECT count(*) AS n FROM crops")["n"][0].as_py()
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.parquet"))
        console.print(
            f"{n_rows:,} crops on {N_PLATES} plates, {size / 1e6:,.0f} MB of Parquet, written in "
            f"{time.perf_counter() - started:.0f} s"
        )
        crops = table_contract("crops").schema.names
        verdict = ["site_id", "is_pass"]  # qc_id is a folder name, and all of these are of one profile
        compound = "compound1234"

        def scan_plate() -> pa.Table:
            return full_scan(catalog, crops=crops)["crops"].filter(pc.field("plate") == "P042")

        def scan_perturbation() -> pa.Table:
            found = full_scan(catalog, crops=crops, wells=["well_id", "perturbation"])
            wells = found["wells"].filter(pc.field("perturbation") == compound)["well_id"]
            return found["crops"].filter(pc.field("well_id").isin(wells.combine_chunks()))

        def scan_all_three() -> pa.Table:
            verdicts = full_scan(catalog, qc_verdicts=verdict)["qc_verdicts"]
            failed = verdicts.filter(~pc.field("is_pass"))["site_id"].unique()
            there = scan_perturbation()
            return there.filter((pc.field("batch") == "batch5") & ~pc.field("site_id").isin(failed))

        queries: list[tuple[str, Callable[[], pa.Table], Callable[[], pa.Table]]] = [
            ("one plate, SQL", lambda: catalog.sql("SELECT * FROM crops WHERE plate = 'P042'"), scan_plate),
            ("one plate, find_crops", lambda: catalog.find_crops(plates=["P042"]), scan_plate),
            ("one perturbation", lambda: catalog.find_crops(perturbations=[compound]), scan_perturbation),
            (
                "plates, perturbation, QC",
                lambda: catalog.find_crops(
                    plates=[f"P{number:03d}" for number in range(50, 60)],
                    perturbations=[compound],
                    qc_id=qc_profile("default").qc_id,
                ),
                scan_all_three,
            ),
        ]
        shown = Table("query", "rows", "read", "full scan", "times fewer", "seconds", "scan, s", box=None)
        ratios = []
        for name, query, scan in queries:
            answer, n_bytes, seconds = measured(query)
            expected, n_scanned, scan_seconds = measured(scan)
            if answer["crop_id"].to_pylist() != expected["crop_id"].to_pylist():
                same = set(answer["crop_id"].to_pylist()) == set(expected["crop_id"].to_pylist())
                if not same:
                    console.print(f"{name}: {answer.num_rows} rows, the full scan finds {expected.num_rows}")
                    print("query: figure=0.0 bar=20 short")
                    return 1
            ratios.append(n_scanned / n_bytes)
            shown.add_row(
                name,
                f"{answer.num_rows:,}",
                f"{n_bytes / 1e6:.2f} MB",
                f"{n_scanned / 1e6:.0f} MB",
                f"{ratios[-1]:.0f}",
                f"{seconds:.2f}",
                f"{scan_seconds:.2f}",
            )
        console.print(shown)
    figure = min(ratios)
    print(f"query: figure={figure:.1f} bar={BAR:.0f} {'ok' if figure >= BAR else 'short'}")
    return 0 if figure >= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
