"""The application as users start it: `serve run` in a Ray of its own on loopback."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from infra.bench.inputs.served_lake import served

KEY = "the-key-of-the-serving-tests"


@pytest.fixture(scope="module")
def installed_python(checkout, tmp_path_factory) -> Path:
    """An interpreter with every dependency, and with cytolake's files as its wheel installs them."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    with (checkout / "pyproject.toml").open("rb") as file:
        sources = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"]
    for source, target in sources.items():
        shutil.copytree(checkout / source, packages / target, ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "bin" / "python"


@pytest.fixture(
    scope="module",
    params=[
        "serve/config.yaml",
        pytest.param("serve.app:app", marks=pytest.mark.slow),
        pytest.param("cytolake.serving.app:app", marks=pytest.mark.slow),
    ],
)
def server(request, lake, tmp_path_factory) -> Iterator[httpx.Client]:
    """A client of a running server.

    From a checkout where cytolake is not installed: by config with a key, by import path without keys, as the demo
    recommends. From an installed package: in an empty folder, with a key.
    """
    with ExitStack() as stack:
        key = "" if request.param == "serve.app:app" else KEY
        options = {"by_config": request.param == "serve/config.yaml"}
        if request.param == "cytolake.serving.app:app":
            options |= {"target": request.param, "folder_of_code": tmp_path_factory.mktemp("empty")}
            python = request.getfixturevalue("installed_python")
        else:
            python = request.getfixturevalue("bare_python")
        try:
            running = stack.enter_context(served(lake.root, key, python=python, **options))
        except OSError:
            pytest.skip("port 8000 is taken")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        yield stack.enter_context(httpx.Client(base_url=running.url, headers=headers, timeout=60))


def test_the_running_server_refuses_strangers_and_returns_the_tables_vectors(server, lake):
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


def test_concurrent_callers_each_get_their_own_vectors(server, lake):
    def embed(crop_id: str) -> list[float]:
        return server.post("/v1/embed", json={"crop_ids": [crop_id]}).json()["embeddings"][0]

    with ThreadPoolExecutor(8) as callers:
        vectors = list(callers.map(embed, lake.crop_ids))
    np.testing.assert_allclose(vectors, lake.stored, atol=1e-3)


def test_the_running_server_has_the_page_and_the_declared_rules(server):
    assert "<title>cytolake explorer</title>" in server.get("/explore/").text
    assert server.get("/v1/explore/qc").json()["failed"] == []
