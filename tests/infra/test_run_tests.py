"""What `make test` runs: parts at once, a failure of any part is a failure, and each is shown with its times."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from infra.run_tests import SUMMARY, Part, other_python, parts, run_parts


def part(name: str, code: str, **more: bool) -> Part:
    return Part(name, [sys.executable, "-c", code], **more)


def test_parts_run_at_once_and_any_failure_is_one(capfd):
    # Each waits for a file of the other: one after the other they would never end.
    meet = (
        "import os, pathlib, sys, time; folder = pathlib.Path(os.environ['CYTOLAKE_TEST_FOLDER']);"
        "(folder / sys.argv[1]).touch();\n"
        "while not (folder / sys.argv[2]).exists(): time.sleep(0.01)\n"
        "print('met', sys.argv[2])"
    )
    first, second = part("first", meet), part("second", meet, is_shown=True)
    first.command += ["a", "b"]
    second.command += ["b", "a"]
    assert run_parts([first, second])
    printed = capfd.readouterr().out
    assert "== first ==\nmet b" in printed
    assert "met a" in printed
    assert "== second ==" not in printed  # shown as it came
    assert not run_parts([part("good", "pass"), part("bad", "import sys; print('why'); sys.exit(3)")])
    printed = capfd.readouterr().out
    assert "== bad ==\nwhy" in printed
    assert "FAILED with status 3" in printed
    assert not run_parts([part("killed", "import os; os.kill(os.getpid(), 9)")])


def test_parts_share_a_folder_and_compile_once(capfd, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    shown = (
        "import os; print(os.path.isdir(os.environ['CYTOLAKE_TEST_FOLDER']), 'PYTHONDONTWRITEBYTECODE' in os.environ)"
    )
    assert run_parts([part("a", shown)])
    assert "True False" in capfd.readouterr().out


@pytest.mark.parametrize("is_all", [False, True])
def test_every_test_is_in_one_part_and_every_pytest_ends_with_a_summary_or_says_so(is_all):
    found = parts(Path(sys.executable), is_all=is_all, is_linted=True)
    pytests = [each for each in found if str(SUMMARY) in each.command]
    which = [each.command[each.command.index("-m") + 1] for each in pytests]
    assert which == (["ray and not gpu", "not ray and not gpu"] if is_all else
                     ["ray and not slow and not gpu", "not ray and not slow and not gpu"])  # fmt: skip
    assert all(("--hypothesis-profile=all_cases" in each.command) == is_all for each in pytests)
    assert {each.name for each in found} - {each.name for each in pytests} == {"ruff check", "ruff format", "mypy"}


def test_the_other_python_is_one_that_runs(tmp_path, monkeypatch):
    """As pyenv's shims are: on the path, and an error where the version is not chosen."""
    version = "3.12" if sys.version_info[:2] == (3, 11) else "3.11"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    shim, real = tmp_path / f"python{version}", tmp_path / "pyenv" / "versions" / f"{version}.1" / "bin" / "python"
    real.parent.mkdir(parents=True)
    for path, text in ((shim, "exit 127"), (real, f"echo {version}")):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    assert other_python() == (version, real)
    real.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert other_python() == (version, None)
