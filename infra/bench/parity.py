"""Served and stored embeddings of the same 1,000 crops, through Ray Serve's HTTP endpoint: the largest difference.

The bound is the table. Each crop is requested twice, once by its id and once as raw pixels read from the plate, and
both answers are compared with the row that the embedding job wrote: from the champion; from another version, to which
the alias is moved while callers that never pause, and never ask again, count what they lose; and from a replica that
computes in bf16. The figure is the largest absolute difference of all of these: of raw values in fp32, of unit vectors,
which is what a search compares, in bf16. It is `ok` when no request was lost and each answer was the vectors of the
version that its header names.

Uses the demo's catalog, making it if need be; the alias is moved back.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from inputs.served_lake import served
from numpy.typing import NDArray
from rich.console import Console

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.client import Client
from cytolake.pipeline.stages import run_pipeline
from cytolake.recipes import build_recipe
from cytolake.tracking import ModelCard, ModelVersion, TrackingConfig, promote

BAR = 1e-3
N_CROPS = 1000
CALLERS, IN_REQUEST, AFTER_SWITCH_S = 4, 8, 10.0
POLL_S, POLLS = 0.5, 600
KEY = "the-key-of-the-benchmarks"
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Crops:
    """The crops, and their rows of the table for each representation."""

    crop_ids: list[str]
    pixels: NDArray[np.uint16]
    """(N, C, S, S)"""
    channels: tuple[str, ...]
    stored: Mapping[str, NDArray[np.float32]]
    """(N, D) by representation."""


@dataclass
class Callers:
    """Threads that embed random crops and compare, and what became of it. A request that fails is not repeated."""

    crops: Crops
    url: str
    answered: Counter[str] = field(default_factory=Counter)
    """Right answers, by model version."""
    lost: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> None:
        rng = np.random.default_rng(number)
        headers = {"authorization": f"Bearer {KEY}", "accept": "application/octet-stream"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False) as client:
            while not self.stop.is_set():
                rows = rng.integers(0, len(self.crops.crop_ids), IN_REQUEST)
                try:
                    trouble, version = self._ask_one(client, rows, by_id=bool(rng.integers(0, 2)))
                except httpx.TransportError as error:
                    trouble, version = type(error).__name__, ""
                with self.lock:
                    if trouble:
                        self.lost.append(trouble)
                    else:
                        self.answered[version] += 1

    def _ask_one(self, client: httpx.Client, rows: NDArray[np.int64], *, by_id: bool) -> tuple[str, str]:
        """What went wrong, or "", and the version that answered."""
        if by_id:
            response = client.post("/v1/embed", json={"crop_ids": [self.crops.crop_ids[row] for row in rows]})
        else:
            file = io.BytesIO()
            np.save(file, self.crops.pixels[rows], allow_pickle=False)
            channels = ",".join(self.crops.channels)
            response = client.post(
                "/v1/embed",
                params={"channels": channels},
                content=file.getvalue(),
                headers={"content-type": "application/octet-stream"},
            )
        if response.status_code != 200:
            return f"{response.status_code} {response.text[:200]}", ""
        vectors = np.load(io.BytesIO(response.content), allow_pickle=False)
        stored = self.crops.stored[response.headers["x-representation-id"]][rows]
        difference = float(np.abs(vectors - stored).max())
        return "" if difference <= BAR else f"vectors differ by {difference:.1e}", response.headers["x-model-version"]


def main() -> int:
    root = Path(os.environ.get("CYTOLAKE_ROOT", str(CHECKOUT / "cytolake_data"))).resolve()
    demo = dataclasses.replace(build_recipe("demo"), root=str(root))
    first = run_pipeline(demo, Console(highlight=False, soft_wrap=True)).card
    catalog = cytolake.catalog.open(root)
    tracking = TrackingConfig().at(root)
    second = another_block(catalog, first)
    crops = stored_crops(catalog, (first.representation_id, second.representation_id))
    figures: list[float] = []
    try:
        with served(root, KEY) as server:
            figures += compare(server.url, crops, first, "fp32")
            callers = Callers(crops, server.url)
            threads = [threading.Thread(target=callers.ask, args=(number,)) for number in range(CALLERS)]
            for thread in threads:
                thread.start()
            try:
                time.sleep(AFTER_SWITCH_S)
                version = promote(tracking, second, first.encoder_path).version
                wait_for_version(server.url, version)
                time.sleep(AFTER_SWITCH_S)
            finally:
                callers.stop.set()
                for thread in threads:
                    thread.join()
            figures += compare(server.url, crops, second, "fp32, after the switch")
    finally:
        promote(tracking, first.card, first.encoder_path)
    with served(root, KEY, variables={"CYTOLAKE_PRECISION": "bf16"}) as server:
        figures += compare(server.url, crops, first, "bf16")
    counts = ", ".join(f"{n:,} by version {version}" for version, n in sorted(callers.answered.items()))
    print(
        f"switch from version {first.version} to {version} under {CALLERS} callers: {counts}; {len(callers.lost)} lost"
    )
    for trouble in callers.lost[:5]:
        print(f"lost: {trouble}")
    figure = max(figures)
    is_ok = figure <= BAR and not callers.lost and set(callers.answered) == {str(first.version), str(version)}
    print(f"parity: figure={figure:.2e} bar={BAR:.0e} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


def another_block(catalog: Catalog, card: ModelVersion) -> ModelCard:
    """The same encoder's earlier block (or the next one), which the table has too, as something to promote."""
    rows = catalog.table(
        "representations",
        columns=["representation_id", "block"],
        where="model_id = ? AND pack_id = ? AND pooling = ?",
        parameters=[card.model_id, card.pack_id, card.pooling],
    ).to_pylist()
    row = min((row for row in rows if row["block"] != card.block), key=lambda row: abs(row["block"] + 0.5 - card.block))
    return dataclasses.replace(
        card.card, representation_id=row["representation_id"], block=row["block"], reason="make bench-parity"
    )


