"""Replicas of the Serve application are killed with SIGKILL under load; then it is counted which requests failed.
Called by `make faults-serve`.

Two replicas answer threads of `cytolake.client.Client` that never pause: pixels and stored crops to embed, searches,
the model's card. Whenever both replicas run again, one of them is killed. A request counts as failed when the client
gives up on it, or when its answer is not that of the tables. What the client had to repeat is shown: without failures
under the client, the run would prove nothing.

Then a caller without a key begins to send 64 MiB, slowly, and counts what it got rid of before it was turned away. The
guard itself allocates none of it (tests/serving/test_guard.py); what is counted here lies in the buffers of the sockets
and of Ray Serve's proxy.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
from inputs.served_lake import ServedLake, Server, served, write_lake

from cytolake.catalog import channel_vocabulary
from cytolake.client import Client, ServiceError
from cytolake.models import ModelConfig
from cytolake.screens.simulated.screen import SimulatedScreen

KILLS = 20
THREADS = 4
BETWEEN = 8
"""Requests that are answered by both replicas before the next kill."""
POLL_S, POLLS = 0.5, 600
"""A replica that is not back when it was looked for so often, every so many seconds, has failed."""
KEY = "the-key-of-the-fault-runs"
TOLERANCE = 1e-3
ANONYMOUS_BYTES = 64 * 2**20
PIECE = 16 * 1024
SCREEN = SimulatedScreen(
    n_plates=1, n_batches=1, n_pathways=1, genes_per_pathway=2, guides_per_gene=1, n_compounds=0, n_negative_controls=2,
    n_positive_controls=1, sites_per_well=1, artefact_share=0.0,
)  # fmt: skip
MODEL = ModelConfig(
    architecture="chada_vit", channels=channel_vocabulary().names, crop_size=64, patch_size=16, width=48, depth=2,
    heads=2,
)  # fmt: skip


class Counting(httpx.BaseTransport):
    """The network, with what went wrong on it."""

    def __init__(self, seen: Counter[str]) -> None:
        self._inner = httpx.HTTPTransport()
        self._seen = seen

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            response = self._inner.handle_request(request)
        except httpx.TransportError as error:
            self._seen[type(error).__name__] += 1
            raise
        if response.status_code >= 400:
            self._seen[str(response.status_code)] += 1
        return response

    def close(self) -> None:
        self._inner.close()


@dataclass
class Load:
    """Threads that ask, and what became of it."""

    lake: ServedLake
    url: str
    n_good: int = 0
    failed: list[str] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    """Failures below the client, by kind."""
    slowest_s: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, number: int) -> None:
        rng = np.random.default_rng(number)
        with Client(self.url, KEY, transport=Counting(self.seen), max_crops=4) as client:
            while not self.stop.is_set():
                started = time.monotonic()
                try:
                    trouble = self._ask_one(client, rng)
                except ServiceError as error:
                    trouble = str(error)
                with self.lock:
                    self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                    if trouble:
                        self.failed.append(trouble)
                    else:
                        self.n_good += 1

    def _ask_one(self, client: Client, rng: np.random.Generator) -> str:
        rows = rng.integers(0, len(self.lake.crop_ids), 6)
        kind = rng.integers(0, 4)
        if kind == 3:
            card = client.model()
            return "" if card["representation_id"] == "simulated" else f"card of {card['representation_id']}"
        if kind == 2:
            hits = client.search(self.lake.stored[rows[0]], k=1)["hits"]
            return "" if hits[0]["similarity"] > 1 - TOLERANCE else f"the nearest crop is at {hits[0]['similarity']}"
        if kind == 1:
            vectors = client.embed_crops([self.lake.crop_ids[row] for row in rows])
        else:
            vectors = client.embed(self.lake.pixels[rows], self.lake.channels)
        difference = float(np.abs(vectors - self.lake.stored[rows]).max())
        return "" if difference <= TOLERANCE else f"vectors differ by {difference:.1e}"


def kill_replicas(load: Load, server: Server, rng: np.random.Generator) -> list[int]:
    """Kill one of two replicas, again and again; returns how many requests were answered between two kills."""
    answered = []
    for number in range(KILLS):
        started = time.monotonic()
        wait_for_replicas(server, 2)
        print(f"  kill {number + 1}: two replicas after {time.monotonic() - started:.0f} s", flush=True)
        before = load.n_good
        for _ in range(POLLS):
            if load.n_good >= before + BETWEEN:
                break
            time.sleep(POLL_S)
        else:
            raise RuntimeError(f"{load.n_good - before} answers in {POLLS} looks, with two replicas running")
        os.kill(int(rng.choice(replica_pids(server))), signal.SIGKILL)
        answered.append(load.n_good - before)
    wait_for_replicas(server, 2)
    return answered


def wait_for_replicas(server: Server, n: int) -> None:
    """Until so many processes are there, which a killed one is not, and so many run by Serve's own word, which learns
    of a death later."""
    from ray import serve

    states: dict[str, int] = {}
    for _ in range(POLLS):
        time.sleep(POLL_S)
        deployment = serve.status().applications["cytolake"].deployments["ServedEncoder"]
        states = {str(getattr(state, "value", state)): count for state, count in deployment.replica_states.items()}
        if len(replica_pids(server)) == states.get("RUNNING", 0) == sum(states.values()) == n:
            return
    raise RuntimeError(f"after {POLLS} looks the replicas are {states}, expected {n} running")


def replica_pids(server: Server) -> list[int]:
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [process.pid for process in family if "ServeReplica:cytolake:ServedEncoder" in command_of(process)]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def send_without_a_key(url: str) -> tuple[int, int]:
    """Send a large body slowly until an answer comes: its status, and the bytes that were taken off our hands."""
    at = urlsplit(url)
    head = (
        f"POST /v1/embed?channels=DNA HTTP/1.1\r\nhost: {at.netloc}\r\ncontent-type: application/octet-stream\r\n"
        f"content-length: {ANONYMOUS_BYTES}\r\n\r\n"
    )
    sent = 0
    with socket.create_connection((at.hostname, at.port), timeout=30) as connection:
        connection.sendall(head.encode())
        while sent < ANONYMOUS_BYTES and not select.select([connection], [], [], 0.005)[0]:
            try:
                sent += connection.send(b"\x00" * PIECE)
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = connection.recv(4096)
    return int(answer.split()[1]), sent


def main() -> int:
    rng = np.random.default_rng(int(os.environ.get("CYTOLAKE_FAULTS_SEED", "0")))
    with tempfile.TemporaryDirectory(prefix="serve-faults-") as name:
        lake = write_lake(Path(name), MODEL, SCREEN)
        print(f"{len(lake.crop_ids)} crops of {len(lake.channels)} stains, {THREADS} threads that ask", flush=True)
        with served(lake.root, KEY, replicas=2, cpus=3) as server, connected(server):
            load = Load(lake, server.url)
            threads = [threading.Thread(target=load.ask, args=(number,)) for number in range(THREADS)]
            started = time.monotonic()
            for thread in threads:
                thread.start()
            try:
                answered = kill_replicas(load, server, rng)
            finally:
                load.stop.set()
                for thread in threads:
                    thread.join()
            seconds = time.monotonic() - started
            status, sent = send_without_a_key(server.url)
    print(f"{len(answered)} replicas killed in {seconds:.0f} s; answers before each: {' '.join(map(str, answered))}")
    print(f"{load.n_good:,} requests answered rightly, the slowest after {load.slowest_s:.1f} s")
    below = ", ".join(f"{count} x {kind}" for kind, count in sorted(load.seen.items())) or "none"
    print(f"failures below the client, which it repeated: {below}")
    for trouble in load.failed[:5]:
        print(f"failed: {trouble}")
    print(f"without a key: {status} after {sent:,} of {ANONYMOUS_BYTES:,} bytes were sent")
    is_ok = not load.failed and len(answered) >= KILLS and status == 401 and sent < ANONYMOUS_BYTES / 10
    print(f"faults-serve: figure={len(load.failed)} bar=0 {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


class connected:  # noqa: N801 - read as `with served(...) as server, connected(server)`
    """This process as a driver of the server's Ray, to ask for the states of replicas."""

    def __init__(self, server: Server) -> None:
        family = psutil.Process(server.process.pid).children(recursive=True)
        words = (word for process in family for word in command_of(process).split())
        self._address = next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))

    def __enter__(self) -> None:
        import ray

        ray.init(address=self._address, namespace="serve", log_to_driver=False, logging_level="ERROR")

    def __exit__(self, *error: Any) -> None:
        import ray

        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
