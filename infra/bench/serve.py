"""The Serve application at saturation, at half load and at ten times what it can do, against its encoder alone.

One replica of a ViT-S/16 answers /v1/embed over HTTP, pixels in as npy and vectors out as npy. Its process is held to
all CPUs but the last; Serve's proxy and the clients, which are processes of their own, share that one. The bare model
is the same encoder in a plain process on the same CPUs with as many threads: minibatches of the same crops that lie
ready as tensors, final block alone. The two take turns; the figure is the median ratio of crops per second.

Saturation: as many requests under way as a replica takes. Half load: requests come at fixed times, at half the rate
that was reached; latency counts from the time at which a request was due. Overload: the same at ten times the rate.
All must hold: the ratio reaches its bar; of the overload, what is accepted has a 99th percentile of at most three
times that at saturation, all other requests get status 429, and memory grows by no more than a limit; the vectors are
the bare model's.
"""

from __future__ import annotations

import asyncio
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from inputs.served_lake import Server, promote_untrained, served
from inputs.simulated_pack import STAINS, write_pack
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from cytolake.models import ModelConfig, collate, load_encoder
from cytolake.packs.pack import Pack

BAR = 0.85
OVERLOAD, MAX_SLOWER, MAX_GROWTH_MIB = 10, 3.0, 512
N_CROPS, IN_REQUEST, MINIBATCH = 256, 16, 64
UNDER_WAY = 16
"""Requests at once at saturation; `max_ongoing_requests` of serve/config.yaml."""
ROUNDS, PHASE_S, WARM_S = 3, 20.0, 5.0
CLIENTS = 2
KEY = "the-key-of-the-benchmarks"
MODEL = ModelConfig(architecture="mae_vit", channels=STAINS, crop_size=64, patch_size=16, width=384, depth=12, heads=6)
CPUS = sorted(os.sched_getaffinity(0))
MODEL_CPUS, OTHER_CPUS = (CPUS[:-1], CPUS[-1:]) if len(CPUS) > 1 else (CPUS, CPUS)


@dataclass(frozen=True)
class Answers:
    """What became of the requests of one phase."""

    until: float
    """When the last request was sent, by `time.perf_counter`, which is one clock for all processes of a Linux."""
    done: list[float]
    """When those that were answered with vectors were, by the same clock."""
    latencies_s: list[float]
    """Theirs, in the same order."""
    statuses: Counter[str]

    @property
    def crops_per_s(self) -> float:
        """While as many requests as ever were under way: without the first ones, and those after the last was sent."""
        steady = sorted(at for at in self.done if at <= self.until)[UNDER_WAY - 1 :]
        return (len(steady) - 1) * IN_REQUEST / (steady[-1] - steady[0]) if len(steady) > 1 else float("nan")

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) if self.latencies_s else float("nan")


def bare(root: str) -> tuple[float, NDArray[np.float32]]:
    """In a process of its own: crops per second, and the vectors of the pack's first request."""
    os.sched_setaffinity(0, MODEL_CPUS)
    torch.set_num_threads(len(MODEL_CPUS))
    encoder = load_encoder(Path(root) / "encoder.safetensors").eval()
    crops = Pack.open(Path(root) / "pack").read(np.arange(N_CROPS))
    identities = MODEL.channel_indices(STAINS)
    batches = [collate(list(crops[i : i + MINIBATCH]), [identities] * MINIBATCH) for i in range(0, N_CROPS, MINIBATCH)]
    with torch.inference_mode():
        vectors = encoder.features(batches[0])[1][:IN_REQUEST].numpy()  # warms up too
        started, n = time.perf_counter(), 0
        while time.perf_counter() - started < PHASE_S:
            encoder.features(batches[n % len(batches)])
            n += 1
        return n * MINIBATCH / (time.perf_counter() - started), vectors


def ask(job: tuple[str, list[bytes], int, float, float]) -> Answers:
    """In a client's process: ask for a while.

    Args:
        job: URL; bodies, sent in turn; requests under way at once, or 0 to send by the clock; requests per second by
            the clock; seconds.
    """
    os.sched_setaffinity(0, OTHER_CPUS)
    return asyncio.run(_ask(*job))


async def _ask(url: str, bodies: list[bytes], under_way: int, per_s: float, seconds: float) -> Answers:
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    done: list[float] = []
    headers = {
        "authorization": f"Bearer {KEY}",
        "content-type": "application/octet-stream",
        "accept": "application/octet-stream",
    }
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=200)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits, trust_env=False) as client:

        async def send(number: int, due: float) -> None:
            try:
                path = f"/v1/embed?channels={','.join(STAINS)}"
                response = await client.post(path, content=bodies[number % len(bodies)])
            except httpx.TransportError as error:
                statuses[type(error).__name__] += 1
                return
            statuses[str(response.status_code)] += 1
            if response.status_code == 200:
                done.append(time.perf_counter())
                latencies.append(done[-1] - due)

        started = time.perf_counter()
        if under_way:

            async def go_on(first: int) -> None:
                number = first
                while time.perf_counter() - started < seconds:
                    await send(number, time.perf_counter())
                    number += under_way

            await asyncio.gather(*(go_on(first) for first in range(under_way)))
            return Answers(started + seconds, done, latencies, statuses)
        tasks = []
        for number in range(int(seconds * per_s)):
            due = started + number / per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(send(number, due)))
        await asyncio.gather(*tasks)
        return Answers(started + seconds, done, latencies, statuses)


