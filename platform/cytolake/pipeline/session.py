"""Connecting a job to Ray: the cluster it was submitted to, or a local one that ends with the job."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cytolake

CHECK_CONTROL_STORE_S = 5.0
START_ATTEMPTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RayConfig:
    """How a job reaches Ray when none is given by `RAY_ADDRESS` or `ray job submit`."""

    cpus: int | None = None
    """Logical CPUs of the local Ray; None takes what the machine has, and at least two for two training workers."""
    object_store_mb: int = 1024
    """Shared memory for blocks in flight, MB, local Ray only."""


def package_path_for_workers() -> str:
    """The `PYTHONPATH` under which Ray workers find cytolake, whether or not it is installed.

    In a submitted job every worker starts in its own copy of the working directory, so the path must be relative:
    `sys.path` changes of the driver do not reach workers, and an absolute path would name the driver's machine.
    """
    source_root = Path(cytolake.__file__).resolve().parents[1]
    try:
        relative = source_root.relative_to(Path.cwd().resolve())
    except ValueError:
        return str(source_root)
    return str(relative) if os.environ.get("RAY_ADDRESS") else str(source_root)


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Connect to the cluster named by `RAY_ADDRESS`, or start a local Ray and stop it at the end."""
    # Ray 2.60 announces future defaults and its own progress bars; a person running a job can act on neither.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Ray's C++ core warns of its own library's actors (ray#53727); its failures reach Python as exceptions, but for
    # one: see `_watch_control_store`.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        yield
        return
    variables = {"PYTHONPATH": package_path_for_workers(), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "False"}
    arguments: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if os.environ.get("RAY_ADDRESS"):
        arguments["runtime_env"] = {"env_vars": variables}
        inherited = {}
    else:
        # One machine of one's own is not preempted; the watcher would be one more process for each training.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Workers of a local Ray inherit its environment. A runtime environment would cost 2 s: Ray throws away the
        # workers that it has started ahead, which lack it.
        before = os.environ.get("PYTHONPATH")
        inherited = variables | {"PYTHONPATH": os.pathsep.join(filter(None, (variables["PYTHONPATH"], before)))}
        arguments |= {
            "address": "local",
            "num_cpus": config.cpus or max(2, os.cpu_count() or 2),
            "object_store_memory": config.object_store_mb * 1024**2,
            "include_dashboard": False,
        }
    with warnings.catch_warnings(), _quiet_stderr(), _environment(inherited):
        warnings.simplefilter("ignore", FutureWarning)
        _start(arguments)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)
    is_over = threading.Event()
    address = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch_control_store, args=(address, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()
        ray.shutdown()


def _start(arguments: Mapping[str, Any]) -> None:
    """`ray.init`, tried again where the machine is too busy: Ray gives its daemon half a minute.

    Raises:
        OSError: Ray did not start in any of the attempts.
    """
    import ray

    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(**arguments)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == START_ATTEMPTS - 1:
                raise OSError(
                    f"Ray did not start in {START_ATTEMPTS} attempts of half a minute. The machine is too busy, or "
                    "short of memory: end other work on it, then run the job again. Ray's own logs are in "
                    "/tmp/ray/session_latest/logs."
                ) from error


def _watch_control_store(address: str, is_over: threading.Event) -> None:
    """Say on stderr when Ray's control store (GCS) is gone.

    After a minute without it (`RAY_gcs_rpc_server_reconnect_timeout_s`) Ray's core ends this process with status 1,
    from below Python: no exception, and at our log level no word.
    """
    host, _, port = address.rpartition(":")
    n_refused = 0
    while not is_over.wait(CHECK_CONTROL_STORE_S):
        try:
            socket.create_connection((host, int(port)), timeout=CHECK_CONTROL_STORE_S).close()
            n_refused = 0
        except OSError as error:
            n_refused += 1
            if n_refused == 2:
                print(
                    f"Ray's control store at {address} does not answer ({error}). Unless it comes back, Ray ends this "
                    "job within a minute with status 1. Look for a machine short of memory, or for who stopped Ray: "
                    "gcs_server.out in the logs of its session (on one machine: /tmp/ray/session_latest/logs). Then "
                    "run the job again: it goes on where it was.",
                    file=sys.stderr,
                    flush=True,
                )


@contextmanager
def cluster_session() -> Iterator[None]:
    """Connect to the cluster named by `RAY_ADDRESS`, as `ray job submit` sets it; without one, start no Ray.

    For a command whose work is spread where there is a cluster, and on one machine is done sooner than Ray starts.
    """
    if not os.environ.get("RAY_ADDRESS"):
        yield
        return
    with ray_session(RayConfig()):
        yield


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables of this process, and put them back as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drop what C++ writes to stderr: Ray's core announces its log level there. Failures are exceptions anyway."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
