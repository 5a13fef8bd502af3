"""The application as it is started by hand: `serve run serve.app:app`, in a Ray of its own on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from infra.bench.inputs.served_lake import served

pytestmark = pytest.mark.slow

KEY = "the-key-of-the-serving-tests"


@pytest.fixture(scope="module", params=[False, True], ids=["serve.app:app", "serve/config.yaml"])
def server(request, lake, bare_python) -> Iterator[httpx.Client]:
    """A client of a server that was started from the repository's root, where cytolake is not installed.

    By import path it runs without keys, as the demo says; by config with one.
    """
    key = KEY if request.param else ""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(served(lake.root, key, by_config=request.param, python=bare_python))
        except OSError:
            pytest.skip("port 8000 is taken")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        yield stack.enter_context(httpx.Client(base_url=running.url, headers=headers, timeout=60))


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