class Bench:
    """The server, and the processes that ask it."""

    def __init__(self, server: Server, bodies: list[bytes], pool: multiprocessing.pool.Pool) -> None:
        self._server = server
        self._bodies = bodies
        self._pool = pool

    def saturate(self, seconds: float) -> Answers:
        return self._ask(seconds, under_way=UNDER_WAY)

    def send(self, per_s: float, seconds: float) -> Answers:
        return self._ask(seconds, per_s=per_s)

    def _ask(self, seconds: float, under_way: int = 0, per_s: float = 0.0) -> Answers:
        job = (self._server.url, self._bodies, under_way // CLIENTS, per_s / CLIENTS, seconds)
        parts = self._pool.map(ask, [job] * CLIENTS, chunksize=1)
        return Answers(
            min(part.until for part in parts),
            [at for part in parts for at in part.done],
            [latency for part in parts for latency in part.latencies_s],
            sum((part.statuses for part in parts), Counter()),
        )


class Memory:
    """The most that the server's processes held while a block ran, in MiB above what they held before."""

    def __init__(self, server: Server) -> None:
        self._processes = [psutil.Process(server.process.pid)]
        self._processes += self._processes[0].children(recursive=True)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.growth_mib = 0.0
        self.left_mib = 0.0
        """What was still held at the end."""

    def __enter__(self) -> Memory:
        self._before = self._held_mib()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self.left_mib = self._held_mib() - self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.growth_mib = max(self.growth_mib, self._held_mib() - self._before)

    def _held_mib(self) -> float:
        held = 0
        for process in self._processes:
            try:
                found = process.memory_info()
                held += found.rss - found.shared  # shared: Ray's object store and libraries, in every process's number
            except psutil.Error:
                continue
        return held / 2**20


def hold_to_cpus(server: Server) -> None:
    """The replica to the model's CPUs, all else of the server to the others: every thread there is, and their own."""
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            is_replica = "ServeReplica:cytolake:ServedEncoder" in " ".join(process.cmdline())
            for thread in process.threads():
                os.sched_setaffinity(thread.id, MODEL_CPUS if is_replica else OTHER_CPUS)
        except (psutil.Error, OSError):
            continue


def bodies_of(root: Path) -> list[bytes]:
    """The pack's crops as requests."""
    crops = Pack.open(root / "pack").read(np.arange(N_CROPS))
    bodies = []
    for i in range(0, N_CROPS, IN_REQUEST):
        stream = io.BytesIO()
        np.save(stream, np.stack(list(crops[i : i + IN_REQUEST])))
        bodies.append(stream.getvalue())
    return bodies


def check(server: Server, body: bytes, expected: NDArray[np.float32]) -> None:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/octet-stream"}
    headers["accept"] = headers["content-type"]
    answer = httpx.post(f"{server.url}/v1/embed?channels={','.join(STAINS)}", content=body, headers=headers, timeout=60)
    found = np.load(io.BytesIO(answer.raise_for_status().content), allow_pickle=False)
    difference = float(np.abs(found - expected).max())
    if difference > 1e-3:
        raise RuntimeError(f"vectors differ by {difference}: the timing would mean nothing")


def row(name: str, answers: Answers) -> Sequence[str]:
    statuses = " ".join(f"{count} x {status}" for status, count in sorted(answers.statuses.items()))
    p50, p99 = (f"{answers.percentile_s(percent):.2f}" for percent in (50, 99))
    return name, f"{answers.crops_per_s:.1f}", p50, p99, statuses


def main() -> int:
    shown = Table("phase", "crops/s", "p50 s", "p99 s", "answers", box=None)
    ratios, saturated = [], []
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="cytolake-bench-") as name, spawn.Pool(CLIENTS) as clients:
        root = Path(name)
        write_pack(root / "pack", N_CROPS, MODEL.crop_size)
        promote_untrained(root, MODEL)
        bodies = bodies_of(root)
        settings = {"ray_actor_options": {"num_cpus": len(MODEL_CPUS)}, "max_ongoing_requests": UNDER_WAY}
        with served(root, KEY, cpus=len(CPUS) + 1, deployment=settings) as server:
            hold_to_cpus(server)
            bench = Bench(server, bodies, clients)
            bench.saturate(WARM_S)
            for _ in range(ROUNDS):
                with spawn.Pool(1) as alone:
                    ((bare_per_s, expected),) = alone.map(bare, [name])
                check(server, bodies[0], expected)
                answers = bench.saturate(PHASE_S)
                saturated.append(answers)
                ratios.append(answers.crops_per_s / bare_per_s)
                shown.add_row("bare model", f"{bare_per_s:.1f}", "", "", "")
                shown.add_row(*row(f"saturated, ratio {ratios[-1]:.2f}", answers))
            per_s = statistics.median(answers.crops_per_s for answers in saturated) / IN_REQUEST
            half = bench.send(per_s / 2, 2 * PHASE_S)
            shown.add_row(*row("half load", half))
            with Memory(server) as memory:
                over = bench.send(per_s * OVERLOAD, 2 * PHASE_S)
            shown.add_row(*row(f"{OVERLOAD} times", over))
    Console(width=120).print(shown)
    figure = statistics.median(ratios)
    slower = over.percentile_s(99) / statistics.median(answers.percentile_s(99) for answers in saturated)
    print(
        f"{len(MODEL_CPUS)} CPUs for the model, {IN_REQUEST} crops, {len(bodies[0]):,} bytes in a request; overload: "
        f"p99 of the accepted {slower:.1f} times that at saturation, memory at most {memory.growth_mib:.0f} MiB more, "
        f"{memory.left_mib:.0f} MiB more after it"
    )
    is_ok = (
        figure >= BAR
        and slower <= MAX_SLOWER
        and set(over.statuses) == {"200", "429"}
        and set(half.statuses) == {"200"}
        and memory.growth_mib <= MAX_GROWTH_MIB
    )
    print(f"serve: figure={figure:.2f} bar={BAR} {'ok' if is_ok else 'short'}")
    return 0 if is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
