"""The application as it is started by hand: `serve run serve.app:app`, in a Ray of its own on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

pytestmark = pytest.mark.slow

STARTUP_S = 240.0
KEY = "the-key-of-the-serving-tests"


@pytest.fixture(scope="module", params=["serve.app:app", "serve/config.yaml"])
def server(request, lake, bare_python, checkout, tmp_path_factory) -> Iterator[httpx.Client]:
    """A client of a server that was started from the repository's root, where cytolake is not installed.

    By import path it runs without keys, as the demo says; by config with one.
    """
    target = request.param
    is_open = target == "serve.app:app"
    port = 8000 if is_open else 0  # `serve run` takes another port from a config only
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            pytest.skip("port 8000 is taken")
        port = probe.getsockname()[1]
    if not is_open:
        config = (checkout / target).read_text()
        target = str(tmp_path_factory.mktemp("serve") / "config.yaml")
        Path(target).write_text(config.replace("port: 8000", f"port: {port}"))
    folder = tempfile.mkdtemp(prefix="cts", dir="/tmp")  # Ray's socket paths allow about 100 characters in all
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {
        "CYTOLAKE_ROOT": str(lake.root),
        "CYTOLAKE_NO_AUTH" if is_open else "CYTOLAKE_API_KEYS": "1" if is_open else KEY,
        "RAY_TMPDIR": folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}',
    }
    log = Path(folder) / "serve.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [bare_python, "-m", "ray.serve.scripts", "run", target],
            cwd=checkout, env=environment, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            headers = {} if is_open else {"authorization": f"Bearer {KEY}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                _wait_until_ready(client, process, log)
                yield client
        finally:
            process.send_signal(signal.SIGINT)  # Serve takes its replicas down
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def test_the_running_server_is_closed_and_gives_the_tables_vectors(server, lake):
    # Without keys it answers its own machine alone, and no web page that sends requests here under another name.
    stranger = {"host": "evil.example"} if "authorization" not in server.headers else {"authorization": ""}
    assert server.post("/v1/embed", json={"crop_ids": lake.crop_ids[:1]}, headers=stranger).status_code == 401
    assert server.get("/openapi.json", headers=stranger).status_code == 401

    answer = server.post("/v1/embed", json={"crop_ids": lake.crop_ids}, headers={"x-request-id": "r7"})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["embeddings"], lake.stored, atol=1e-3)
    assert answer.headers.get_list("x-request-id") == ["r7"]
    assert answer.headers["x-representation-id"] == lake.card.representation_id

    hits = server.post("/v1/search", json={"vector": lake.stored[3].tolist(), "k": 1}).json()["hits"]
    assert hits[0]["crop_id"] == lake.crop_ids[3]


def test_callers_at_once_each_get_their_own_vectors(server, lake):
    def embed(crop_id: str) -> list[float]:
        return server.post("/v1/embed", json={"crop_ids": [crop_id]}).json()["embeddings"][0]

    with ThreadPoolExecutor(8) as callers:
        vectors = list(callers.map(embed, lake.crop_ids))
    np.testing.assert_allclose(vectors, lake.stored, atol=1e-3)


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen, log: Path) -> None:
    until = time.monotonic() + STARTUP_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    pytest.fail(f"not ready after {STARTUP_S:g} s\n{log.read_text()[-4000:]}")