def stored_crops(catalog: Catalog, representation_ids: tuple[str, ...]) -> Crops:
    """A sample of crops, and what the table has for them."""
    of_id: dict[str, dict[str, NDArray[np.float32]]] = {}
    for each in representation_ids:
        table = catalog.table(
            "embeddings", columns=["crop_id", "embedding"], where="representation_id = ?", parameters=[each]
        )
        vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
        of_id[each] = dict(zip(table["crop_id"].to_pylist(), vectors, strict=True))
    known = sorted(set.intersection(*(set(rows) for rows in of_id.values())))
    if len(known) < N_CROPS:
        raise RuntimeError(f"{len(known)} crops are embedded, expected {N_CROPS} or more")
    crop_ids = [known[i] for i in np.random.default_rng(0).permutation(len(known))[:N_CROPS]]
    (channels,) = set(catalog.channels_of(crop_ids))
    stored = {each: np.stack([rows[crop_id] for crop_id in crop_ids]) for each, rows in of_id.items()}
    return Crops(crop_ids, np.stack(catalog.crop_pixels(crop_ids)), tuple(channels), stored)


def compare(url: str, crops: Crops, card: ModelCard, what: str) -> list[float]:
    """Ask for all crops both ways; the differences that count."""
    figures = []
    stored = crops.stored[card.representation_id]
    with Client(url, KEY, max_crops=50) as client:
        served = client.model()
        if served["representation_id"] != card.representation_id or served["precision"] != what[:4]:
            raise RuntimeError(
                f"{served['representation_id']} in {served['precision']} answers, expected {card.representation_id}"
            )
        by_id = client.embed_crops(crops.crop_ids)
        by_pixels = client.embed(crops.pixels, crops.channels)
    for how, vectors in (("crop id", by_id), ("raw pixels", by_pixels)):
        raw = float(np.abs(vectors - stored).max())
        unit = float(np.abs(normalised(vectors) - normalised(stored)).max())
        cosine = float((normalised(vectors) * normalised(stored)).sum(axis=1).min())
        figures.append(unit if what == "bf16" else raw)
        print(
            f"{what}, block {card.block}, by {how}: {len(vectors):,} crops of {vectors.shape[1]} values, raw differ by "
            f"{raw:.2e}, unit vectors by {unit:.2e}, least cosine {cosine:.6f}"
        )
    print(f"  stored values: sd {stored.std():.3f}, largest {np.abs(stored).max():.3f}")
    return figures


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, D) rows of length 1."""
    found: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def wait_for_version(url: str, version: int) -> None:
    """Until the replica answers with this version; the callers' requests set off the look."""
    with Client(url, KEY) as client:
        for _ in range(POLLS):
            served = client.model()
            if served["version"] == version:
                return
            if served["newest_is_not_served"]:
                raise RuntimeError(f"version {version} was refused: {served['newest_is_not_served']}")
            time.sleep(POLL_S)
    raise RuntimeError(f"version {served['version']} still answers, expected {version}")


if __name__ == "__main__":
    sys.exit(main())
