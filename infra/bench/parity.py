"""Served and stored embeddings of the same 100 crops, through the real HTTP endpoint: the largest difference.

The bound is the table: each crop is asked for twice, once by its id and once as raw pixels read from the plate, and
both answers are compared with the row that the embedding job wrote. Uses the demo's catalog, making it if need be.
"""

from __future__ import annotations

import dataclasses
import io
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from rich.console import Console

import cytolake.catalog
from cytolake.catalog import Catalog
from cytolake.line.session import RayConfig, ray_session
from cytolake.line.stages import run_pipeline
from cytolake.recipes import build_recipe

BAR = 1e-3
N_CROPS = 100
CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> int:
    root = os.environ.get("CYTOLAKE_ROOT", str(CHECKOUT / "cytolake_data"))
    result = run_pipeline(
        dataclasses.replace(build_recipe("demo"), root=root), Console(highlight=False, soft_wrap=True)
    )
    catalog = cytolake.catalog.open(root)
    rows = catalog.table(
        "embeddings", columns=["crop_id", "embedding"], where=f"representation_id = '{result.card.representation_id}'"
    ).to_pylist()
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:N_CROPS]]
    crop_ids = [row["crop_id"] for row in rows]
    stored = np.array([row["embedding"] for row in rows], dtype=np.float32)
    with served(root) as client:
        by_id = np.array(_answer(client.post("/v1/embed", json={"crop_ids": crop_ids})), dtype=np.float32)
        by_pixels = _embed_pixels(client, catalog, crop_ids)
    figure = 0.0
    for how, vectors in (("crop id", by_id), ("raw pixels", by_pixels)):
        difference = float(np.abs(vectors - stored).max())
        figure = max(figure, difference)
        print(f"by {how}: {difference:.2e} over {len(crop_ids)} crops of {stored.shape[1]} values")
    print(f"values: sd {stored.std():.3f}, largest {np.abs(stored).max():.3f}")
    print(f"parity: figure={figure:.2e} bar={BAR:.0e} {'ok' if figure <= BAR else 'short'}")
    return 0 if figure <= BAR else 1


@contextmanager
def served(root: str) -> Iterator[httpx.Client]:
    """The Serve application on a free port of loopback, and a client of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"CYTOLAKE_ROOT": root, "CYTOLAKE_NO_AUTH": "1"}  # read where the application is imported
    sys.path.insert(0, str(CHECKOUT))
    with ray_session(RayConfig()):
        from ray import serve
        from serve.app import app

        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                _answer(client.get("/readyz"))
                yield client
        finally:
            serve.shutdown()


def _embed_pixels(client: httpx.Client, catalog: Catalog, crop_ids: list[str]) -> np.ndarray:
    pixels = np.stack(catalog.crop_pixels(crop_ids))
    (channels,) = set(catalog.channels_of(crop_ids))
    file = io.BytesIO()
    np.save(file, pixels, allow_pickle=False)
    answer = client.post(
        "/v1/embed",
        params={"channels": ",".join(channels)},
        content=file.getvalue(),
        headers={"content-type": "application/octet-stream"},
    )
    return np.array(_answer(answer), dtype=np.float32)


def _answer(response: httpx.Response) -> list[list[float]]:
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.url}: {response.status_code} {response.text[:500]}")
    body = response.json()
    return list(body.get("embeddings", []))


if __name__ == "__main__":
    sys.exit(main())
