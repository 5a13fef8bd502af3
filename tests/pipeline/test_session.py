"""What a job's Ray says when it is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cytolake
from cytolake.pipeline import session

LOSES_ITS_CONTROL_STORE = """
import time, psutil
from cytolake.pipeline.session import RayConfig, ray_session
with ray_session(RayConfig(cpus=1, object_store_mb=80)):
    (store,) = (each for each in psutil.Process().children() if each.name() == "gcs_server")
    store.kill()
    time.sleep(300)
"""


@pytest.mark.slow
@pytest.mark.ray
def test_a_job_that_ray_ends_from_below_python_says_why():
    """Ray's core ends the process itself, with the status of any failure and no exception."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": str(Path(cytolake.__file__).parents[1]),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    }
    done = subprocess.run(
        [sys.executable, "-c", LOSES_ITS_CONTROL_STORE], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert re.search(r"Ray's control store at [\d.]+:\d+ does not answer .* status 1", done.stderr)


@pytest.mark.parametrize("n_busy", [2, session.START_ATTEMPTS])
def test_a_machine_that_is_too_busy_for_ray_is_tried_again_and_then_named(monkeypatch, n_busy):
    import ray

    calls = []

    def start(**arguments):
        calls.append(arguments)
        if len(calls) <= n_busy:
            raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    if n_busy < session.START_ATTEMPTS:
        session._start({"num_cpus": 1})
    else:
        with pytest.raises(OSError, match="too busy"):
            session._start({"num_cpus": 1})
    assert calls == [{"num_cpus": 1}] * min(n_busy + 1, session.START_ATTEMPTS)
