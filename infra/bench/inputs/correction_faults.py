"""Corrections that are killed with SIGKILL before and after every write, and at random moments between.

Each correction runs in a process of its own on a copy of one small catalog. What is visible after the kill must be the
state before the correction or the one after it, to this program, to DuckDB and to Polars alike; the same correction
again must end in the state of one that was never disturbed, with every row once.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import tifffile
from deltalake import DeltaTable

import cytolake.catalog
from cytolake.catalog import Catalog, CatalogError, commits, ids, table_contract, table_names
from cytolake.catalog.corrections import annotate, annotate_objects, purge, rename, replace_plate, restore, retract
from cytolake.catalog.ingest import plates as ingesting
from cytolake.catalog.ingest.plates import IngestConfig, ingest_plates
from cytolake.catalog.views import view_text
from cytolake.screens.plate import Plate, SiteImage

CONFIG = IngestConfig(crop_size=32)
VISIBLE = ("plates", "wells", "sites", "crops", "qc_metrics", "objects", "embeddings")
N_RANDOM = 3
"""Kills of each verb at random moments."""


@dataclasses.dataclass
class Outcome:
    """Sums over all kills."""

    kills: Counter[str] = dataclasses.field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    unreadable: int = 0
    half_visible: int = 0


def write_plate(folder: Path, name: str, seed: int) -> Plate:
    """Write the files of a plate: two wells of one site, 64 x 64 pixels."""
    rng = np.random.default_rng(seed)
    plate = plate_in(folder, name)
    for site in plate.sites:
        path = Path(site.image_paths[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, rng.integers(0, 4096, (64, 64), np.uint16))
    return plate


def plate_in(folder: Path, name: str) -> Plate:
    """The same plate as a listing gives it."""
    sites = []
    for well in ("A01", "A02"):
        path = folder / name / f"{well}.tif"
        sites.append(
            SiteImage(
                screen="S", plate=name, well=well, site="1", channels=("DNA",), reader="files", image_paths=(str(path),)
            )
        )
    wells = ({"well": "A01", "gene": "TP53"}, {"well": "A02", "gene": "MYC"})
    source = str(folder / name)
    return Plate(
        screen="S", plate=name, batch="B", source=source, reader="files", channels=("DNA",), sites=tuple(sites),
        wells=wells,
    )  # fmt: skip


def stage_here() -> None:
    """Wells are staged in this process: Ray's workers are killed by the other faults of this bench."""

    def read_wells(tasks: list[dict[str, Any]], config: IngestConfig) -> Iterator[dict[str, Any]]:
        for task in tasks:
            sites = [ingesting._site_from_json(site) for site in task["sites"]]
            of = ids.PlateIds(*task["of"])
            ingesting.stage_well(ingesting.Staging(task["staging"]), sites, task["batch"], config.crop_size, of)
            yield {"plate": task["plate"], "well": task["well"], "n_sites": len(sites), "error": ""}

    ingesting._read_wells = read_wells


def template(folder: Path) -> Path:
    """A catalog of two plates with embeddings, a retracted third, and new files of the first."""
    stage_here()
    catalog = cytolake.catalog.open(folder / "template", create=True)
    listed = [write_plate(folder / "source", name, seed) for seed, name in enumerate(("P1", "P2", "P3"))]
    ingest_plates(catalog, listed, CONFIG)
    write_plate(folder / "new", "P1", 9)
    for row in catalog.table("crops").to_pylist():
        vector = {name: row[name] for name in ("crop_id", "well_id", "plate_id")}
        vector |= {"representation_id": "r", "embedding": [1.0]}
        catalog.append("embeddings", table_contract("embeddings").rows([vector]), transaction=row["crop_id"])
    retract(catalog, "S/P3", "blurred")
    (folder / "map.csv").write_text("well,gene,batch\nA01,KRAS,later\nA02,MYC,later\n")
    (folder / "cells.csv").write_text("well,site,cell,y,x,guide\nA01,1,1,9,9,g1\nA01,1,2,40,40,g2\nA02,1,1,9,9,g1\n")
    return folder / "template"


VERBS: dict[str, Callable[[Catalog, Path], object]] = {
    "annotate": lambda catalog, folder: annotate(catalog, "S/P1", folder / "map.csv"),
    "label_objects": lambda catalog, folder: annotate_objects(catalog, "S/P1", folder / "cells.csv"),
    "rename": lambda catalog, _: rename(catalog, "S/P1", screen="T", plate="Q1"),
    "retract": lambda catalog, _: retract(catalog, "S/P1", "blurred"),
    "restore": lambda catalog, _: restore(catalog, "S/P3"),
    "replace": lambda catalog, folder: replace_plate(catalog, "S/P1", plate_in(folder / "new", "P1"), CONFIG),
    "purge": lambda catalog, _: purge(catalog, "S/P1", "consent withdrawn"),
}
DONE = re.compile(r"found it (retracted|purged|visible)|nothing to replace|not in the catalog")
"""What a correction says that was done before."""


