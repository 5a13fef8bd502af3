"""A job submitted to a real cluster whose nodes have the dependencies but not the package."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import cytolake.catalog

TINY_PLATE = {
    "n_plates": 1,
    "n_batches": 1,
    "n_pathways": 1,
    "genes_per_pathway": 1,
    "guides_per_gene": 1,
    "n_compounds": 0,
    "n_negative_controls": 2,
    "n_positive_controls": 0,
    "sites_per_well": 1,
    "site_size_px": 64,
}


@pytest.fixture
def cluster(bare_python: Path, free_ports: list[int]) -> Iterator[dict[str, str]]:
    """Environment in which `ray` means a fresh one-node cluster on loopback, with its own token and folder."""
    folder = Path(tempfile.mkdtemp(prefix="ctr", dir="/tmp"))  # Ray's socket paths allow about 100 characters in all
    gcs, dashboard, agent, metrics, client = free_ports
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    environment |= {
        "PATH": f"{bare_python.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-alone",
        "RAY_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    start = [bare_python, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1"]
    start += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    start += [f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}", "--num-cpus=2"]
    start += ["--min-worker-port=24000", "--max-worker-port=24999"]
    start += [f"--temp-dir={folder}", "--object-store-memory=200000000", "--disable-usage-stats", "--block"]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            start, env={k: v for k, v in environment.items() if k != "RAY_ADDRESS"}, stdout=log, stderr=log
        )
    try:
        yield environment
    finally:
        # After SIGTERM it waits for some of its processes for half a minute.
        for process in [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_ingest_runs_as_a_submitted_job_where_the_package_is_not_installed(bare_python, cluster, checkout, tmp_path):
    root = tmp_path / "lake"
    changes = {"root": root, **{f"screens.simulate.{name}": value for name, value in TINY_PLATE.items()}}
    command = ["python", "jobs/ingest.py", "--recipe", "demo"]
    for name, value in changes.items():
        command += ["--set", f"{name}={value}"]
    submit = [bare_python, "-m", "ray.scripts.scripts", "job", "submit", "--working-dir", checkout, "--", *command]
    done = _run_when_up(submit, cluster)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    (plate,) = cytolake.catalog.open(root).table("plates").to_pylist()
    assert plate["n_wells"] == 3
    assert plate["n_crops"] == 3


def _run_when_up(submit: list[str | Path], cluster: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Submit, again while the dashboard is not up yet: a new head takes up to a minute on a busy machine."""
    for _ in range(30):
        done = subprocess.run(submit, env=cluster, capture_output=True, text=True, timeout=400)
        if done.returncode == 0 or "Failed to connect" not in done.stdout + done.stderr:
            break
        time.sleep(2)
    return done
