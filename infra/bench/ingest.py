"""Ingest of simulated TIFF and OME-Zarr plates with Ray, against a bare multiprocessing loop over the same sites.

The loop decodes each site with tifffile or zarr, computes the same QC metrics, crop grid and foreground shares, and
throws them away: no listing, no checks, no catalog. Both have two processes. The figure is its time over that of the
ingest, from the listing of the screens to the last commit; Ray itself is up before. They take turns, and of each pair
of runs the ratio is taken, since the speed of a shared machine drifts. Memory is the proportional set size of the
ingest's whole process tree, at one plate of each format and at eight, in runs of their own: to read it four times a
second takes a tenth of both cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from rich.console import Console
from rich.table import Table

import cytolake.catalog
from cytolake.catalog.ingest.plates import IngestConfig, ingest_screens
from cytolake.catalog.ingest.site_rows import crop_grid
from cytolake.pipeline.session import RayConfig, ray_session
from cytolake.qc.metrics import measure_with_windows
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource

BAR, MEMORY_BAR = 0.8, 1.3
PROCESSES = 2
CROP_SIZE = 64
REPEATS = 2
SCREEN = SimulatedScreen(
    screen="zarr",
    site_size_px=1080,
    n_plates=12,
    n_pathways=1,
    genes_per_pathway=2,
    guides_per_gene=1,
    n_compounds=1,
    doses=(1.0,),
    n_negative_controls=3,
    n_positive_controls=2,
    sites_per_well=2,
)


def write_screens(folder: Path, *, n_plates: int, like: Path | None = None) -> tuple[list[list[str]], int]:
    """The same pixels as OME-Zarr plates in `folder/zarr` and as TIFF files in `folder/tiff`.

    Args:
        folder: Where to.
        n_plates: Of each format.
        like: A folder written before, whose first plates are linked to instead.

    Returns:
        Image paths of every site, and the bytes on disk.
    """
    zarr_folder, tiff_folder = folder / "zarr", folder / "tiff"
    if like is None:
        simulate_screen(SCREEN, folder)
    else:
        zarr_folder.mkdir(parents=True)
        plates = sorted((like / "zarr").glob("*.zarr"))[:n_plates]
        header, *lines = (like / "zarr" / "platemap.csv").read_text().splitlines(keepends=True)
        mapped = [line for line in lines if line.split(",")[0] in {plate.stem for plate in plates}]
        (zarr_folder / "platemap.csv").write_text("".join([header, *mapped]))
        for plate in plates:
            subprocess.run(["cp", "-al", plate, zarr_folder / plate.name], check=True)
        tiff_folder.mkdir()
        for plate in sorted(path for path in (like / "tiff").iterdir() if path.is_dir())[:n_plates]:
            subprocess.run(["cp", "-al", plate, tiff_folder / plate.name], check=True)
    sites: list[list[str]] = []
    rows = ["plate,well,site,channel,path"]
    for plate in sorted(zarr_folder.glob("*.zarr")):
        for image in sorted(path.parent for path in plate.glob("*/*/*/0")):
            sites.append([str(image / "0")])
            well, site = image.parts[-3] + image.parts[-2], image.parts[-1]
            files = [f"{plate.stem}/{well}_s{site}_w{channel}.tif" for channel in range(1, 6)]
            if like is None:
                (tiff_folder / plate.stem).mkdir(parents=True, exist_ok=True)
                for file, plane in zip(files, np.asarray(zarr.open_array(str(image / "0"), mode="r")[:]), strict=True):
                    tifffile.imwrite(tiff_folder / file, plane)
            stains = ("DNA", "ER", "RNA", "AGP", "Mito")
            rows += [f"{plate.stem},{well},{site},{stain},{file}" for stain, file in zip(stains, files, strict=True)]
            sites.append([str(tiff_folder / file) for file in files])
    (tiff_folder / "index.csv").write_text("\n".join(rows) + "\n")
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sites, n_bytes


def measure_bare(paths: list[str]) -> int:
    """What an ingest computes of a site, and nothing else; the number of its crops."""
    if len(paths) == 1:
        pixels = np.asarray(zarr.open_array(paths[0], mode="r")[:])
    else:
        pixels = np.stack([tifffile.imread(path) for path in paths])
    corners = crop_grid(*pixels.shape[1:], CROP_SIZE)
    measure_with_windows(pixels, [(y, x, CROP_SIZE) for y, x in corners])
    return len(corners)


def bare_loop(sites: list[list[str]]) -> tuple[int, float]:
    """Crops and seconds of the loop, the start of its processes included."""
    started = time.perf_counter()
    with get_context("spawn").Pool(PROCESSES) as pool:
        n_crops = sum(pool.imap_unordered(measure_bare, sites))
    return n_crops, time.perf_counter() - started


def ingest_here(screens: str, root: str) -> None:
    """Run in a process of its own: ingest both screens, and print crops and seconds as JSON."""
    catalog = cytolake.catalog.open(root, create=True)
    started = time.perf_counter()
    with ray_session(RayConfig(cpus=PROCESSES)):
        ray_s = time.perf_counter() - started
        sources = [
            ScreenSource(screen="zarr", path=f"{screens}/zarr", layout="ome-zarr"),
            ScreenSource(screen="tiff", path=f"{screens}/tiff", layout="index-csv"),
        ]
        time.sleep(1.5)  # Ray's services are still starting when it says that it is up
        started = time.perf_counter()
        report = ingest_screens(catalog, sources, IngestConfig(crop_size=CROP_SIZE))
        seconds = time.perf_counter() - started
    print(json.dumps({"crops": report.n_crops, "quarantined": report.n_quarantined, "s": seconds, "ray_s": ray_s}))


def ingest(screens: Path, *, peak: dict[str, float] | None = None) -> dict[str, Any]:
    """One ingest into a new catalog: crops and seconds; `peak` takes the most MB, in all and without Ray's services."""
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-catalog-", dir=screens.parent) as root:
        driver = subprocess.Popen(
            [sys.executable, __file__, "ingest", str(screens), root],
            env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert driver.stdout is not None
        is_over = threading.Event()

        def sample() -> None:
            while peak is not None and not is_over.wait(0.25):
                for name, value in tree_mb(driver.pid).items():
                    peak[name] = max(peak.get(name, 0.0), value)

        sampler = threading.Thread(target=sample)
        sampler.start()
        output = driver.stdout.read()
        is_over.set()
        sampler.join()
        if driver.wait():
            raise RuntimeError(f"the ingest failed with exit code {driver.returncode}")
    found: dict[str, Any] = json.loads(output)
    if found["quarantined"]:
        raise RuntimeError(f"{found['quarantined']} rows in quarantine; expected none of simulated plates")
    return found


def tree_mb(pid: int) -> dict[str, float]:
    """Proportional set size of a process and all below it: `all`, and `work`, without Ray's own services."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    tree, edge = {pid}, {pid}
    while edge:
        edge = {child for child, parent in parents.items() if parent in edge} - tree
        tree |= edge
    found = {"all": 0.0, "work": 0.0}
    for member in tree:
        try:
            name = Path(f"/proc/{member}/cmdline").read_text().replace("\0", " ")
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except OSError:
            continue
        mb = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024
        found["all"] += mb
        if member == pid or name.startswith("ray::"):
            found["work"] += mb
    return found


def main() -> int:
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-ingest-") as name:
        large, eight, one = (Path(name) / part for part in ("all", "8x", "1x"))
        sites, n_bytes = write_screens(large, n_plates=SCREEN.n_plates)
        n_eight, n_one = (write_screens(part, n_plates=n, like=large)[1] for part, n in ((eight, 8), (one, 1)))
        console.print(
            f"{len(sites)} sites of 5 x {SCREEN.site_size_px} x {SCREEN.site_size_px} uint16, half TIFF, half "
            f"OME-Zarr: {n_bytes / 1e9:.2f} GB on disk; 8x is {n_eight / 1e9:.2f} GB, 1x {n_one / 1e9:.2f} GB"
        )
        bare_loop(sites[:4])  # the files are warm in the page cache for both: written just now
        bare, ours = [], []
        for _ in range(REPEATS):
            n_crops, seconds = bare_loop(sites)
            bare.append(seconds)
            ours.append(ingest(large))
            if ours[-1]["crops"] != n_crops:
                raise RuntimeError(f"the ingest found {ours[-1]['crops']} crops, the bare loop {n_crops}")
        at_1x: dict[str, float] = {}
        at_8x: dict[str, float] = {}
        ingest(one, peak=at_1x)
        ingest(eight, peak=at_8x)
    bare_s, ours_s = statistics.median(bare), statistics.median(run["s"] for run in ours)
    shown = Table("", "seconds (median)", "MB/s", "all runs", box=None)
    for label, seconds, runs in (
        ("bare loop", bare_s, bare),
        ("ingest", ours_s, [run["s"] for run in ours]),
    ):
        shown.add_row(
            label, f"{seconds:.1f}", f"{n_bytes / 1e6 / seconds:.0f}", ", ".join(f"{run:.1f}" for run in runs)
        )
    console.print(shown)
    console.print(f"Ray starts in {statistics.median(run['ray_s'] for run in ours):.1f} s, not counted")
    memory = Table("peak memory", "1x", "8x", "ratio", box=None)
    ratios = []
    for label, key in (("driver and workers", "work"), ("with Ray's own services and object store", "all")):
        ratios.append(at_8x[key] / at_1x[key])
        memory.add_row(label, f"{at_1x[key]:,.0f} MB", f"{at_8x[key]:,.0f} MB", f"{ratios[-1]:.2f}")
    console.print(memory)
    figure = statistics.median(alone / run["s"] for alone, run in zip(bare, ours, strict=True))
    growth = max(ratios)
    is_ok = figure >= BAR and growth <= MEMORY_BAR
    print(
        f"ingest: figure={figure:.2f} bar={BAR} memory_8x={growth:.2f} memory_bar={MEMORY_BAR} "
        f"{'ok' if is_ok else 'short'}"
    )
    return 0 if is_ok else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["ingest"]:
        ingest_here(*sys.argv[2:4])
        sys.exit(0)
    sys.exit(main())
