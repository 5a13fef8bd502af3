"""A part of the tests that ends without a summary says so, whatever ended it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(checkout: Path, folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """Output and status of pytest on one file with these lines."""
    (folder / "test_some.py").write_text(f"import os, signal\n\ndef test_before(): pass\n\ndef test_this(): {test}\n")
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder]
    wrapped = [sys.executable, checkout / "infra" / "pytest_with_summary.py", *pytest_here]
    bare = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(wrapped, capture_output=True, text=True, cwd=folder, timeout=120, env=bare)


@pytest.mark.parametrize(
    ("ends", "status", "named"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "status 137 (signal 9, SIGKILL)"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "status 143 (signal 15, SIGTERM)"),
        ("os._exit(1)", 1, "status 1"),
        ("os._exit(0)", 1, "status 0"),
    ],
)
def test_pytest_that_is_killed_or_ended_from_below_fails_and_says_so(checkout, tmp_path, ends, status, named):
    done = run(checkout, tmp_path, ends)
    assert done.returncode == status
    assert f"ended with {named}, without a summary" in done.stdout
    assert done.stdout.endswith("Its last lines:\n    .\n")  # the test before the one that ended it


@pytest.mark.parametrize(("ends", "status"), [("pass", 0), ("assert False", 1)])
def test_pytest_that_ends_by_itself_is_passed_on_as_it_is(checkout, tmp_path, ends, status):
    done = run(checkout, tmp_path, ends)
    assert done.returncode == status
    assert "without a summary" not in done.stdout
    assert "passed" in done.stdout.splitlines()[-1]
