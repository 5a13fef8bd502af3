"""Record which crops every step saw, to show that an interrupted run skips none and repeats none.

`seen/START_RANK_of_WORKERS.jsonl` in the run's folder holds one line for each step of one worker since step START.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from cytolake.packs.sampler import Rows
from cytolake.storage.atomic_write import write_text

_FOLDER = "seen"


class SeenWriter:
    """Records the crops of one worker; on disk after `flush`."""

    def __init__(self, run_folder: Path, first_step: int, rank: int, world_size: int) -> None:
        self._path = run_folder / _FOLDER / f"{first_step:08d}_{rank}_of_{world_size}.jsonl"
        self._path.parent.mkdir(exist_ok=True)
        self._lines: list[str] = []

    def add(self, step: int, rows: Rows) -> None:
        """Rows of the pack that this worker's part of step `step` held, counted from 1."""
        self._lines.append(json.dumps({"step": step, "rows": rows.tolist()}) + "\n")

    def flush(self) -> None:
        """Write the steps added since the last call. Call it before a checkpoint begins, so that every step before a
        checkpoint is on disk."""
        if self._lines:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(self._lines)
            self._lines = []


def cut_seen(run_folder: Path, step: int) -> None:
    """Delete the records after `step`: a run that continues from there adds them again."""
    for path in sorted((run_folder / _FOLDER).glob("*.jsonl")):
        earlier = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if _step(line) <= step]
        write_text(path, "".join(earlier))


def read_seen(run_folder: Path) -> list[Rows]:
    """Rows of the pack that each step saw, all workers together, in ascending order; steps from the first on.

    Empty where the run did not record them (`pretrain.record_ids`).
    """
    steps: dict[int, list[int]] = {}
    for path in sorted((run_folder / _FOLDER).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            steps.setdefault(record["step"], []).extend(record["rows"])
    return [np.sort(np.array(steps.get(step, []), np.int64)) for step in range(1, max(steps, default=0) + 1)]


def _step(line: str) -> float:
    """Step of a line, or infinity where a killed worker left half of one."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return float("inf")
