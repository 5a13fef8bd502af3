"""Runs everything that a change must pass, on all CPUs: linters and types next to the tests, tests with Ray next to the
others.

    python infra/run_tests.py           what `make test` runs
    python infra/run_tests.py --all     `make test-all`: slow tests and 100 examples of each property too, and the same
                                        with the other version of Python, where one is found

Tests with Ray wait much for processes to start, so they run one by one; the others run one process a CPU and give way
to them. A part's output comes when it ends; that of the largest is shown as it comes. The last lines are the parts with
their times, and the exit status is 0 where every part passed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SUMMARY = CHECKOUT / "infra" / "pytest_with_summary.py"


@dataclass(slots=True)
class Part:
    """A command that runs next to others."""

    name: str
    command: list[str]
    is_nice: bool = True
    """Gives way to parts that are not."""
    is_shown: bool = False
    """Its output is shown as it comes, not at its end."""
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of its processes that have ended and were waited for."""
    status: int = 1

    def run(self, environment: dict[str, str], printing: threading.Lock) -> None:
        """Run it to its end, and print what it printed."""
        started = time.monotonic()
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(
                [*(["nice"] if self.is_nice else []), *self.command],
                cwd=CHECKOUT,
                env=environment | self.environment,
                stdout=None if self.is_shown else output,
                stderr=None if self.is_shown else subprocess.STDOUT,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = self.status = os.waitstatus_to_exitcode(status)
            self.seconds, self.cpu_seconds = time.monotonic() - started, used.ru_utime + used.ru_stime
            output.seek(0)
            if not self.is_shown:
                with printing:
                    print(f"\n== {self.name} ==\n{output.read().rstrip()}", flush=True)


def parts(python: Path, *, is_all: bool, is_linted: bool) -> list[Part]:
    """The parts of a run by an interpreter."""
    program = python.parent
    pytest = [
        str(python),
        str(SUMMARY),
        str(program / "pytest"),
        *(["--hypothesis-profile=all_cases"] if is_all else []),
    ]
    which = "not gpu" if is_all else "not slow and not gpu"
    with_ray = Part("tests with Ray", [*pytest, "-m", f"ray and {which}"], is_nice=False)
    with_ray.environment["RAY_worker_niceness"] = "0"
    # How tests are spread over processes is in tests/conftest.py.
    others = Part("tests", [*pytest, "-n", "auto", "-m", f"not ray and {which}"], is_shown=True)
    lint = [
        Part("ruff check", [str(program / "ruff"), "check", "."]),
        Part("ruff format", [str(program / "ruff"), "format", "--check", "."]),
        Part("mypy", [str(program / "mypy")]),
    ]
    return [with_ray, others, *(lint if is_linted else [])]


def run_parts(together: list[Part]) -> bool:
    """Run them at once; whether all passed."""
    printing = threading.Lock()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cytolake-tests-") as folder:
        environment = {**os.environ, "CYTOLAKE_TEST_FOLDER": folder}
        # Tests start many processes of Python: each would compile the whole package again.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        threads = [threading.Thread(target=part.run, args=(environment, printing)) for part in together]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(f"\n{'part':<16}{'wall':>8}{'CPU':>8}")
    for part in together:
        outcome = "passed" if part.status == 0 else f"FAILED with status {part.status}"
        print(f"{part.name:<16}{part.seconds:7.0f}s{part.cpu_seconds:7.0f}s  {outcome}")
    print(
        f"{'all':<16}{time.monotonic() - started:7.0f}s{sum(part.cpu_seconds for part in together):7.0f}s", flush=True
    )
    return all(part.status == 0 for part in together)


def other_python() -> tuple[str, Path | None]:
    """The supported version that this interpreter is not, and an interpreter of it; None where there is none."""
    version = "3.12" if sys.version_info[:2] == (3, 11) else "3.11"
    candidates = [shutil.which(f"python{version}")]
    if uv := shutil.which("uv"):
        candidates.append(_output([uv, "python", "find", "--no-python-downloads", version]))
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/python")), reverse=True)
    for each in filter(None, candidates):
        # A shim of pyenv is found on the path, and fails where its version is not the chosen one.
        if _output([each, "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"]) == version:
            return version, Path(each)
    return version, None


def environment_of(version: str, interpreter: Path) -> Path:
    """The interpreter of `.venv-VERSION`, with cytolake and its pinned dependencies installed."""
    folder = CHECKOUT / f".venv-{version}"
    python, installed = folder / "bin" / "python", folder / ".installed"
    listed = [CHECKOUT / "pyproject.toml", CHECKOUT / "constraints.txt"]
    if not installed.exists() or installed.stat().st_mtime < max(each.stat().st_mtime for each in listed):
        print(f"installing cytolake and its pinned dependencies into {folder.name}", flush=True)
        if not python.exists():
            subprocess.run([interpreter, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run(
            [*install, "--constraint", "constraints.txt", "--editable", ".[all,dev]"], cwd=CHECKOUT, check=True
        )
        installed.touch()
    return python


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="slow tests, 100 examples of each property, both Pythons")
    is_all = parser.parse_args(arguments).all
    has_passed = run_parts(parts(Path(sys.executable), is_all=is_all, is_linted=True))
    if is_all:
        version, interpreter = other_python()
        if interpreter is None:
            print(f"skipped: the tests on Python {version}, since no such interpreter was found", flush=True)
        else:
            print(f"\n== the tests on Python {version} ==", flush=True)
            python = environment_of(version, interpreter)
            has_passed = run_parts(parts(python, is_all=True, is_linted=False)) and has_passed
    return 0 if has_passed else 1


if __name__ == "__main__":
    sys.exit(main())
