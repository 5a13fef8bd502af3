"""Save and load encoders as safetensors files that hold all that is needed to run them, and check their identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from cytolake.models.build import new_encoder
from cytolake.models.config import ModelConfig
from cytolake.models.encoder import Encoder
from cytolake.storage.atomic_write import atomic_file

_KIND = "cytolake-encoder"
_VERSION = "2"


class CheckpointError(ValueError):
    """A file cannot be used as the expected encoder. The text names the file, what was found and expected, and the
    remedy."""


def save_encoder(encoder: Encoder, path: str | Path) -> str:
    """Write the encoder to one safetensors file atomically, and return its model id."""
    path = Path(path)
    identity = model_id(encoder)
    metadata = {
        "kind": _KIND,
        "version": _VERSION,
        "config": encoder.config.to_json(),
        "vocabulary": json.dumps(encoder.config.channels),
        "model_id": identity,
    }
    save_weights(encoder, path, metadata)
    return identity


def load_encoder(path: str | Path, expect: ModelConfig | None = None) -> Encoder:
    """Read an encoder in evaluation mode, on the CPU.

    Args:
        path: A file of `save_encoder`.
        expect: Refuse an encoder that differs from this config in anything but drop-path.

    Raises:
        CheckpointError: No such file, not a safetensors file, a truncated or changed file, a file that cytolake did not
            write, or an encoder of another config.
    """
    path = Path(path)
    weights, metadata = read_weights(path)
    if metadata.get("kind") != _KIND or metadata.get("version") != _VERSION:
        raise CheckpointError(
            f"{path}: not a cytolake encoder: found a safetensors file of kind {metadata.get('kind', 'unknown')!r}, "
            f"version {metadata.get('version', 'unknown')!r}, expected {_KIND!r}, version {_VERSION!r}. "
            "Give the encoder.safetensors of a pretraining run."
        )
    try:
        config = ModelConfig.from_json(metadata["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the model config in the file is not readable ({error}). Expected one that save_encoder wrote; "
            "use a checkpoint of this version of cytolake, or train again."
        ) from error
    if expect is not None:
        names = [field.name for field in dataclasses.fields(config) if field.name != "drop_path"]
        different = [name for name in names if getattr(config, name) != getattr(expect, name)]
        if different:
            found = ", ".join(f"{name}={getattr(config, name)}" for name in different)
            wanted = ", ".join(f"{name}={getattr(expect, name)}" for name in different)
            raise CheckpointError(
                f"{path}: a checkpoint of another model: found {found}, expected {wanted}. "
                "Choose the checkpoint of this recipe, or the recipe of this checkpoint."
            )
    encoder = new_encoder(config)
    put_weights(encoder, weights, path)
    if model_id(encoder) != metadata.get("model_id"):
        raise CheckpointError(
            f"{path}: the weights have changed since they were saved: found model id {model_id(encoder)}, expected "
            f"{metadata.get('model_id')}. Copy the file again from its run, or train again."
        )
    return encoder.eval()


def model_id(encoder: Encoder) -> str:
    """32 hex digits over config and weights: equal for equal encoders, on any machine."""
    digest = hashlib.blake2b(encoder.config.to_json().encode(), digest_size=16)
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(module: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write a module's weights and text metadata to a safetensors file atomically."""
    weights = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_file(path) as part:
        save_file(weights, part, metadata)


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: No such file, or not a whole safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint file. Expected a .safetensors file of a pretraining run; check the path."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: found {path.stat().st_size} bytes that are not a whole safetensors file ({error}), expected a "
            "checkpoint. It is truncated or of another format: copy it again from its run, or train again."
        ) from error


def put_weights(module: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Load weights into a module that must have exactly these.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise CheckpointError(
            f"{path}: weights of another model: {len(wrong)} differ, first {wrong[0]}: found "
            f"{found.get(wrong[0], 'nothing')}, expected {wanted.get(wrong[0], 'nothing')}. "
            "Use a checkpoint of this config, or train again."
        )
    module.load_state_dict(weights)
