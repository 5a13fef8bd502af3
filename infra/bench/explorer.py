"""Frame times of the explorer page with 1 million points, in headless Chromium on software GL.

`explorer.py [FOLDER]` writes screenshots there. The catalog is synthetic: 1,000,000 crops of 50 plates with embeddings
of 32 values and no pixels. The service runs in a process of its own, the page is loaded as a person would load it, and
the map is moved a step at every animation frame while the times between frames are noted.

Software GL draws on the CPUs what a graphics chip draws in a few milliseconds. Where frames come slowly the page draws
a part of the points until the map rests, and the first frames, with all of them, are printed too. The bar: 10 frames a
second without any graphics chip, on the same CPUs as the server, so that the map follows the hand there as well.
"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from inputs.browser import Page

import cytolake.catalog
from cytolake.catalog import Catalog, channel_vocabulary, ids, table_contract
from cytolake.catalog.ids import content_id
from cytolake.models import ModelConfig, build_encoder, save_encoder
from cytolake.screens.positions import name_of_well
from cytolake.tracking import ModelCard, TrackingConfig, promote

BAR_MS = 100.0
N_CROPS, N_PLATES, N_WELLS, DIM = 1_000_000, 50, 384, 32
N_GENES = 200
N_FRAMES = 60

SERVER = """
import os, uvicorn
from cytolake.serving import Service, build_app, config_from_environment
service = Service(config_from_environment(os.environ))
service.load()
uvicorn.run(build_app(service), host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
"""

MOVE = """
(async (frames) => {
  const { slots } = await import("./app.js");
  const { plot } = slots.representation.scatter;
  const [x, y] = plot.get("cameraTarget");
  const next = () => new Promise(requestAnimationFrame);
  const times = [];
  let last = await next();
  for (let i = 1; i <= frames; i++) {
    plot.set({ cameraTarget: [x + 0.3 * Math.sin(i / 6), y + 0.2 * Math.sin(i / 4)] });
    const now = await next();
    times.push(now - last);
    last = now;
  }
  plot.set({ cameraTarget: [x, y] });
  return times;
})(%d)
"""


def main() -> int:
    shots = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    if shots is not None:
        shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-explorer-") as root:
        started = time.perf_counter()
        write_catalog(Path(root))
        print(f"catalog of {N_CROPS:,} crops and vectors of {DIM} values: {time.perf_counter() - started:.0f} s")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = os.environ | {"CYTOLAKE_ROOT": root, "CYTOLAKE_NO_AUTH": "1", "PORT": str(port)}
        environment.pop("CYTOLAKE_API_KEYS", None)
        server = subprocess.Popen([sys.executable, "-c", SERVER], env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, server)
            wait_for_map(address, "pca")
            times_ms = asyncio.run(look(address, shots))
        finally:
            server.terminate()
            server.wait()
    median_ms = statistics.median(times_ms)
    p95_ms = float(np.percentile(times_ms, 95))
    first_ms = ", ".join(f"{time_ms:.0f}" for time_ms in times_ms[:4])
    print(f"{N_FRAMES} frames while moving: first ones {first_ms} ms")
    print(f"median {median_ms:.0f} ms, 95th percentile {p95_ms:.0f} ms")
    is_ok = median_ms <= BAR_MS
    print(f"explorer: figure={median_ms:.0f} bar={BAR_MS:.0f} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def write_catalog(root: Path) -> None:
    """Plates, wells, crops, their vectors in 200 clusters, and a champion whose vectors they claim to be."""
    catalog = cytolake.catalog.open(root, create=True)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(N_GENES, DIM)) * 2
    for number in range(N_PLATES):
        write_plate(catalog, number, rng, centres)
    config = ModelConfig(
        architecture="chada_vit", channels=channel_vocabulary().names, crop_size=16, patch_size=8, width=DIM, depth=1,
        heads=2,
    )  # fmt: skip
    checkpoint = root / "runs" / "encoder.safetensors"
    save_encoder(build_encoder(config, seed=0), checkpoint)
    card = ModelCard(
        representation_id="synthetic", model_id="m", architecture="chada_vit", channels=config.channels, crop_size=16,
        block=0, pooling="mean", dim=DIM, pack_id="p", curation_id="c", table_versions=catalog.versions(), run_id="",
        benchmark="linear_probe", label="gene", split="plate", metric="balanced_accuracy", score=0.5, ci_low=0.4,
        ci_high=0.6,
    )  # fmt: skip
    promote(TrackingConfig().at(str(root)), card, checkpoint)


def write_plate(catalog: Catalog, number: int, rng: np.random.Generator, centres: np.ndarray) -> None:
    plate, n = f"P{number:02d}", N_CROPS // N_PLATES
    plate_id = ids.plate_id("bench", plate)
    keys = {"plate_id": plate_id, "screen": "bench", "plate": plate, "batch": f"B{number // 10}"}
    names = [name_of_well(i // 24, i % 24) for i in range(N_WELLS)]
    genes = [f"gene{(number * 7 + i) % N_GENES:03d}" for i in range(N_WELLS)]
    of_crop = np.sort(rng.integers(N_WELLS, size=n))
    wells = keys | {
        "well_id": [f"{plate_id[:16]}{i:04d}" for i in range(N_WELLS)], "well": names,
        "row": np.arange(N_WELLS) // 24, "column": np.arange(N_WELLS) % 24, "perturbation": genes, "gene": genes,
        "has_images": True, "is_negative_control": False,
    }  # fmt: skip
    crops = keys | {
        "crop_id": [content_id("crop", plate, str(i)) for i in range(n)],
        "well_id": pa.array(wells["well_id"]).take(pa.array(of_crop)), "well": pa.array(names).take(pa.array(of_crop)),
        "site_id": pa.array(wells["well_id"]).take(pa.array(of_crop)), "site": "1", "n_channels": 5, "size": 16,
        "y": np.arange(n) // 100 * 16, "x": np.arange(n) % 100 * 16, "foreground_share": rng.random(n),
    }  # fmt: skip
    gene_of_crop = (number * 7 + of_crop) % N_GENES
    vectors = (centres[gene_of_crop] + rng.normal(size=(n, DIM))).astype(np.float32)
    embeddings = {
        "representation_id": "synthetic", "crop_id": crops["crop_id"], "well_id": crops["well_id"],
        "plate_id": plate_id, "embedding": pa.ListArray.from_arrays(
            pa.array(np.arange(0, n * DIM + 1, DIM), pa.int32()), pa.array(vectors.ravel())
        ),
    }  # fmt: skip
    for name, rows in (("wells", filled("wells", wells, N_WELLS)), ("crops", filled("crops", crops, n))):
        catalog.write_plate(name, rows, plate_id=plate_id, content=1)
    catalog.append("embeddings", filled("embeddings", embeddings, n), transaction=f"embeddings/{plate}")
    shown = filled("plates", keys | {"source": "/nowhere", "reader": "files", "n_wells": N_WELLS, "n_crops": n}, 1)
    catalog.append("plates", shown, transaction=f"plate/{plate}")


def filled(name: str, columns: dict[str, Any], n: int) -> pa.Table:
    """Rows of a table: one value stands for all rows, a column that is not named is empty."""
    schema = table_contract(name).schema
    arrays = []
    for field in schema:
        value = columns.get(field.name, "" if pa.types.is_string(field.type) else None)
        is_one = value is None or isinstance(value, (str, int, bool))
        array = pa.repeat(pa.scalar(value, field.type), n) if is_one else pa.array(value)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            with fetched(f"{address}/readyz"):
                return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError("the server is not ready after 5 minutes")


def wait_for_map(address: str, method: str) -> None:
    started = time.perf_counter()
    while True:
        with fetched(f"{address}/v1/explore/points?representation_id=synthetic&method={method}") as answer:
            if answer.status == 200:
                n_bytes = len(answer.read())
                break
        time.sleep(0.25)
    print(f"{method} map computed in {time.perf_counter() - started:.1f} s, {n_bytes / 1e6:.1f} MB")


def fetched(address: str) -> Any:
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address)


async def look(address: str, shots: Path | None) -> list[float]:
    async with Page() as page:
        started = time.perf_counter()
        await page.go(f"{address}/explore/#method=pca&colour=gene")
        drawn = "document.querySelector('.stage')?.dataset.points"
        await page.until(f"{drawn} === '{N_CROPS}'", 240)
        print(f"page loaded and {N_CROPS:,} points drawn: {time.perf_counter() - started:.1f} s")
        await asyncio.sleep(2)
        if shots is not None:
            await page.screenshot(shots / "million-points.png")
        times_ms: list[float] = await page.run(MOVE % N_FRAMES)
        await page.run("document.querySelector('#sql').value = \"gene = 'gene007' AND foreground_share > 0.5\"")
        started = time.perf_counter()
        await page.run("document.querySelector('#sql-form').requestSubmit()")
        await page.until("document.querySelector('#selection-count').textContent !== 'None selected'", 120)
        count = await page.run("document.querySelector('#selection-count').textContent")
        print(f"SQL condition: {count} after {time.perf_counter() - started:.1f} s")
        await page.press("2")
        await page.until("document.querySelectorAll('#panel-plates figure').length > 0", 120)
        await asyncio.sleep(2)
        if shots is not None:
            await page.screenshot(shots / "million-points-selected.png")
        await asyncio.to_thread(wait_for_map, address, "umap")
        await page.go("about:blank")
        await page.go(f"{address}/explore/#method=umap&colour=gene")
        await page.until(f"{drawn} === '{N_CROPS}'", 240)
        await asyncio.sleep(2)
        if shots is not None:
            await page.screenshot(shots / "million-points-umap.png")
        if page.console:
            print("console:", *page.console[:5], sep="\n  ")
    return times_ms


if __name__ == "__main__":
    sys.exit(main())
