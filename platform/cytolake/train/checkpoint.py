"""Training checkpoints, written by all workers at the same time and read by any number of workers.

`checkpoint_step_*/` holds `encoder.safetensors`, the encoder whole; for each worker `shard_R_of_W.safetensors`, its
share of all weights and of the optimiser's moments; and `state.json`, its position in the run. Tensors that every
worker holds whole are divided among the files; of a sharded tensor each file has some rows, and records which. So a
worker writes its file alone, and a run can continue with another number of workers. The header of a safetensors file
contains its length, so a file that a killed worker left incomplete is detected.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cytolake.models import CheckpointError, Encoder, save_encoder
from cytolake.models.objectives import Objective
from cytolake.storage.atomic_write import atomic_file
from cytolake.train.run_folder import ENCODER_FILE, write_json
from cytolake.train.sharded import as_sharded

_STATE_FILE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Position of a checkpoint in a run."""

    step: int
    """Steps done."""
    samples: int
    """Crops since the beginning of the run: where the sampler continues."""
    pack_id: str


@dataclass(frozen=True, slots=True)
class ShardRows:
    """Rows of one tensor that one worker stores."""

    values: Tensor
    """On the CPU, a copy."""
    first: int
    """Its first row in the whole tensor."""
    rows: int | None
    """Rows of the whole tensor; None where this is all of it."""


