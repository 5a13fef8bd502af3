"""Metrics of the service in Prometheus' text format, at /metrics.

Each replica has its own counts, and behind Ray Serve's proxy a random replica answers a scrape. Each series therefore
has the label `replica`: sum over it, and take rates over several scrapes. With many replicas the sums lag behind; for
exact sums over a cluster, scrape Ray's own exporter as well.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cytolake.serving.guard import AsgiApp, Message, Receive, Scope, Send

METRICS_MEDIA_TYPE = CONTENT_TYPE_LATEST
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNROUTED = "unrouted"
"""Label `path` of requests that reached no endpoint: refused by the guard, or for an unknown path."""

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
CROPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """Labels of the gauge `cytolake_model_info`, and the size of the index."""

    name: str
    alias: str
    version: int
    representation_id: str
    n_crops: int
    """Crops in the search index."""


class Metrics:
    """The metrics of one service. Thread-safe."""

    def __init__(self) -> None:
        self._registry = (
            CollectorRegistry()
        )  # its own registry: the process may hold a second service, and Ray's metrics
        to = self._registry
        labels = ("path", "method", "status")
        self._requests = Counter("cytolake_requests", "Requests answered.", labels, registry=to)
        self._latency = Histogram(
            "cytolake_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ("path",),
            buckets=LATENCY_S,
            registry=to,
        )
        self._in_progress = Gauge("cytolake_requests_in_progress", "Requests not yet answered.", registry=to)
        self._body_bytes = Counter("cytolake_body_bytes", "Bytes of request bodies that were read.", registry=to)
        self._refused = Counter(
            "cytolake_refused", "Requests that the guard refused, by reason.", ("reason",), registry=to
        )
        self._crops = Counter("cytolake_crops_embedded", "Crops that the encoder embedded.", registry=to)
        self._minibatch = Histogram("cytolake_minibatch_crops", "Crops in a forward pass.", buckets=CROPS, registry=to)
        self._forward = Histogram(
            "cytolake_forward_seconds", "Seconds of a forward pass.", buckets=LATENCY_S, registry=to
        )
        self._wait = Histogram(
            "cytolake_queue_wait_seconds",
            "Seconds that the crops of a request waited for their forward pass.",
            buckets=WAIT_S,
            registry=to,
        )
        self._ready = Gauge("cytolake_ready", "1 where a model is loaded, else 0.", registry=to)
        self._index = Gauge("cytolake_index_crops", "Crops in the search index.", ("alias",), registry=to)
        self._model = Gauge(
            "cytolake_model_info",
            "Always 1; the labels identify the served model.",
            ("name", "alias", "version", "representation_id"),
            registry=to,
        )
        ProcessCollector(registry=to)  # process_resident_memory_bytes, CPU seconds, open files; Linux only
        self._replica = f"{socket.gethostname()}:{os.getpid()}"

    def count_pass(self, n_crops: int, seconds: float) -> None:
        """Record a finished forward pass."""
        self._crops.inc(n_crops)
        self._minibatch.observe(n_crops)
        self._forward.observe(seconds)

    def count_wait(self, seconds: float) -> None:
        """Record the wait of a request's crops for their forward pass."""
        self._wait.observe(seconds)

    def text(self, models: Sequence[ModelInfo]) -> bytes:
        """The answer to a scrape, of type `METRICS_MEDIA_TYPE`.

        Args:
            models: Served models, one for each alias; empty where nothing is loaded.
        """
        self._ready.set(bool(models))
        self._index.clear()
        self._model.clear()  # removes models that are no longer served
        for model in models:
            self._index.labels(model.alias).set(model.n_crops)
            self._model.labels(model.name, model.alias, str(model.version), model.representation_id).set(1)
        return generate_latest(_OfReplica(self._registry, self._replica))

    def counted(self, app: AsgiApp) -> AsgiApp:
        """Wrap an application so that its requests are counted; outside the guard, so that refused ones are too."""

        async def counting(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            status = 0
            started = time.perf_counter()

            async def receive_counted() -> Message:
                message = await receive()
                self._body_bytes.inc(len(message.get("body", b"")))
                return message

            async def send_counted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = int(message["status"])
                await send(message)

            self._in_progress.inc()
            try:
                await app(scope, receive_counted, send_counted)
            finally:
                self._in_progress.dec()
                self._count_request(scope, status, time.perf_counter() - started)

        return counting

    def _count_request(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        # The template of the route, not the path: otherwise a caller could make a new series with each path.
        path = str(getattr(scope.get("route"), "path", UNROUTED))
        method = scope["method"] if scope.get("method") in METHODS else "other"
        # Status 0: the caller disconnected, or the application failed outside its handlers.
        self._requests.labels(path, method, str(status) if status else "none").inc()
        self._latency.labels(path).observe(seconds)
        reason = scope.get("state", {}).get("refused")
        if reason:
            self._refused.labels(reason).inc()


class _OfReplica(Collector):
    """All series of a registry with the label `replica`."""

    def __init__(self, registry: CollectorRegistry, replica: str) -> None:
        self._registry = registry
        self._replica = replica

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            family.samples = [
                sample._replace(labels={**sample.labels, "replica": self._replica}) for sample in family.samples
            ]
            yield family
