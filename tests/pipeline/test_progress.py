from __future__ import annotations

import json
import threading

import ray.cloudpickle
from rich.console import Console

from cytolake.pipeline import progress
from cytolake.pipeline.progress import stage_progress


class Printed:
    """Stands for stderr; `wait` returns when so many lines were printed."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.more = threading.Condition()

    def write(self, text: str) -> None:
        with self.more:
            self.lines += [line for line in text.splitlines() if line]
            self.more.notify_all()

    def flush(self) -> None:
        pass

    def wait(self, n: int) -> list[dict]:
        with self.more:
            assert self.more.wait_for(lambda: len(self.lines) >= n, timeout=60)
            return [json.loads(line) for line in self.lines]


def test_a_stage_that_reports_nothing_is_seen_to_run(monkeypatch):
    """Without the repeated line `wait` would wait for ever: nothing reports."""
    printed = Printed()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOG_LINES", 0.01)
    monkeypatch.setattr("sys.stderr", printed)
    with stage_progress("audit", Console(file=printed)) as report:
        first = printed.wait(2)[0]
        assert (first["stage"], first["what"]) == ("audit", "started")
        report("knobs", 3, 10)
        n = len(printed.lines)
        assert printed.wait(n + 2)[-1]["done"] == 3


def test_what_reports_can_be_sent_to_another_process():
    with stage_progress("probe", Console(file=Printed())) as report:
        ray.cloudpickle.loads(ray.cloudpickle.dumps(report))("representations", 1, 2)