class CheckpointWriter:
    """Writes one worker's part of a checkpoint in a thread during training."""

    def __init__(self, run_folder: Path, rank: int, world_size: int, n_kept: int) -> None:
        self._run_folder, self._rank, self._world_size, self._n_kept = run_folder, rank, world_size, n_kept
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def begin(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        encoder: Encoder | None,
        position: Position,
        config: Mapping[str, Any],
    ) -> None:
        """Copy the state, and write it from then on in the background; waits for an earlier checkpoint first.

        `encoder` is a copy on the CPU that training does not change, on the first worker; None on the others.
        """
        self.wait()
        parts = dict(_divided(_parts(objective, optimiser), self._rank, self._world_size))

        def write() -> None:
            try:
                self._write(parts, encoder, position, config)
            except BaseException as error:  # raised by `wait`, in the thread that can stop the run
                self._error = error

        self._thread = Thread(target=write, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            Exception: The error of writing the last checkpoint.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(
        self, parts: Mapping[str, ShardRows], encoder: Encoder | None, position: Position, config: Mapping[str, Any]
    ) -> None:
        folder = self._run_folder / checkpoint_name(position.step)
        folder.mkdir(exist_ok=True)
        where = {name: [part.first, part.rows] for name, part in parts.items() if part.rows is not None}
        path = folder / _shard_name(self._rank, self._world_size)
        with atomic_file(path) as unfinished:
            save_file({name: part.values for name, part in parts.items()}, unfinished, {"rows": json.dumps(where)})
        if encoder is None:
            return
        save_encoder(encoder, folder / ENCODER_FILE)
        state = {
            "step": position.step,
            "samples": position.samples,
            "pack_id": position.pack_id,
            "workers": self._world_size,
            "config": config,
        }
        write_json(folder / _STATE_FILE, state)
        whole = [each for each in _by_step(self._run_folder) if is_whole(each)]
        for old in whole[: -self._n_kept]:
            shutil.rmtree(old, ignore_errors=True)


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps; names sort as steps do."""
    return f"checkpoint_step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.rsplit("_", 1)[1])


def newest_checkpoint(run_folder: Path) -> Path | None:
    """The complete checkpoint with the most steps; incomplete ones of a killed run are skipped."""
    return next((folder for folder in reversed(_by_step(run_folder)) if is_whole(folder)), None)


def forget_broken_checkpoints(run_folder: Path) -> None:
    """Delete incomplete checkpoints of killed workers, so that none of their files mixes with later ones."""
    for folder in _by_step(run_folder):
        if not is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)


def is_whole(folder: Path) -> bool:
    """Whether every worker's part is complete."""
    try:
        state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
        names = [ENCODER_FILE, *(_shard_name(rank, state["workers"]) for rank in range(state["workers"]))]
        return all(_is_whole_file(folder / name) for name in names)
    except (OSError, ValueError, KeyError, struct.error):
        return False


def read_checkpoint(folder: Path, objective: Objective, optimiser: torch.optim.Optimizer, pack_id: str) -> Position:
    """Load weights and optimiser in place, whether they are whole or sharded over the workers.

    Raises:
        CheckpointError: The checkpoint is of another pack or another model, or not whole.
    """
    if not is_whole(folder):
        raise CheckpointError(
            f"{folder}: not a whole checkpoint: found {', '.join(sorted(each.name for each in folder.iterdir()))}; "
            f"expected {ENCODER_FILE}, {_STATE_FILE} and the part of every worker that it counts. "
            "Delete it, and the run continues from the one before."
        )
    state = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    if state["pack_id"] != pack_id:
        raise CheckpointError(
            f"{folder}: a checkpoint of another pack: found {state['pack_id']}, expected {pack_id}. "
            "Give the run the pack it began with, or delete its folder to begin again."
        )
    with _Shards(folder, state["workers"]) as shards, torch.no_grad():
        names = dict(_named_tensors(objective))
        found = {name.removeprefix("model/") for name in shards.names if name.startswith("model/")}
        if names.keys() != found:
            wrong = sorted(names.keys() ^ found)
            raise CheckpointError(
                f"{folder}: weights of another model: {len(wrong)} differ, first {wrong[0]}. "
                "Use a checkpoint of this config, or train again."
            )
        for name, tensor in names.items():
            shards.fill(f"model/{name}", tensor)
        moments = [name.split("/") for name in shards.names if name.startswith("optimiser/")]
        parameters = dict(objective.named_parameters())
        for _, name, moment in moments:
            parameter = parameters[name]
            key = f"optimiser/{name}/{moment}"
            value = torch.zeros_like(parameter) if shards.rows_of(key) == _rows(parameter) else shards.read(key)
            if value.shape == parameter.shape:
                shards.fill(key, value)
            optimiser.state[parameter][moment] = value
    return Position(step=state["step"], samples=state["samples"], pack_id=pack_id)


class _Shards:
    """The files of all workers that wrote a checkpoint, open side by side."""

    def __init__(self, folder: Path, n_workers: int) -> None:
        self._folder = folder
        paths = [folder / _shard_name(rank, n_workers) for rank in range(n_workers)]
        self._files: list[Any] = [safe_open(path, framework="pt") for path in paths]
        self._parts: dict[str, list[tuple[int, Any]]] = {}
        self._rows: dict[str, int] = {}

    def __enter__(self) -> _Shards:
        for file in self._files:
            file.__enter__()
            where = json.loads((file.metadata() or {}).get("rows", "{}"))
            for name in file.keys():  # noqa: SIM118
                first, rows = where.get(name, (0, None))
                self._parts.setdefault(name, []).append((first, file))
                if rows is not None:
                    self._rows[name] = rows
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files:
            file.__exit__(*error)

    @property
    def names(self) -> list[str]:
        return sorted(self._parts)

    def rows_of(self, name: str) -> int | None:
        """Rows of the whole tensor, None for a single number."""
        if name in self._rows:
            return self._rows[name]
        shape = self._parts[name][0][1].get_slice(name).get_shape()
        return int(shape[0]) if shape else None

    def read(self, name: str) -> Tensor:
        """A tensor that one file has whole."""
        tensor: Tensor = self._parts[name][0][1].get_tensor(name)
        return tensor

    def fill(self, name: str, target: Tensor) -> None:
        """Write the saved rows of a tensor into the rows that this worker holds."""
        mine, first, _ = _local(target)
        if mine.ndim == 0:
            mine.copy_(self.read(name).to(mine.dtype))
            return
        last, n_filled = first + len(mine), 0
        for start, file in self._parts[name]:
            rows = file.get_slice(name)
            a, b = max(first, start), min(last, start + rows.get_shape()[0])
            if a < b:
                part = rows[a - start : b - start]
                if part.shape[1:] != mine.shape[1:]:
                    raise CheckpointError(
                        f"{self._folder}: weights of another model: {name} has rows of shape {tuple(part.shape[1:])}, "
                        f"expected {tuple(mine.shape[1:])}. Use a checkpoint of this config, or train again."
                    )
                mine[a - first : b - first].copy_(part)
                n_filled += b - a
        if n_filled != len(mine):
            raise CheckpointError(
                f"{self._folder}: weights of another model: {name} has {n_filled} of the {len(mine)} rows that are "
                "needed. Use a checkpoint of this config, or train again."
            )


def _named_tensors(objective: Objective) -> Iterator[tuple[str, Tensor]]:
    """Weights and the buffers that are state, by name."""
    for name, value in objective.state_dict().items():
        if isinstance(value, Tensor):
            yield name, value


def _parts(objective: Objective, optimiser: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    for name, value in _named_tensors(objective):
        yield f"model/{name}", value
    for name, parameter in objective.named_parameters():
        for moment, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"optimiser/{name}/{moment}", value


def _divided(tensors: Iterator[tuple[str, Tensor]], rank: int, world_size: int) -> Iterator[tuple[str, ShardRows]]:
    """This worker's rows of sharded tensors, and its share of those that all workers hold whole."""
    for i, (name, tensor) in enumerate(tensors):
        mine, first, rows = _local(tensor)
        if rows is None and i % world_size != rank:
            continue
        if rows is not None and len(mine) == 0:
            continue
        yield name, ShardRows(mine.detach().to("cpu", copy=True).contiguous(), first, rows)


def _local(tensor: Tensor) -> tuple[Tensor, int, int | None]:
    """This worker's part of a tensor, its first row, and the rows of the whole tensor where it is sharded."""
    sharded = as_sharded(tensor)
    if sharded is None:
        return tensor, 0, None
    from torch.distributed.tensor import Shard

    mine = sharded.to_local()
    if sharded.placements != (Shard(0),):
        return mine, 0, None
    mesh = sharded.device_mesh
    each = -(-tensor.shape[0] // mesh.size())  # FSDP2 divides rows as torch.chunk does
    return mine, min(mesh.get_local_rank() * each, tensor.shape[0]), int(tensor.shape[0])


def _rows(tensor: Tensor) -> int | None:
    return int(tensor.shape[0]) if tensor.ndim else None


def _by_step(run_folder: Path) -> list[Path]:
    return sorted(run_folder.glob("checkpoint_step_*"))


def _shard_name(rank: int, world_size: int) -> str:
    return f"shard_{rank}_of_{world_size}.safetensors"


def _is_whole_file(path: Path) -> bool:
    """Whether a safetensors file has the length that its header requires."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            return False
        header = json.loads(file.read(length))
    end = max((each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"), default=0)
    return bool(path.stat().st_size == 8 + length + int(end))
