"""Files of a pretraining run: their names, and how they are read and written.

`<runs_root>/<run_key>/` holds `encoder.safetensors`, `untrained.safetensors`, `history.json` (one row for each report),
`history.jsonl` (the same during the run), `reconstructions.npz`, `result.json` (written last: the run is finished) and
`checkpoint_step_*/` (to continue from, see `checkpoint`). A run that stopped for a reason that a restart cannot fix
records it in `stopped.json`. Every file is written atomically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cytolake.storage.atomic_write import atomic_file, write_text

ENCODER_FILE = "encoder.safetensors"
UNTRAINED_FILE = "untrained.safetensors"
RESULT_FILE = "result.json"
HISTORY_FILE = "history.json"
LIVE_HISTORY_FILE = "history.jsonl"
RECONSTRUCTIONS_FILE = "reconstructions.npz"
STOPPED_FILE = "stopped.json"
PICTURES_FOLDER = "pictures"
EVALUATIONS_FOLDER = "evaluations"


def read_live_history(run_folder: Path) -> list[dict[str, float]]:
    """Rows reported so far, oldest first; a line that is being written is left for the next time."""
    path = run_folder / LIVE_HISTORY_FILE
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_history(run_folder: Path, row: Mapping[str, float]) -> None:
    """Report one row."""
    with (run_folder / LIVE_HISTORY_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def cut_history(run_folder: Path, step: int) -> None:
    """Delete the rows after `step`: a run that continues from there reports them again."""
    rows = [row for row in read_live_history(run_folder) if row["step"] <= step]
    write_text(run_folder / LIVE_HISTORY_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays to an .npz file atomically."""
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
