"""Distribute an objective over workers: whole on each (DDP), or sharded (FSDP2)."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cytolake.models import Encoder, new_encoder
from cytolake.models.objectives import Objective
from cytolake.models.transformer import Block
from cytolake.train.config import Parallel
from cytolake.train.sharded import as_sharded, whole

# Buffers are position codes, which never change, and statistics that an objective itself keeps equal on all workers.
# torch 2.15 has a new name for the switch.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def is_distributed() -> bool:
    """Whether the run has several workers."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def shard(objective: Objective) -> None:
    """Shard weights over all workers, in place: each block is gathered when it computes, and freed again. Everything
    outside the blocks is one more unit, gathered for the whole step. Optimisers must be built afterwards.
    Source: FSDP2, torch.distributed.fsdp.fully_shard; Zhao et al. 2023, arXiv 2304.11277.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    kind = next(objective.parameters()).device.type
    mesh = init_device_mesh(kind, (torch.distributed.get_world_size(),))
    for part in objective.modules():
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    if hasattr(objective, "reconstruct"):
        register_fsdp_forward_method(objective, "reconstruct")


def distribute(objective: Objective, kind: Parallel, device: torch.device) -> nn.Module:
    """A module to call instead of the objective, so that gradients are those of the mean over workers."""
    if kind == "fsdp" or not is_distributed() or torch.distributed.get_world_size() == 1:
        return objective
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(objective, device_ids=devices, **{_SYNC_BUFFERS: False})  # type: ignore[arg-type]


def clip_gradients(objective: Objective, largest_norm: float) -> Tensor:
    """Scale all gradients down to a norm of at most `largest_norm`; returns the norm before, a scalar on the device."""
    return whole(torch.nn.utils.clip_grad_norm_(objective.parameters(), largest_norm))


def encoder_on_cpu(encoder: Encoder, keeps: bool) -> Encoder | None:
    """A copy on the CPU that training does not change. All workers must call it where weights are sharded.

    Args:
        encoder: Of the objective that is trained.
        keeps: False on workers that need no copy; they get None.
    """
    state = encoder.state_dict()
    if all(as_sharded(value) is None for value in state.values()):
        return copy.deepcopy(encoder).cpu() if keeps else None
    gathered_state = {}
    for name, value in state.items():  # one after another: no worker ever holds two gathered tensors on its device
        gathered = whole(value)
        if keeps:
            gathered_state[name] = gathered.detach().cpu()
    if not keeps:
        return None
    copied = new_encoder(encoder.config)
    copied.load_state_dict(gathered_state)
    return copied
