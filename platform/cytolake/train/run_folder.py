"""What a pretraining run leaves on disk, and how it is found again.

`<runs_root>/<run_key>/` holds `encoder.safetensors`, `untrained.safetensors`, `history.json` (one row for each report),
`history.jsonl` (the same while the run goes on), `reconstructions.npz`, `result.json` (written last: the run is
finished) and `checkpoint_step_*/` (to go on from). Everything is written whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytolake.models import CheckpointError, MaskedAutoencoder, load_encoder, save_encoder
from cytolake.models.checkpoints import put_weights, read_weights, save_weights

ENCODER_FILE = "encoder.safetensors"
UNTRAINED_FILE = "untrained.safetensors"
RESULT_FILE = "result.json"
HISTORY_FILE = "history.json"
LIVE_HISTORY_FILE = "history.jsonl"
RECONSTRUCTIONS_FILE = "reconstructions.npz"
_DECODER_FILE = "decoder.safetensors"
_PROJECTION_FILE = "projection.safetensors"
_OPTIMISER_FILE = "optimiser.pt"
_STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where in a run a checkpoint was taken."""

    step: int
    """Steps done."""
    epoch: int
    minibatch: int
    """Global minibatches done of that epoch: the sampler's `start`."""
    pack_id: str


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps; names sort as steps do."""
    return f"checkpoint_step_{step:08d}"


def write_checkpoint(
    folder: Path,
    model: MaskedAutoencoder,
    optimiser: torch.optim.Optimizer,
    position: Position,
    config: Mapping[str, Any],
) -> None:
    """Fill an existing empty folder with all that is needed to go on."""
    save_encoder(model.encoder, folder / ENCODER_FILE)
    save_weights(model.decoder, folder / _DECODER_FILE, {"kind": "cytolake-decoder"})
    if model.projection is not None:
        save_weights(model.projection, folder / _PROJECTION_FILE, {"kind": "cytolake-projection"})
    torch.save(optimiser.state_dict(), folder / _OPTIMISER_FILE)
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    state = {
        "step": position.step,
        "epoch": position.epoch,
        "minibatch": position.minibatch,
        "pack_id": position.pack_id,
        "config": config,
        "bytes": sizes,
    }
    write_json(folder / _STATE_FILE, state)


def read_checkpoint(folder: Path, model: MaskedAutoencoder, optimiser: torch.optim.Optimizer, pack_id: str) -> Position:
    """Load model and optimiser in place.

    Raises:
        CheckpointError: The checkpoint is of another pack or another model, or not whole.
    """
    state = _whole_state(folder)
    if state is None:
        raise CheckpointError(
            f"{folder}: not a whole checkpoint: found {', '.join(sorted(each.name for each in folder.iterdir()))}; "
            f"expected every file that its {_STATE_FILE} lists. Delete it, and the run goes on from the one before."
        )
    if state["pack_id"] != pack_id:
        raise CheckpointError(
            f"{folder}: a checkpoint of another pack: found {state['pack_id']}, expected {pack_id}. "
            "Give the run the pack it began with, or delete its folder to begin again."
        )
    encoder = load_encoder(folder / ENCODER_FILE, expect=model.config)
    model.encoder.load_state_dict(encoder.state_dict())
    weights, _ = read_weights(folder / _DECODER_FILE)
    put_weights(model.decoder, weights, folder / _DECODER_FILE)
    if model.projection is not None:
        weights, _ = read_weights(folder / _PROJECTION_FILE)
        put_weights(model.projection, weights, folder / _PROJECTION_FILE)
    optimiser.load_state_dict(torch.load(folder / _OPTIMISER_FILE, map_location="cpu", weights_only=True))
    return Position(step=state["step"], epoch=state["epoch"], minibatch=state["minibatch"], pack_id=pack_id)


def newest_checkpoint(run_folder: Path) -> Path | None:
    """The whole checkpoint with most steps; one that a killed run left half-written is passed over."""
    for folder in sorted(run_folder.glob("checkpoint_step_*"), reverse=True):
        if _whole_state(folder) is not None:
            return folder
    return None


def keep_checkpoint(run_folder: Path, written: Path, step: int, n_kept: int) -> None:
    """Move a written checkpoint into the run folder and delete all but the `n_kept` newest."""
    target = run_folder / checkpoint_name(step)
    if target.exists():
        shutil.rmtree(target)
    written.replace(target)
    for old in sorted(run_folder.glob("checkpoint_step_*"))[:-n_kept]:
        shutil.rmtree(old)


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
    """Forget what was reported after `step`: a run that goes on from there reports it again."""
    rows = [row for row in read_live_history(run_folder) if row["step"] <= step]
    write_text(run_folder / LIVE_HISTORY_FILE, "".join(json.dumps(row) + "\n" for row in rows))


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text, whole or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".unfinished", delete=False, encoding="utf-8"
    ) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write named arrays to an .npz file, whole or not at all."""
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, suffix=".unfinished", delete=False) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _whole_state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
        is_whole = all((folder / name).stat().st_size == size for name, size in state["bytes"].items())
    except (OSError, ValueError, KeyError):
        return None
    return state if is_whole else None