def correct(verb: str, root: str, folder: str, kill_at: int) -> None:
    """Run in a process of its own; ends it with SIGKILL before (even) or after (odd) one of its writes."""
    stage_here()
    count = 0

    def killing(write: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            done = write(*arguments, **named)
            if count + 1 == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 2
            return done

        return run

    commits._write = killing(commits._write)
    module = sys.modules["cytolake.catalog.corrections.purge"]  # the package has a function of this name
    module.delete_rows = killing(module.delete_rows)
    module._remove_files = killing(module._remove_files)
    try:
        VERBS[verb](cytolake.catalog.open(root), Path(folder))
    except CatalogError as error:
        if not DONE.search(str(error)):
            raise


def run(verb: str, root: Path, folder: Path, kill_at: int = -1, after_s: float | None = None) -> bool:
    """Run a correction; whether it was killed."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=correct, args=(verb, str(root), str(folder), kill_at))
    process.start()
    process.join(after_s)
    if process.is_alive():
        process.kill()
        process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{verb} on {root} failed with exit code {process.exitcode}")
    return process.exitcode == -signal.SIGKILL


def rows_of(root: Path) -> dict[str, Counter[str]]:
    """How many times each visible row is in each table, times of writing left out."""
    catalog = cytolake.catalog.open(root)
    found = {}
    for name in VISIBLE:
        left_out = [c for c in table_contract(name).schema.names if c.endswith("_at") or c == "files_hash"]
        rows = catalog.table(name).drop_columns(left_out).to_pylist()
        found[name] = Counter(json.dumps(row, sort_keys=True) for row in rows)
    return found


def counts_of_others(root: Path) -> list[dict[str, int]]:
    """Rows of each table to DuckDB and to Polars, by the scripts that `cytolake catalog views` prints."""
    catalog = cytolake.catalog.open(root)
    text = view_text(catalog, "duckdb")
    with duckdb.connect() as database:
        for number, path in enumerate(dict.fromkeys(re.findall(r"delta_scan\('([^']*)'\)", text))):
            database.register(f"raw_{number}", DeltaTable(path).to_pyarrow_dataset())
            text = text.replace(f"delta_scan('{path}')", f"raw_{number}")
        database.execute(text)
        by_duckdb = {name: database.execute(f"select count(*) from {name}").fetchall()[0][0] for name in VISIBLE}
    frames: dict[str, Any] = {}
    exec(view_text(catalog, "polars"), frames)
    return [by_duckdb, {name: frames[name].select(pl.len()).collect().item() for name in VISIBLE}]


def unreadable_versions(root: Path, verb: str, before: dict[str, int]) -> int:
    """Versions of any table, from the one before the correction, that cannot be read whole.

    After a purge the newest alone: older ones lose the plate.
    """
    count = 0
    for name in table_names():
        path = str(root / "tables" / name)
        newest = DeltaTable(path).version()
        for version in range(newest if verb == "purge" else before[name], newest + 1):
            try:
                DeltaTable(path, version=version).to_pyarrow_table()
            except Exception as error:  # whatever it is, the version is unreadable
                print(f"{verb}: {name} version {version}: {error}")
                count += 1
    return count


def correction_faults(folder: Path, progress: Callable[[str], None]) -> Outcome:
    """Kill every correction at every write and at random moments.

    Args:
        folder: Empty, for catalogs.
        progress: Called with a line after each verb.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cytolake.catalog.corrections", __name__])
    start = template(folder)
    outcome = Outcome()
    rng = np.random.default_rng(0)
    before = rows_of(start)
    versions = cytolake.catalog.open(start).versions()
    for verb in VERBS:
        whole = folder / f"{verb}-whole"
        shutil.copytree(start, whole)
        began = time.monotonic()
        run(verb, whole, folder)
        took = time.monotonic() - began
        after = rows_of(whole)
        moments: list[dict[str, Any]] = [{"after_s": each} for each in rng.uniform(0, took, N_RANDOM).tolist()]
        kill_at = 0
        while True:
            how: dict[str, Any] = moments.pop() if moments else {"kill_at": kill_at}
            kill_at += "kill_at" in how
            root = folder / f"{verb}-killed"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(start, root)
            was_killed = run(verb, root, folder, **how)
            if was_killed:
                outcome.kills[verb] += 1
                seen = rows_of(root)
                of_others = counts_of_others(root)
                ours = {name: rows.total() for name, rows in seen.items()}
                is_half = seen not in (before, after) or any(each != ours for each in of_others)
                outcome.half_visible += is_half
                outcome.unreadable += unreadable_versions(root, verb, versions)
                run(verb, root, folder)
            found = rows_of(root)
            outcome.lost += sum((after[name] - found[name]).total() for name in VISIBLE)
            outcome.doubled += sum((found[name] - after[name]).total() for name in VISIBLE)
            outcome.unreadable += unreadable_versions(root, verb, versions)
            if not was_killed and "kill_at" in how:
                break  # it has no more writes
        progress(
            f"{verb}: {outcome.kills[verb]} kills; so far lost {outcome.lost}, doubled {outcome.doubled}, unreadable "
            f"{outcome.unreadable}, half visible {outcome.half_visible}"
        )
    return outcome
