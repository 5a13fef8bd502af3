"""A catalog with a promoted encoder, made without training, and the Serve application over it in a Ray of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import yaml
from numpy.typing import NDArray

import cytolake.catalog
from cytolake.catalog import table_contract
from cytolake.catalog.ingest.plates import IngestConfig, ingest_screens
from cytolake.models import ModelConfig, build_encoder, collate, load_encoder, save_encoder
from cytolake.pipeline.session import RayConfig, ray_session
from cytolake.screens.simulated.plate_files import simulate_screen
from cytolake.screens.simulated.screen import SimulatedScreen
from cytolake.screens.sources import ScreenSource
from cytolake.tracking import ModelCard, TrackingConfig, promote

CHECKOUT = Path(__file__).resolve().parents[3]
REPRESENTATION = "simulated"
POLL_S, POLLS = 0.5, 1200


@dataclass(frozen=True)
class ServedLake:
    """What the service over a catalog must answer."""

    root: Path
    crop_ids: list[str]
    channels: tuple[str, ...]
    pixels: NDArray[np.uint16]
    """(N, C, S, S) of the crops."""
    stored: NDArray[np.float32]
    """(N, D) their embeddings, as the table has them."""


def write_lake(root: Path, model: ModelConfig, screen: SimulatedScreen) -> ServedLake:
    """Simulate a screen of one set of stains, ingest it, embed its crops with an untrained encoder and promote that."""
    plates = simulate_screen(screen, root / "screens")
    catalog = cytolake.catalog.open(root, create=True)
    with ray_session(RayConfig(cpus=2, object_store_mb=100)):
        source = ScreenSource(screen=screen.screen, path=str(plates[0].parent))
        ingest_screens(catalog, [source], IngestConfig(crop_size=model.crop_size))
    promote_untrained(root, model)
    encoder = load_encoder(root / "encoder.safetensors")
    crops = catalog.table("crops").sort_by("crop_id").to_pylist()
    crop_ids = [crop["crop_id"] for crop in crops]
    pixels = np.stack(catalog.crop_pixels(crop_ids))
    (channels,) = set(catalog.channels_of(crop_ids))
    indices = encoder.config.channel_indices(channels)
    minibatches = [list(pixels[i : i + 16]) for i in range(0, len(pixels), 16)]
    stored = np.concatenate(
        [encoder.pooled_blocks(collate(each, [indices] * len(each)))["mean"][-1].numpy() for each in minibatches]
    )
    rows = [
        {"representation_id": REPRESENTATION, "embedding": vector.tolist()}
        | {key: crop[key] for key in ("crop_id", "well_id", "plate_id")}
        for crop, vector in zip(crops, stored, strict=True)
    ]
    catalog.append("embeddings", table_contract("embeddings").rows(rows), transaction=REPRESENTATION)
    return ServedLake(root, crop_ids, tuple(channels), pixels, stored)


def promote_untrained(root: Path, model: ModelConfig) -> None:
    """Make an encoder of random weights the champion of a catalog; its last block's mean is what is served."""
    catalog = cytolake.catalog.open(root, create=True)
    encoder = build_encoder(model, seed=0)
    save_encoder(encoder, root / "encoder.safetensors")
    card = ModelCard(
        representation_id=REPRESENTATION, model_id="untrained", architecture=model.architecture,
        channels=model.channels, crop_size=model.crop_size, block=model.depth - 1, pooling="mean", dim=model.width,
        pack_id="", curation_id="", table_versions=catalog.versions(), run_id="", benchmark="none", label="", split="",
        metric="none", score=0.0, ci_low=0.0, ci_high=0.0,
    )  # fmt: skip
    promote(TrackingConfig().at(root), card, root / "encoder.safetensors")


@dataclass(frozen=True)
class Server:
    """A running `serve run`."""

    url: str
    process: subprocess.Popen[bytes]
    """Its Ray, replicas and proxy are children of this."""


@contextmanager
def served(
    root: Path,
    key: str,
    *,
    by_config: bool = True,
    python: str | Path = sys.executable,
    target: str = "serve.app:app",
    folder_of_code: Path = CHECKOUT,
    replicas: int = 1,
    cpus: int = 2,
    deployment: Mapping[str, object] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """The application on loopback, ended with the block.

    Args:
        root: Catalog root.
        key: The one that is accepted; "" runs it without keys.
        by_config: True serves serve/config.yaml on a free port, False `target` on port 8000.
        python: Interpreter that has the dependencies.
        target: Import path of the application.
        folder_of_code: Working directory of the server.
        replicas: Of the deployment, by config.
        cpus: Logical CPUs of its Ray.
        deployment: Settings that differ from serve/config.yaml, such as `max_queued_requests`.
        variables: Of the environment, such as `CYTOLAKE_PRECISION`.

    Raises:
        OSError: Port 8000 is taken.
        RuntimeError: It did not become ready; with the end of its log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0 if by_config else 8000))
        port = free.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="ctb", dir="/tmp"))  # Ray's socket paths allow about 100 characters in all
    if by_config:
        config = yaml.safe_load((CHECKOUT / "serve" / "config.yaml").read_text())
        config["http_options"]["port"] = port
        config["applications"][0]["deployments"][0] |= {"num_replicas": replicas} | dict(deployment or {})
        target = str(folder / "config.yaml")
        Path(target).write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {
        "CYTOLAKE_ROOT": str(root),
        **({"CYTOLAKE_API_KEYS": key} if key else {"CYTOLAKE_NO_AUTH": "1"}),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_OVERRIDE_RESOURCES": f'{{"CPU": {cpus}}}',
        "RAY_worker_register_timeout_seconds": "300",  # importing torch takes a while on a busy machine
    } | dict(variables or {})
    log = folder / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [python, "-m", "ray.serve.scripts", "run", target],
            cwd=folder_of_code,
            env=environment,
            stdout=output,
            stderr=output,
        )
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_ready(server, log)
        yield server
    finally:
        process.send_signal(signal.SIGINT)  # Serve takes its replicas down
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(server: Server, log: Path) -> None:
    for _ in range(POLLS):
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(server.url + "/readyz", timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    raise RuntimeError(f"the application did not become ready; see the end of its log:\n{log.read_text()[-3000:]}")
