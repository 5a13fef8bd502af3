"""CPU seconds and memory until a person sees something: help, a look at a screen, the imports of a notebook. Called by
`make bench-startup`.

Each runs as a process of its own, several times; the smallest CPU time counts, since it is what the program needs, and
the largest resident memory. An empty Python process is measured next to them: it is the bound. This file imports
nothing of cytolake, since a process begins with the memory of the one that started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "platform"
RUNS = 5
BAR_S = 0.7


@dataclass(frozen=True, slots=True)
class Start:
    """One thing to start."""

    name: str
    arguments: Sequence[str]
    bar_s: float
    """CPU seconds, user and system."""
    bar_mb: float = float("inf")
    """Resident memory at its largest."""


def measure(arguments: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and MB of one process, and of the processes that it waited for."""
    environment = os.environ | {"PYTHONPATH": str(PACKAGE)}
    started = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    _, status, used = os.wait4(started.pid, 0)
    if status:
        message = started.stderr.read().decode() if started.stderr else ""
        sys.exit(f"{' '.join(arguments)} ended with status {os.waitstatus_to_exitcode(status)}: {message}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> int:
    """Measure all, print them, and compare with the bars."""
    with tempfile.TemporaryDirectory() as folder:
        measure(("-m", "cytolake.cli", "simulate", folder, "--set", "n_plates=2"))
        screen = str(next(path for path in Path(folder).iterdir() if path.is_dir()))
        starts = (
            Start("python", ("-c", "pass"), float("inf")),
            Start("cytolake --help", ("-m", "cytolake.cli", "--help"), BAR_S, 150),
            Start("cytolake inspect", ("-m", "cytolake.cli", "inspect", screen), 1.5),
            Start("import cytolake.catalog", ("-c", "import cytolake.catalog"), BAR_S),
            Start("import cytolake.client", ("-c", "import cytolake.client"), BAR_S),
        )
        ok = True
        figure = 0.0
        for start in starts:
            measured = [measure(start.arguments) for _ in range(RUNS)]
            seconds, megabytes = min(s for s, _ in measured), max(mb for _, mb in measured)
            holds = seconds <= start.bar_s and megabytes <= start.bar_mb
            ok &= holds
            if start.bar_mb < float("inf"):
                figure = seconds
            bars = "" if start.bar_s == float("inf") else f"  bar {start.bar_s} s"
            bars += "" if start.bar_mb == float("inf") else f", {start.bar_mb:g} MB"
            print(f"{start.name:<24} {seconds:5.2f} CPU s  {megabytes:6.0f} MB{bars}{'' if holds else '  short'}")
    print(f"bench-startup: figure={figure:.2f} bar={BAR_S} {'ok' if ok else 'short'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
