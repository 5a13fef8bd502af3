"""Tokens of crops with different channel counts in one row, without padding.

Crops of equal length lie side by side: a run. Layers that treat each token alone see one long row; attention sees each
run as an ordinary stack of sequences. So no token is computed that no crop has, and no mask is needed.

Shapes: B crops; T tokens of all crops; in a run n crops of L tokens each; D features.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Runs: TypeAlias = "tuple[tuple[int, int], ...]"
"""(n, L) of each run, in the order of the row."""


def split_runs(row_TD: Tensor, runs: Runs) -> list[Tensor]:
    """The (n, L, D) stack of each run; views of the row."""
    if len(runs) == 1:
        return [row_TD.view(*runs[0], *row_TD.shape[1:])]
    # Not slices: in the backward pass each slice fills a whole row with zeros, where a split concatenates once.
    parts = torch.split_with_sizes(row_TD, [n * length for n, length in runs])
    return [part.view(*run, *row_TD.shape[1:]) for part, run in zip(parts, runs, strict=True)]


def join_runs(stacks: Iterable[Tensor]) -> Tensor:
    """The row (T, D) of stacks (n, L, D)."""
    parts = [stack.flatten(0, 1) for stack in stacks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def longer(runs: Runs, by: int) -> Runs:
    """Runs of the same crops with `by` more tokens each."""
    return tuple((n, length + by) for n, length in runs)


def spread(of_crop_XB: Tensor, runs: Runs) -> Tensor:
    """(X, T) values of each crop, in the order of the runs, repeated for each of its tokens."""
    # From the shapes alone, as a list of lengths would have to be copied to a GPU, and the GPU waited for.
    of_runs = torch.split_with_sizes(of_crop_XB, [n for n, _ in runs], dim=1)
    parts = [part[:, :, None].expand(-1, -1, length) for part, (_, length) in zip(of_runs, runs, strict=True)]
    return parts[0].flatten(1) if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], dim=1)


@lru_cache(maxsize=256)
def starts(runs: Runs, device: torch.device) -> Tensor:
    """(B + 1,) int32, where in the row each crop starts, and the end of the last. Cached, since every block uses it."""
    with torch.inference_mode(False):  # a cached tensor must serve training too
        lengths = torch.cat([torch.full((n,), length, dtype=torch.int32) for n, length in runs])
        return to_device(functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)), device)


def to_device(from_cpu: Tensor, device: torch.device) -> Tensor:
    """A copy to the device that does not wait for the GPU's queue."""
    if device.type != "cuda" or from_cpu.device.type != "cpu":
        return from_cpu.to(device)
    return from_cpu.pin_memory().to(device, non_blocking=True)


def by_length(n_tokens: Sequence[int]) -> tuple[list[int], Runs]:
    """The order in which crops of these lengths form runs, shortest first, and the runs. In a run crops keep theirs."""
    order = sorted(range(len(n_tokens)), key=n_tokens.__getitem__)
    sizes: dict[int, int] = {}
    for i in order:
        sizes[n_tokens[i]] = sizes.get(n_tokens[i], 0) + 1
    return order, tuple((n, length) for length, n in sizes.items())
