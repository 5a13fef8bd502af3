"""Exchange of vectors between workers, for losses that compare crops.

Such a loss uses the crops of all workers; each worker computes its own value of it, and the training loop takes the
mean of the workers' gradients. For that mean to be the gradient of the mean loss, a worker's rows must get the
gradients of every worker's value: the functions here return them.

In a single process, with or without a process group, they return their input.

Shapes: B crops of this worker, A crops of all workers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def n_workers() -> int:
    """Processes that share a minibatch."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return 1


def check_several_crops(n_crops: int) -> None:
    """Raises ValueError for a minibatch of one crop, all workers together: nothing to compare it with, no variance."""
    if n_crops * n_workers() < 2:
        raise ValueError(
            f"a minibatch of {n_crops} crop: this objective compares crops with each other, and takes 2 or more. "
            "Raise pretrain.minibatch_size."
        )


def gather_rows(rows_BX: Tensor) -> tuple[Tensor, int]:
    """(A, X) the rows of all workers in the order of their ranks, and where this worker's begin. B is equal on all."""
    if n_workers() == 1:
        return rows_BX, 0
    rows_AX: Tensor = _Gather.apply(rows_BX)
    return rows_AX, torch.distributed.get_rank() * len(rows_BX)


def gather_in_minibatch_order(rows_BX: Tensor) -> Tensor:
    """(A, X) the rows of all workers in the order of the minibatch's crops: worker r has every n-th of n, from r on."""
    rows_AX, _ = gather_rows(rows_BX)
    return rows_AX.view(n_workers(), *rows_BX.shape).transpose(0, 1).flatten(0, 1)


def mean_over_workers(values: Tensor) -> Tensor:
    """The mean of a tensor that every worker has, of any shape; equal on all."""
    if n_workers() == 1:
        return values
    mean: Tensor = _Mean.apply(values)
    return mean


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows_BX: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_BX, memory_format=torch.contiguous_format) for _ in range(n_workers())]
        torch.distributed.all_gather(parts, rows_BX.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total_AX = _sum_over_workers(gradients[0])
        n = len(total_AX) // n_workers()
        first = torch.distributed.get_rank() * n
        return total_AX[first : first + n]


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        return _sum_over_workers(values) / n_workers()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        return _sum_over_workers(gradients[0]) / n_workers()


def _sum_over_workers(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)  # autograd may hand the same gradient to others
    torch.distributed.all_reduce(total)
    return total
