"""What tests of every folder share: where the checkout and the real screens are, one local Ray, free ports."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

# Small tensors on a busy machine: one thread is up to 20 times as fast as two that wait for each other (measured).
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository's root."""
    return CHECKOUT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real screens beside the checkout; a test that needs them is skipped where they are not."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real screens are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A local Ray of this test process, stopped at its end; never a cluster that somebody else started."""
    from cytolake.line.session import RayConfig, ray_session

    os.environ.pop("RAY_ADDRESS", None)
    with ray_session(RayConfig(cpus=2, object_store_mb=256)):
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
