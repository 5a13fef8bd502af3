"""Progress of a stage: a bar where a person looks, a JSON line now and then where a log is kept."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

SECONDS_BETWEEN_LOG_LINES = 15.0


class Report(Protocol):
    """Called with what a stage works on, how much of it is done, and how much there is."""

    def __call__(self, what: str, done: int, total: int, /) -> None: ...


@contextmanager
def stage_progress(stage: str, console: Console) -> Iterator[Report]:
    """Show the progress of one stage and, at its end, the seconds it took.

    On a terminal each `what` gets a bar. Elsewhere (a log, CI, a Ray job) one JSON line is printed every
    `SECONDS_BETWEEN_LOG_LINES`, so that logs stay short and can be parsed.
    """
    started = time.monotonic()
    if console.is_terminal:
        with Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        ) as bars:
            tasks: dict[str, TaskID] = {}

            def show(what: str, done: int, total: int, /) -> None:
                if what not in tasks:
                    tasks[what] = bars.add_task(f"{stage}: {what}", total=total)
                bars.update(tasks[what], completed=done, total=total)

            yield show
    else:
        with _progress_lines(stage, started) as log:
            yield log


@contextmanager
def _progress_lines(stage: str, started: float) -> Iterator[Report]:
    """Print the newest report at most, and while the stage runs at least, every `SECONDS_BETWEEN_LOG_LINES`.

    A stage may work for minutes between two reports, or before its first: it is seen to run all the same.
    """
    is_over = threading.Event()
    newest: tuple[str, int, int] = ("started", 0, 0)
    last = started

    def log(what: str, done: int, total: int, /) -> None:  # Ray Tune pickles it: it holds no lock
        nonlocal last, newest
        newest = (what, done, total)
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LOG_LINES:
            last = now
            line = {"stage": stage, "what": what, "done": done, "total": total, "seconds": round(now - started, 1)}
            print(json.dumps(line), file=sys.stderr, flush=True)

    def repeat() -> None:
        while not is_over.wait(SECONDS_BETWEEN_LOG_LINES):
            log(*newest)

    threading.Thread(target=repeat, daemon=True, name=f"progress of {stage}").start()
    try:
        yield log
    finally:
        is_over.set()
