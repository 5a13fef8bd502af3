"""What tests of every folder share: where the checkout and the real screens are, one local Ray, free ports."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from hypothesis import HealthCheck, settings

# The same cases on every machine, so that a change is judged by what it changed; `make fuzz` looks for new ones. How
# long a case takes is no fault: the machine may be busy.
ANY_TIME: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("same_cases", derandomize=True, max_examples=20, **ANY_TIME)
settings.register_profile("all_cases", derandomize=True, max_examples=100, **ANY_TIME)  # of `make test-all`
settings.register_profile("new_cases", max_examples=3000, print_blob=True, **ANY_TIME)
settings.load_profile("same_cases")

# Small tensors on a busy machine: one thread is up to 20 times as fast as two that wait for each other (measured).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Typer's runner would build all of cytolake's commands again for each that a test runs: 60 ms (measured 2026-11).
typer.testing._get_command = cache(typer.main.get_command)

CHECKOUT = Path(__file__).resolve().parents[1]


WITH_SERVERS = ("tests/jobs/", "tests/serving/test_deployment.py", "tests/train/test_preemption.py")
"""Tests that start Ray or Serve in processes of their own."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A run of the tests with Ray imports no file that has none: half a minute of imports saved."""
    is_test = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if is_test and config.option.markexpr.startswith("ray") and not _may_use_ray(collection_path):
        return True
    return None


TOGETHER = (
    r"\bgolden_(lake|copy)\b|^tests/docs/test_(example|queries)",
    r"^tests/serving/",  # one catalog with a served encoder
    r"\brun_two_workers\b",
    r"^tests/benchmark/transcriptomics/",  # scanpy
    r"\b(timm|resnet\d*)\b",  # timm brings torchvision
    r"\b(s3_server|s3_bucket|uploaded)\b",
)
"""What takes seconds to start and is there once in a process: files whose path or text has one run in one process. In
`make test`, by the scheduler below; pytest-xdist's own groups do nothing with pytest 9."""

FIRST = 5
"""So many of the groups come before other files, so that the last process has no long one left. Not S3: each request
waits for the server, which waits for a CPU while tests with Ray take them, ten times as long (measured)."""


@cache
def _group_of(file: str) -> tuple[int, str]:
    """The place and the name of the group of a file of tests, by its path in the checkout."""
    text = f"{file}\n{(CHECKOUT / file).read_text(encoding='utf-8')}"
    place = next((i for i, shared in enumerate(TOGETHER) if re.search(shared, text)), len(TOGETHER))
    return min(place, FIRST), TOGETHER[place] if place < len(TOGETHER) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Groups of files to the next process that is free, in the order of their collection."""
    from xdist.scheduler import LoadScopeScheduling

    class InGroups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group_of(nodeid.partition("::")[0])[1]

    config.option.loadscopereorder = False
    return InGroups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what uses Ray: two such tests at once would share too few CPUs, so `make test` runs these one by one."""
    groups = {item: _group_of(_relative(item.path)) for item in items}
    last = {group: i for i, group in enumerate(groups.values())}
    items.sort(key=lambda item: (groups[item][0], last[groups[item]]))
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()) or _relative(item.path).startswith(WITH_SERVERS):
            item.add_marker("ray")
        if item.get_closest_marker("ray") and not _may_use_ray(item.path):
            raise pytest.UsageError(f"{item.nodeid} starts Ray and its file does not name local_ray or mark.ray")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported for tests stays: that the garbage collector looks at it, now and later, takes seconds."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The many databases of MLflow that a run of all tests makes are migrated once."""
    if folder := os.environ.get("CYTOLAKE_TEST_FOLDER"):
        from tests.mlflow_database import copy_migrated_databases

        copy_migrated_databases(Path(folder))


def _may_use_ray(file: Path) -> bool:
    text = file.read_text(encoding="utf-8")
    return "local_ray" in text or "mark.ray" in text or _relative(file).startswith(WITH_SERVERS)


def _relative(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix() if path.is_relative_to(CHECKOUT) else str(path)


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real screens next to the checkout; a test that needs them is skipped where they are not."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real screens are not next to this checkout")
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray of this test process, stopped at its end; never a cluster that somebody else started."""
    from cytolake.pipeline.session import RayConfig, ray_session

    os.environ.pop("RAY_ADDRESS", None)
    with ray_session(RayConfig(cpus=2, object_store_mb=256)):
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes of a test run: `make test` names one, xdist's workers have their parent's."""
    if folder := os.environ.get("CYTOLAKE_TEST_FOLDER"):
        return Path(folder)
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def golden_lake(shared_folder: Path) -> Iterator[Path]:
    """Root of a catalog that went through the whole pipeline, see tests/golden_lake.py. Read-only."""
    from tests.golden_lake import shared_golden_lake, unchanged

    root = shared_golden_lake(shared_folder)
    with unchanged(root):
        yield root


@pytest.fixture
def golden_copy(golden_lake: Path, tmp_path: Path) -> Path:
    """Root of a copy of the golden lake that the test may change."""
    from tests.golden_lake import copy_golden_lake

    return copy_golden_lake(golden_lake, tmp_path / "lake")


@pytest.fixture
def ray_in_process() -> Iterator[None]:
    """Ray's tasks, batches and trials run in this process, see tests/ray_in_process.py."""
    from tests.ray_in_process import ray_in_process

    with ray_in_process():
        yield


@pytest.fixture(scope="module")
def module_ray_in_process() -> Iterator[None]:
    """`ray_in_process` for all tests of a module, where a fixture of the module makes such calls."""
    from tests.ray_in_process import ray_in_process

    with ray_in_process():
        yield


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with every dependency and without cytolake.

    A `.pth` file adds this environment's packages by path; the `.pth` files in there, an editable cytolake's among
    them, are not followed.
    """
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = (folder / "lib").glob("python3.*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    python = folder / "bin" / "python"
    found = subprocess.run([python, "-c", "import cytolake"], capture_output=True, text=True, cwd=folder)
    assert "No module named 'cytolake'" in found.stderr
    return python


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint of an S3 server of this test process on 127.0.0.1, empty at first; AWS_* lead to it until the end.

    moto's server in a process of its own: real requests, as boto, s3fs and delta-rs send them, and no network. Each
    test makes buckets of its own, with `s3_bucket`.
    """
    pytest.importorskip("moto", reason="the S3 server of the tests is moto's")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("s3") / "server.log"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=output,
            stderr=output,
            env=own,
            start_new_session=True,
        )
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(endpoint + "/moto-api/", timeout=5):
                    break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the S3 server did not start: {log.read_text()[-2000:]}") from None
                time.sleep(0.1)
        os.environ.update(settings)
        yield endpoint
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
        for name in settings:
            os.environ.pop(name, None)
        os.environ.update(before)


@pytest.fixture
def s3_bucket(s3_server: str) -> Iterator[str]:
    """`s3://` and the name of a bucket of this test alone, empty at first."""
    from cytolake.storage.files import file_system

    name = f"bucket-{os.getpid()}-{time.monotonic_ns()}"
    files = file_system(f"s3://{name}")
    files.call_s3("create_bucket", Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield f"s3://{name}"
    files.rm(f"s3://{name}", recursive=True)


@pytest.fixture
def free_ports() -> list[int]:
    """Five ports of 127.0.0.1 that nobody listens on, below the range that Ray's own workers draw from."""
    held = []
    for port in range(23100, 23900):
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        held.append((port, listener))
        if len(held) == 5:
            break
    for _, listener in held:
        listener.close()
    return [port for port, _ in held]
